"""Sampling: filters against their definitions, draws by exact probabilities, rows that do not know each other."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from rheobase.models import EGRULM, LSTMLM, RWKV4, EGRULMConfig, LSTMLMConfig, RWKV4Config, SpikeGPT, SpikeGPTConfig
from rheobase.models.training.sample import SampleConfig, Writer, draw, filter_logits, sample, stream
from rheobase.models.training.tokenizers import Bytes, Words
from rheobase.spiking.errors import ConfigError, RheobaseError, ShapeError

ROWS = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=6)
MASS = st.floats(0.01, 0.999)
PLAIN = {"temperature": 1.0}


def softmax(x):
    weights = [math.exp(v) for v in x]
    return [w / sum(weights) for w in weights]


def kept(x, **options):
    """The tokens that the filters leave of one row, whose other logits must be what they were."""
    row = torch.tensor([x], dtype=torch.float64)
    out = filter_logits(row, SampleConfig(**PLAIN | options))
    left = out > -math.inf
    assert torch.equal(out[left], row[left])
    return set(left[0].nonzero().flatten().tolist())


def first_of(order, p, mass):
    """The shortest beginning of an order with at least this probability, if rounding does not decide it."""
    chosen, total = [], 0.0
    for i in order:
        assume(abs(total - mass) > 1e-9)
        if total >= mass:
            break
        chosen.append(i)
        total += p[i]
    return set(chosen)


@given(ROWS, st.integers(1, 8))
def test_top_k_keeps_the_k_largest_and_of_equals_the_first(x, k):
    assert kept(x, top_k=k) == {i for i, v in enumerate(x) if sum(w > v for w in x) + x[:i].count(v) < k}


@given(ROWS, MASS)
def test_top_p_is_the_smallest_set_of_that_mass(x, mass):
    p, got = softmax(x), kept(x, top_p=mass)
    assert got == first_of(sorted(range(len(x)), key=lambda i: -x[i]), p, mass)
    subsets = [[i for i in range(len(x)) if bits >> i & 1] for bits in range(1, 2 ** len(x))]
    enough = [s for s in subsets if sum(p[i] for i in s) >= mass - 1e-9]
    assert len(got) == min(map(len, enough))
    assert sum(p[i] for i in got) >= max(sum(p[i] for i in s) for s in subsets if len(s) == len(got)) - 1e-9


@given(ROWS, MASS)
def test_typical_takes_the_surprises_nearest_to_the_entropy(x, mass):
    p = softmax(x)
    entropy = -sum(q * math.log(q) for q in p)
    far = [abs(-math.log(q) - entropy) for q in p]
    for i, a in enumerate(far):
        assume(all(x[i] == x[j] or abs(a - b) > 1e-9 for j, b in enumerate(far)))
    assert kept(x, typical=mass) == first_of(sorted(range(len(x)), key=lambda i: (round(far[i], 9), i)), p, mass)


def test_the_likeliest_token_need_not_be_typical():
    x = [math.log(q) for q in (0.4, *[0.6 / 12] * 12)]
    assert 0 in kept(x, top_p=0.3) and 0 not in kept(x, typical=0.3)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=6), st.data(), st.floats(0.5, 3))
def test_the_penalty_lowers_what_was_seen_and_nothing_else(x, data, penalty):
    seen = data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x)))
    config = SampleConfig(**PLAIN, repetition_penalty=penalty)
    out = filter_logits(torch.tensor([x], dtype=torch.float64), config, torch.tensor([seen]))
    wanted = [(v / penalty if v > 0 else v * penalty) if s else v for v, s in zip(x, seen, strict=True)]
    assert out[0].tolist() == wanted


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
def test_what_is_off_leaves_every_bit(x):
    row = torch.tensor([x], dtype=torch.float32)
    config = SampleConfig(temperature=1.0, top_k=0, top_p=1.0, typical=1.0, repetition_penalty=1.0)
    assert filter_logits(row, config, torch.ones_like(row, dtype=bool)).numpy().tobytes() == row.numpy().tobytes()


@given(ROWS, st.floats(0.01, 5), MASS, MASS, st.integers(1, 6))
def test_the_order_is_temperature_top_k_top_p_typical(x, temperature, p, typical, k):
    config = SampleConfig(temperature=temperature, top_k=k, top_p=p, typical=typical)
    row = torch.tensor([x], dtype=torch.float64)
    wanted = filter_logits(row, SampleConfig(temperature=temperature))
    assert torch.allclose(wanted.softmax(-1), (row / temperature).softmax(-1), atol=1e-12, rtol=0)
    for options in ({"top_k": k}, {"top_p": p}, {"typical": typical}):
        wanted = filter_logits(wanted, SampleConfig(**PLAIN | options))
    assert torch.equal(filter_logits(row, config), wanted)


def test_temperatures_at_both_ends():
    x = torch.tensor([[1.0, 3.0, 3.0, -2.0]], dtype=torch.float64)
    assert filter_logits(x, SampleConfig(temperature=0)).softmax(-1).tolist() == [[0, 1, 0, 0]]
    assert filter_logits(x, SampleConfig(temperature=1e-320)).softmax(-1).tolist() == [[0, 0.5, 0.5, 0]]
    assert filter_logits(x, SampleConfig(temperature=1e300)).softmax(-1).tolist() == [[0.25] * 4]


@given(ROWS, st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_draw_has_the_exact_probabilities(x, out):
    """u on an even grid of n points: each token comes n p_i times, to within the two ends of its interval."""
    row = [-math.inf if gone and i else v for i, (v, gone) in enumerate(zip(x, out, strict=False))]
    n = 1000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = draw(torch.tensor([row], dtype=torch.float64).expand(n, -1), u)
    for i, p in enumerate(softmax(row)):
        assert abs((drawn == i).sum().item() - n * p) <= 1 and (p > 0 or not (drawn == i).any())
    ends = torch.tensor([0.0, math.nextafter(1, 0)], dtype=torch.float64)
    first, last = draw(torch.tensor([row, row], dtype=torch.float64), ends).tolist()
    possible = [i for i, v in enumerate(row) if v > -math.inf]
    assert (first, last) == (possible[0], possible[-1])


MODELS = {
    "egru": lambda: EGRULM(EGRULMConfig(embedding=12, layers=(10, 12), thr_mean=0.1, embedding_range=1.0)),
    "lstm": lambda: LSTMLM(LSTMLMConfig(embedding=12, layers=(12,), embedding_range=1.0)),
    "spikegpt": lambda: SpikeGPT(SpikeGPTConfig(embedding=8, depth=2)),
    "spike_fed": lambda: SpikeGPT(SpikeGPTConfig(embedding=8, depth=2, placement="spike_fed")),
    "spiking_head": lambda: SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, placement="spike_fed", head="spiking")),
    "rwkv4": lambda: RWKV4(RWKV4Config(embedding=8, depth=2)),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A small model in float64 whose units fire, in training mode."""
    torch.manual_seed(0)
    made = MODELS[request.param]().double().train()
    made.wake(torch.arange(128).view(8, 16))
    return made


