"""What the recurrent language models promise: streaming, dropout, regularisers, saving and loading."""

import json

import pytest
import torch

import rheobase.backends
import rheobase.models
import rheobase.spiking
from rheobase.backends import count, simulate
from rheobase.models import EGRULM, GRULM, LSTMLM, EGRULMConfig, GRULMConfig, LSTMLMConfig
from rheobase.models._recurrent import variational_dropout, word_dropout
from rheobase.spiking import registry, restart_cell
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError, UnsupportedError

TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


def models(**options):
    torch.manual_seed(0)
    egru = EGRULM(EGRULMConfig(embedding=12, layers=(10, 12), thr_mean=0.1, **options)).double()
    lstm = LSTMLM(LSTMLMConfig(embedding=12, layers=(10, 12), **options)).double()
    return [egru, lstm, GRULM(GRULMConfig(embedding=12, layers=(10, 12), **options)).double()]


@pytest.mark.parametrize("kind", [0, 1, 2])
@torch.no_grad()
def test_cutting_and_carrying_the_state_changes_nothing(kind):
    model = models()[kind].eval()
    whole, end = model(TOKENS)
    for cut in (0, 1, 7, 20):
        first, state = model(TOKENS[:, :cut])
        second, last = model(TOKENS[:, cut:], state)
        assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12, rtol=0)
        for a, b in zip(last, end, strict=True):
            assert all(torch.allclose(x, y, atol=1e-12, rtol=0) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["egru_lm", "lstm_lm", "gru_lm", "spikegpt", "rwkv4"])
@torch.no_grad()
def test_a_state_detached_part_by_part_is_a_state(name):
    """As truncated backpropagation writes it, which leaves plain tuples or lists."""
    module = registry.get("rheobase.models", name)
    sizes = {"layers": (8,)} if "_lm" in name else {"depth": 1}
    model = module.Model(module.Config(embedding=8, **sizes)).eval()
    state = model(TOKENS)[1]
    wanted = model(TOKENS, state)[0]
    assert torch.equal(model(TOKENS, tuple(tuple(p.detach() for p in layer) for layer in state))[0], wanted)
    assert torch.equal(model(TOKENS, [[p.detach() for p in layer] for layer in state])[0], wanted)


@torch.no_grad()
def test_restart_zeroes_c_and_nothing_else():
    egru, lstm, gru = models()
    _, state = egru(TOKENS)
    restarted = egru.restart(state)
    for before, after in zip(state, restarted, strict=True):
        assert after.c.abs().max() == 0 and before.c.abs().max() > 0
        assert torch.equal(after.y, before.y) and torch.equal(after.trace, before.trace)
        assert restart_cell(before)._fields == before._fields
    for model in (lstm, gru):
        _, state = model(TOKENS)
        assert model.restart(state) is state


def test_a_dropout_mask_is_shared_over_time_and_not_over_the_batch():
    x = torch.ones(64, 9, 50)
    y = variational_dropout(x, 0.25, True)
    assert (y == y[:, :1]).all() and not (y[0] == y[1]).all()
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert variational_dropout(x, 0.25, False) is x


def test_word_dropout_takes_a_word_everywhere_and_keeps_the_mean():
    torch.manual_seed(0)
    table, tokens = torch.randn(400, 3), torch.randint(0, 400, (20, 50))
    x = table[tokens]
    y = word_dropout(x, tokens, 400, 0.25, True)
    gone = torch.zeros(400, dtype=torch.bool)
    gone[tokens[(y == 0).all(-1)]] = True
    assert torch.allclose(y, x / 0.75 * ~gone[tokens].unsqueeze(-1)) and 0 < gone.sum() < 400
    masks = torch.stack([word_dropout(torch.ones(1, 400, 1), torch.arange(400)[None], 400, 0.25, True) for _ in "abc"])
    assert masks.unique().tolist() == [0.0, pytest.approx(1 / 0.75)] and not torch.equal(masks[0], masks[1])
    # 1200 draws: a standard deviation of 0.0125 of the part dropped, 0.0167 of the mean
    assert (masks == 0).double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert masks.mean().item() == pytest.approx(1.0, abs=0.07)
    assert word_dropout(x, tokens, 400, 0.25, False) is x and word_dropout(x, tokens, 400, 0.0, True) is x


def test_word_dropout_leaves_the_decoder_of_the_shared_table_alone():
    model = models(dropout_words=0.999)[1].train()
    torch.manual_seed(1)  # every word of TOKENS is dropped
    rest = torch.zeros(*TOKENS.shape, 12, dtype=torch.double)
    for index in range(2):
        rest = model.run_layer(index, rest, None)[0]
    assert torch.allclose(model(TOKENS)[0], rest @ model.embedding.weight.T + model.decoder.bias)
    assert not torch.allclose(model.eval()(TOKENS)[0], rest @ model.embedding.weight.T)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_graph_knows_nothing_of_dropout(kind):
    drops = ("dropconnect", "dropout_words", "dropout_embedding", "dropout_forward", "dropout_output")
    torch.manual_seed(0)
    plain = models()[kind]
    dropping = models(**dict.fromkeys(drops, 0.5))[kind]
    dropping.load_state_dict(plain.state_dict())
    assert dropping.lower().hash() == plain.lower().hash()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_dropconnect_and_dropout_act_in_training_only(kind):
    drops = ("dropout_words", "dropout_embedding", "dropout_forward", "dropout_output")
    model = models(dropconnect=0.5, **dict.fromkeys(drops, 0.1))[kind]
    plain = models()[kind].eval()
    assert torch.equal(model.eval()(TOKENS)[0], plain(TOKENS)[0])
    model.train()
    assert not torch.equal(model(TOKENS)[0], model(TOKENS)[0])
    model(TOKENS)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropconnect_drops_single_weights_and_rescales():
    torch.manual_seed(0)
    model = models(dropconnect=0.5)[0].train()
    seen = {}
    model.layers[0]._run = lambda x, kernel, state: seen.update(kernel=kernel) or (None, None)
    model.layers[0](torch.zeros(1, 1, 12), whole=True)
    ratio = seen["kernel"] / model.layers[0].recurrent_kernel
    assert set(ratio.detach().round(decimals=6).unique().tolist()) == {0.0, 2.0}
    with pytest.raises(ConfigError, match="use forward or eval"):
        model.layers[0].step(torch.zeros(1, 12), model.layers[0].initial_state(1))


@pytest.mark.parametrize("dropconnect", [0.0, 0.2])
@pytest.mark.parametrize("kind", [GRULM, LSTMLM])
def test_torchs_own_layers_stay_out_of_autocast(kind, dropconnect):
    sizes = {"vocabulary": 20, "embedding": 8, "layers": (12, 8), "dropconnect": dropconnect}
    model, tokens = kind(kind.Config(**sizes)), torch.arange(20).reshape(2, 10)
    found, before = [], model.eval()(tokens)[1]
    before = tuple(type(part)(*(t.detach() for t in part)) for part in before)
    model.train()
    for narrow in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            logits, state = model(tokens, before)
        logits.float().logsumexp(-1).sum().backward()
        assert logits.dtype == (torch.bfloat16 if narrow else torch.float32)
        found.append(state)
    for a, b in zip(*found, strict=True):
        assert all(map(torch.equal, a, b))


def test_the_rate_regulariser_pulls_towards_its_target():
    torch.manual_seed(0)
    rates = {}
    for target in (0.05, 0.6):
        config = EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1, rate_target=target, rate_weight=10.0)
        model = EGRULM(config)
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(60):
            _, _, runs = model.run(TOKENS)
            optimiser.zero_grad()
            model.penalty(runs).backward()
            optimiser.step()
            model.project_()
        rates[target] = runs[0].o.mean().item()
        by_hand = 10.0 * (runs[0].o.mean() - target) ** 2
        assert model.penalty(runs).item() == pytest.approx(by_hand.item())
    assert rates[0.05] < 0.15 and rates[0.6] > 0.4