PROMPTS, SEEDS = [b"The ", b"a", b"The ", b"longer than the others"], [3, 3, 4, 5]
CONFIG = SampleConfig(temperature=0.9, top_k=200, top_p=0.95, typical=0.9, repetition_penalty=1.2)


def test_the_text_of_a_row_is_that_of_the_row_alone(model):
    together = sample(model, PROMPTS, 20, CONFIG, SEEDS)
    assert together.shape == (4, 20) and model.training
    for row, prompt, seed in zip(together, PROMPTS, SEEDS, strict=True):
        assert torch.equal(row, sample(model, [prompt], 20, CONFIG, [seed])[0])
    assert not torch.equal(together[0], together[2])


@torch.no_grad()
def test_the_loop_is_the_whole_text_read_anew_for_every_token(model):
    text, generator = list(PROMPTS[0]), torch.Generator().manual_seed(3)
    got = sample(model, PROMPTS[:1], 20, CONFIG, [3])[0].tolist()
    model.eval()
    for _ in range(20):
        seen = torch.zeros(1, 256, dtype=torch.bool)
        seen[0, text] = True
        logits = filter_logits(model(torch.tensor([text]))[0][:, -1], CONFIG, seen)
        text += draw(logits, torch.rand(1, generator=generator, dtype=torch.float64)).tolist()
    model.train()
    assert text[len(PROMPTS[0]) :] == got