def test_projection_keeps_thresholds_in_range():
    egru = models()[0]
    with torch.no_grad():
        egru.layers[0].thr += torch.linspace(-2, 2, 10)
    egru.project_()
    assert egru.layers[0].thr.min() == 0 and egru.layers[0].thr.max() == 1


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saving_and_loading(kind, dtype, tmp_path):
    model = models()[kind].to(dtype).eval()
    model.save_pretrained(tmp_path / "m")
    again = rheobase.load(tmp_path / "m")
    assert type(again) is type(model) and again.config == model.config and not again.training
    assert torch.equal(again(TOKENS)[0], model(TOKENS)[0]) and again(TOKENS)[0].dtype == dtype
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    header = json.loads((tmp_path / "m" / "config.json").read_text())
    header["config"]["layers"] = [11, 12]
    (tmp_path / "m" / "config.json").write_text(json.dumps(header))
    with pytest.raises(FormatError, match="expected shape"):
        rheobase.load(tmp_path / "m")


class Kept(GRULM):
    """A model with a tied weight, and a buffer that is wider than its weights."""

    def __init__(self, config):
        super().__init__(config)
        self.again = torch.nn.Linear(config.embedding, config.vocabulary, bias=False)
        self.again.weight = self.embedding.weight
        self.register_buffer("wide", torch.linspace(0, 1, 3, dtype=torch.float64))


def test_tied_weights_and_wider_buffers_are_saved_and_read_back_as_they_were(tmp_path):
    model = Kept(GRULMConfig(embedding=8, layers=(8,))).eval()
    model.save_pretrained(tmp_path / "m")
    again = Kept.from_pretrained(tmp_path / "m")
    assert again.again.weight is again.embedding.weight and again.wide.dtype == torch.float64
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_parameter_counts_by_hand():
    egru, lstm, gru = models()
    table = 256 * 12 + 256
    assert egru.n_parameters == table + sum(3 * h * (i + h) + 6 * h + h for i, h in ((12, 10), (10, 12)))
    assert lstm.n_parameters == table + sum(4 * h * (i + h) + 8 * h for i, h in ((12, 10), (10, 12)))
    assert gru.n_parameters == table + sum(3 * h * (i + h) + 6 * h for i, h in ((12, 10), (10, 12)))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_types_that_numpy_lacks_are_named(kind):
    with pytest.raises(UnsupportedError, match=r"embedding.weight: .*, got torch.bfloat16; call .float\(\)"):
        models()[kind].bfloat16().lower()


def test_a_model_is_made_without_memory():
    with torch.device("meta"):
        model = EGRULM(EGRULMConfig(embedding=12, layers=(10, 12)))
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("state", [5, torch.zeros(3), [None]], ids=["number", "tensor", "none"])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(
        ShapeError, match="egru_lm state: expected .*, got (int|Tensor|list); use a state of this model"
    ):
        EGRULM(EGRULMConfig(vocabulary=9, embedding=4, layers=(4,)))(torch.zeros(1, 2, dtype=torch.int64), state)


def test_packages_list_their_names():
    for package in (rheobase.spiking, rheobase.models, rheobase.backends):
        assert {*package.__all__} <= {*dir(package)}


@pytest.mark.parametrize("kind", [LSTMLM, EGRULM])
def test_both_counters_agree_where_there_is_no_token(kind):
    model = kind(kind.Config(vocabulary=9, embedding=4, layers=(4,))).eval()
    tokens = torch.zeros(2, 0, dtype=torch.int64)
    simulated = simulate(model.lower(), tokens.numpy()).tally
    assert count(model, tokens).without_bytes().total == simulated.without_bytes().total