def test_each_prompt_is_read_once_and_each_token_alone(model, monkeypatch):
    shapes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, state=None: shapes.append(tuple(x.shape)) or forward(x, state))
    sample(model, PROMPTS, 5, CONFIG, SEEDS)
    assert shapes == [(1, 4), (1, 1), (1, 22)] + [(4, 1)] * 4


def test_a_long_prompt_is_read_in_pieces(model, monkeypatch):
    whole = sample(model, PROMPTS, 8, CONFIG, SEEDS)
    monkeypatch.setattr("rheobase.models.training.sample.PREFILL", 3)
    assert torch.equal(sample(model, PROMPTS, 8, CONFIG, SEEDS), whole)


class Position(NamedTuple):
    at: torch.Tensor


class Script(nn.Module):
    """A model that is certain of one text, after a prompt of any length."""

    def __init__(self, text: bytes):
        super().__init__()
        self.text, self.weight = torch.tensor(list(text)), nn.Parameter(torch.zeros(1))

    def forward(self, tokens, state=None):
        at = torch.zeros(len(tokens), dtype=torch.int64) if state is None else state[0].at + tokens.shape[1]
        logits = 1e4 * nn.functional.one_hot(self.text[at % len(self.text)], 256).float()
        return logits[:, None], (Position(at),)


@pytest.mark.parametrize(
    ("prompt", "text", "pieces"),
    [
        ("x", "é€😀".encode(), ["x", "", "é", "", "", "€", "", "", "", "😀", ""]),
        ("caf\udcc3", b"\xa9!", ["", "café", "!", ""]),
        ("x", b"\xe2\x82", ["x", "", "", "�"]),
        ("x", b"\xe2a", ["x", "", "�a", ""]),
    ],
)
def test_characters_are_shown_whole(prompt, text, pieces):
    ids = list(prompt.encode(errors="surrogateescape"))
    writer = Writer(Bytes(), ids)
    shown = [writer.fresh()]
    for (token,) in stream(Script(text), [ids], len(text), SampleConfig(), [0]):
        writer.add(token.item())
        shown.append(writer.fresh())
    writer.flush()
    assert [*shown, writer.fresh()] == pieces and writer.text == "".join(pieces)


def test_words_keep_their_spaces():
    words = Words([b"to", b"be"])
    writer = Writer(words, words.encode(b"to be"))
    for token in words.encode(b"or be\n"):
        writer.add(int(token))
    assert writer.text == "to be <unk> be \n"


def test_ids_beyond_the_tokenizers_are_never_drawn():
    model = MODELS["lstm"]()
    nn.init.constant_(model.decoder.bias[200:], 50.0)
    config = SampleConfig(temperature=3.0, repetition_penalty=1.1)
    assert (sample(model, [b"a"], 20, config) >= 200).any()
    few = sample(model, [b"a"], 100, config, vocabulary=200)
    assert few.max() < 200 and len(few.unique()) > 20


def test_what_cannot_be_sampled():
    model = Script(b"x")
    for name, value in {"temperature": -1, "top_k": -1, "top_p": 0, "typical": 1.1, "repetition_penalty": 0}.items():
        with pytest.raises(ConfigError, match=f"{name}: expected .*, got {value}; mend it"):
            SampleConfig(**{name: value})
        with pytest.raises(ConfigError, match=name):
            SampleConfig(**{name: math.nan})
    with pytest.raises(ConfigError, match="prompt: expected at least one token, got none"):
        sample(model, [b"a", b""], 3)
    with pytest.raises(ConfigError, match="seed: expected from 0 to below 2"):
        sample(model, [b"a"], 3, seeds=[-1])
    with pytest.raises(ShapeError, match="seeds: expected 1, one a prompt, got 2; give one seed a prompt"):
        next(stream(model, [b"a"], 3, SampleConfig(), [0, 1]))
    assert sample(model, [b"a"], 0).shape == (1, 0)
    nn.init.constant_(model.weight, math.nan)
    model.forward = lambda tokens, state=None: (model.weight.expand(1, 1, 256), ())
    with pytest.raises(RheobaseError, match="sample: expected finite logits, got others"):
        sample(model, [b"a"], 3)
