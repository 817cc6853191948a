"""SpikeGPT against the original's own figures: spikes identical, membranes, logits and loss within 1e-12."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rheobase import load
from rheobase.backends import count, simulate
from rheobase.models import RWKV4, RWKV4Config, SpikeGPT, SpikeGPTConfig
from rheobase.models.spikegpt import PUBLISHED
from rheobase.models.training import loop
from rheobase.models.training.data import DataConfig, read_texts
from rheobase.models.training.run import RunConfig
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError, UnsupportedError
from rheobase.spiking.neurons import lif as neurons_lif

FOLDER = Path(__file__).parent / "golden"
FILE = np.load(FOLDER / "spikegpt_reference.npz")
TOKENS, TARGETS = (torch.from_numpy(FILE[n]) for n in ("idx", "targets"))


def fixture(name):
    return torch.from_numpy(FILE[name])


def original(dtype):
    return SpikeGPT.from_reference(FOLDER / "spikegpt_reference.pt", binary_embedding=True).to(dtype)


def small(seed=0, **options):
    """A model whose neurons fire, in float64."""
    torch.manual_seed(seed)
    model = SpikeGPT(SpikeGPTConfig(**{"vocabulary": 13, "embedding": 8, "depth": 3, **options})).double().eval()
    with torch.no_grad():
        for block in model.blocks:
            louder = [block.ffn.value] if block.pre else [block.ffn.value, block.att.output]
            if options.get("placement") == "spike_fed":
                louder = [block.att.value, block.att.receptance, block.ffn.key]
                block.ln1.weight *= 2
                block.ln2.weight *= 2
            for layer in louder:
                layer.weight *= 12
    return model


def tokens_for(model, batch=2, steps=11):
    return torch.randint(0, model.config.vocabulary, (batch, steps), generator=torch.Generator().manual_seed(1))


def test_float64(monkeypatch, kernels):
    seen = []

    def watched(x, v=None, **options):
        s, after = original_lif(x, v, **options | {"whole": True})
        seen.append((x, s, after))
        return s, after[:, -1]

    original_lif = neurons_lif.lif
    monkeypatch.setattr(neurons_lif, "lif", watched)
    model = original(torch.float64)
    logits, _, runs = model.run(TOKENS)
    for i, (x, s, v) in enumerate(seen):
        name = f"f64.block{i // 2}.lif{i % 2 + 1}"
        assert torch.equal(s, fixture(f"{name}.spk"))
        assert (x - fixture(f"{name}.in")).abs().max() <= 1e-12
        assert (v - fixture(f"{name}.v")).abs().max() <= 1e-12
    assert len(seen) == 8
    assert (logits - fixture("f64.logits")).abs().max() <= 1e-12
    loss = F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())
    assert abs(loss.item() - fixture("f64.loss").item()) <= 1e-12
    (loss + model.penalty(runs)).backward()
    for name, p in model.named_parameters():
        wanted = fixture(f"f64.grad.{name}")
        assert (p.grad - wanted).abs().max() <= 1e-10 * wanted.abs().max(), name


def test_float32(kernels):
    logits, _, (_, spikes) = original(torch.float32).run(TOKENS)
    assert all(torch.equal(s, fixture(f"f32.block{i // 2}.lif{i % 2 + 1}.spk")) for i, s in enumerate(spikes))
    assert (logits - fixture("f32.logits")).abs().max() <= 1e-5


@torch.no_grad()
def test_float32_a_token_at_a_time(kernels):
    """The same spikes, and the logits of the original's sequence form and of its step form, rescaled nowhere."""
    model, state, steps, fired = original(torch.float32), None, [], []
    for t in range(TOKENS.shape[1]):
        logits, state, (_, spikes) = model.run(TOKENS[:, t : t + 1], state)
        steps.append(logits)
        fired.append(spikes)
    for i, spikes in enumerate(zip(*fired, strict=True)):
        assert torch.equal(torch.cat(spikes, 1), fixture(f"f32.block{i // 2}.lif{i % 2 + 1}.spk"))
    for name in ("f32.logits", "rnn32.logits"):
        assert (torch.cat(steps, 1) - fixture(name)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1},
        {"depth": 7, "embedding": 9},
        {"ffn_pre": True},
        {"ffn_pre": True, "depth": 1, "binary_embedding": False, "vocabulary": 5},
        {"placement": "spike_fed"},
        {"placement": "spike_fed", "depth": 1, "embedding": 5},
    ],
)
@torch.no_grad()
def test_step_form_is_sequence_form_at_any_cut(options, kernels):
    model = small(**options)
    tokens = tokens_for(model)
    logits, end, (_, spikes) = model.run(tokens)
    assert 0 < torch.stack([s.mean() for s in spikes]).mean() < 0.9
    state, steps = None, []
    for t in range(tokens.shape[1]):
        step, state = model(tokens[:, t : t + 1], state)
        steps.append(step)
    assert (torch.cat(steps, 1) - logits).abs().max() <= 1e-12
    for cut in (0, 4, 11):
        first, middle = model(tokens[:, :cut])
        second, last = model(tokens[:, cut:], middle)
        assert (torch.cat([first, second], 1) - logits).abs().max() <= 1e-12
        for a, b in zip(last, end, strict=True):
            assert all(torch.allclose(x, y, atol=1e-12, rtol=0) for x, y in zip(a, b, strict=True))


def test_non_contiguous_tokens_and_gradients_to_the_state():
    model = small()
    tokens = tokens_for(model)
    assert torch.equal(model(tokens.t().contiguous().t())[0], model(tokens)[0])
    _, state = model(tokens)
    leaves = [part.detach().clone().requires_grad_() for block in state for part in block]
    blocks = tuple(type(state[0])(*leaves[7 * i : 7 * i + 7]) for i in range(3))
    model(tokens, blocks)[0].square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_published_sizes():
    with torch.device("meta"):
        counts = {name: SpikeGPT(config).n_parameters for name, config in PUBLISHED.items()}
    assert counts == {"46m": 46_553_088, "216m": 215_399_424}


@pytest.mark.parametrize("options", [{}, {"ffn_pre": True}])
def test_a_round_trip_through_the_originals_file(options, tmp_path):
    model = small(**options)
    torch.save(model.to_reference(), tmp_path / "model.pth")
    again = SpikeGPT.from_reference(tmp_path / "model.pth", binary_embedding=True)
    assert again.config == model.config and again.head.weight.dtype == torch.float64
    tokens = tokens_for(model)
    assert torch.equal(again(tokens)[0], model(tokens)[0])
    assert not torch.equal(
        SpikeGPT.from_reference(model.to_reference(), binary_embedding=False)(tokens)[0], model(tokens)[0]
    )
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": torch.zeros(13)}, r"head.bias: expected no such tensor, got \(13,\)"),
        ({"head.weight": None}, "head.weight: expected shape"),
        ({"emb.weight": None}, "the key 'emb.weight'"),
        (
            {"blocks.1.att.key.weight": torch.zeros(8, 7)},
            r"blocks.1.att.key.weight: expected shape \(8, 8\), got \(8, 7\)",
        ),
        ({"blocks.9.ln1.weight": torch.zeros(8)}, "blocks numbered from 0"),
    ],
)
def test_files_that_do_not_fit(change, message):
    state = {k: v for k, v in {**small().to_reference(), **change}.items() if v is not None}
    with pytest.raises(FormatError, match=message):
        SpikeGPT.from_reference(state, binary_embedding=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"head.weight": torch.zeros(13, 8, dtype=torch.int32)},
            "head.weight: expected a floating-point type, got .*int32",
        ),
        ({"head.weight": torch.zeros(13, 8, dtype=torch.complex64)}, "head.weight: expected a floating-point type"),
        ({"head.weight": torch.full((13, 8), torch.nan)}, "head.weight: expected finite numbers, got inf or nan"),
        (
            {"head.weight": torch.zeros(13, 8).to(torch.float8_e4m3fn)},
            "head.weight: expected numbers of 16, 32 or 64 bits",
        ),
        ({"head.weight": torch.zeros(13, 8, device="meta")}, "head.weight: expected numbers of .*, got .* on meta"),
        ({"emb.weight": torch.zeros(1, 60_000)}, "expected 140,400,120,000 numbers or more for its sizes, got"),
        ({3: torch.zeros(1)}, "expected a table of tensors"),
    ],
)
def test_numbers_that_are_no_weights(change, message):
    with pytest.raises(FormatError, match=message):
        SpikeGPT.from_reference({**small().to_reference(), **change}, binary_embedding=True)


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "spike_fed"},
        {"placement": "spike_fed", "norm": "static"},
        {"placement": "spike_fed", "head": "spiking"},
        {"placement": "continuous"},
        {"tau": 1.0},
        {"theta": 0.5},
        {"ternary": True},
        {"graded": True},
        {"learn": ("theta",)},
        {"neuron": "norse:LIF"},
    ],
)
def test_only_the_originals_form_is_written_as_the_original_writes_it(options):
    setting = [name for name in options if name != "placement"] or ["placement"]
    named = "placement" if options.get("placement") else setting[0]
    with pytest.raises(UnsupportedError, match=f"spikegpt {named}: expected .*, as in the original, got"):
        SpikeGPT(SpikeGPTConfig(vocabulary=13, embedding=8, depth=1, **options)).to_reference()


def test_rwkv4_reads_and_writes_its_own_files(tmp_path):
    torch.manual_seed(0)
    model = RWKV4(RWKV4Config(vocabulary=13, embedding=8, depth=2)).double().eval()
    torch.save(model.to_reference(), tmp_path / "rwkv.pth")
    again = RWKV4.from_reference(tmp_path / "rwkv.pth")
    assert again.config == model.config and torch.equal(again(TOKENS % 13)[0], model(TOKENS % 13)[0])
    mixed = {n: t.bfloat16() if n.endswith("weight") else t.float() for n, t in model.to_reference().items()}
    read = RWKV4.from_reference(mixed)
    assert all(torch.equal(read.state_dict()[n], t.float()) for n, t in mixed.items())
    with pytest.raises(ConfigError, match="rwkv4 binary_embedding: expected False"):
        RWKV4.from_reference(mixed, binary_embedding=True)
    with pytest.raises(FormatError, match="whose blocks all mix time, got ffnPre in the first"):
        RWKV4.from_reference(small(ffn_pre=True).to_reference())
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "rwkv.pth")
    with pytest.raises(FormatError, match="rwkv.pth: expected the key 'emb.weight'"):
        RWKV4.from_reference(tmp_path / "rwkv.pth")


@pytest.mark.parametrize("placement", ["reference", "spike_fed", "continuous"])
@torch.no_grad()
def test_half_precision_runs(placement):
    model = small(placement=placement)
    tokens, wanted = tokens_for(model), model(tokens_for(model))[0]
    logits, state = model.half()(tokens)
    assert logits.dtype == torch.float16 and all(part.isfinite().all() for block in state for part in block)
    assert (logits.double() - wanted).abs().median() < 0.02 * wanted.abs().max()


def test_no_tokens_cost_nothing():
    model = small()
    logits, _, runs = model.run(tokens_for(model)[:, :0])
    assert logits.shape == (2, 0, 13) and model.penalty(runs) == 0


def test_tokens_of_other_types_are_refused():
    model = small()
    for kind in (torch.uint8, torch.int16, torch.bool, torch.float32):
        with pytest.raises(ShapeError, match=r"expected integers \[B, T\], int64 or int32, got torch"):
            model(tokens_for(model).to(kind))
    assert torch.equal(model(tokens_for(model).int())[0], model(tokens_for(model))[0])


def test_l2wrap_scales_with_the_loss():
    model = small()
    tokens = tokens_for(model)

    def gradient(scale):
        model.zero_grad()
        _, _, runs = model.run(tokens)
        (scale * model.penalty(runs)).backward()
        return model.head.weight.grad.clone()

    assert torch.allclose(gradient(8.0), 8 * gradient(1.0)) and gradient(1.0).abs().max() > 0
    assert small(l2wrap=False).penalty((torch.ones(1, 1, 2), [])) == 0


def test_bad_input():
    model = small()
    with pytest.raises(ShapeError, match="ids from 0 to 12, got 13"):
        model(torch.tensor([[13]]))
    with pytest.raises(ShapeError, match="use a state of this model and batch size"):
        model(torch.tensor([[1]]), small(ffn_pre=True).initial_state(1))
    with pytest.raises(ConfigError, match="at least 1"):
        SpikeGPT(SpikeGPTConfig(depth=0))


@pytest.mark.parametrize("on", ["event", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ffn_pre": True},
        {"depth": 1, "binary_embedding": False},
        {"depth": 5, "embedding": 9},
        {"placement": "spike_fed"},
        {"placement": "spike_fed", "depth": 1, "binary_embedding": False, "embedding": 5},
    ],
)
@torch.no_grad()
def test_the_lowered_model_gives_its_spikes_and_logits(options, on):
    model = small(**options)
    tokens = tokens_for(model, steps=40)
    logits, _, (_, spikes) = model.run(tokens)
    graph = model.lower()
    trace = simulate(graph, tokens, on=on)
    assert np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-9
    names = ["{}.lif1", "{}.lif2"]
    if options.get("placement") == "spike_fed":
        names = [f"{{}}.att.lif_{n}" for n in "kvro"] + [f"{{}}.ffn.lif_{n}" for n in "krh"]
    names = [name.format(f"blocks.{i}") for i in range(model.config.depth) for name in names]
    for name, s in zip(names, spikes, strict=True):
        assert np.array_equal(trace.events[f"{name}.s"].to_dense(), s.numpy()), name
    first = simulate(graph, tokens[:, :17], on=on)
    second = simulate(graph, tokens[:, 17:], first.state, on=on)
    assert np.abs(second.outputs["logits"] - logits[:, 17:].numpy()).max() < 1e-9


@pytest.mark.parametrize("options", [{}, {"ffn_pre": True}])
def test_both_counters_agree_on_the_whole(options):
    model = small(**options)
    tokens = tokens_for(model, steps=30)
    by_dispatch = count(model, tokens)
    assert by_dispatch.uncounted == ()
    assert by_dispatch.total.without_bytes() == simulate(model.lower(), tokens).tally.total.without_bytes()
    n, d, c = tokens.numel(), 8, model.config
    wanted = 13 * c.depth * d * d + c.vocabulary * d + (5 * d * d if c.ffn_pre else 0)
    assert by_dispatch.dense_macs == n * wanted  # a channel mix has 9 d^2, a time mix 4 d^2
    assert by_dispatch.acs == 0, "in this form no product reads a spike"


def test_spike_fed_products_are_accumulations():
    """Every linear layer reads spikes, and is counted so by both counters; only the head multiplies."""
    model = small(placement="spike_fed")
    tokens = tokens_for(model, steps=30)
    tally = count(model, tokens)
    assert tally.uncounted == ()
    assert tally.total.without_bytes() == simulate(model.lower(), tokens).tally.total.without_bytes()
    assert tally.dense_macs == tokens.numel() * (13 * 3 * 64 + 13 * 8)
    assert tally.macs == tokens.numel() * 13 * 8 == tally.operators["head"].macs
    _, _, (_, spikes) = model.run(tokens)
    fan_outs = [8, 8, 8, 8, 32, 8, 8] * 3
    assert tally.acs == sum(int(s.sum()) * n for s, n in zip(spikes, fan_outs, strict=True)) > 0
    rates = [s.mean().item() for s in spikes]
    assert all(0.01 < rate < 0.9 for rate in rates), rates


def test_placements_share_their_parameters_and_refuse_what_they_cannot_do():
    model = small()
    fed = SpikeGPT(SpikeGPTConfig(vocabulary=13, embedding=8, depth=3, placement="spike_fed")).double()
    fed.load_state_dict(model.state_dict())
    tokens = tokens_for(model)
    assert not torch.equal(fed(tokens)[0], model(tokens)[0])
    with pytest.raises(ShapeError, match="use a state of this model and batch size"):
        fed(tokens, model.initial_state(2))
    with pytest.raises(
        ConfigError, match="spikegpt placement: expected 'reference' or 'spike_fed' or 'continuous', got 'spikefed'"
    ):
        SpikeGPT(SpikeGPTConfig(placement="spikefed"))
    with pytest.raises(ConfigError, match="ffn_pre"):
        SpikeGPT(SpikeGPTConfig(placement="spike_fed", ffn_pre=True))


def test_the_originals_fixture_through_the_event_simulator():
    trace = simulate(original(torch.float64).lower(), TOKENS)
    assert np.abs(trace.outputs["logits"] - FILE["f64.logits"]).max() < 1e-9


@pytest.mark.parametrize("options", [{}, {"placement": "spike_fed"}, {"ffn_pre": True}, {"binary_embedding": False}])
def test_every_layer_is_alive_at_the_start_on_real_text(options):
    text = read_texts(DataConfig())[0]
    first, other = (torch.from_numpy(text[at : at + 512].astype(np.int64)).view(8, 64) for at in (0, 50_000))
    for depth, width in ((4, 48), (1, 16)):
        torch.manual_seed(0)
        model = SpikeGPT(SpikeGPTConfig(embedding=width, depth=depth, **options))
        quiet = model.rates(model.run(first)[2])
        model.wake(first)
        for tokens in (first, other):
            rates = [r.mean().item() for r in model.rates(model.run(tokens)[2])]
            assert all(0.02 <= rate <= 0.40 for rate in rates), rates
        assert min(r.mean() for r in quiet) < 0.02
    original = SpikeGPT(SpikeGPTConfig(init="original", embedding=8, depth=1))
    before = original.to_reference()
    original.wake(first)
    assert all(torch.equal(a, before[n]) for n, a in original.to_reference().items())


@pytest.mark.parametrize(("placement", "layers"), [("reference", 4), ("spike_fed", 14)])
def test_it_trains(placement, layers, tmp_path):
    table = {
        "model": {"name": "spikegpt", "embedding": 16, "depth": 2, "placement": placement},
        "train": {"steps": 12, "batch": 4, "context": 16, "warmup": 2, "evaluate_every": 6, "checkpoint_every": 6},
        "data": {"order": "crops"},
    }
    run = loop.start(tmp_path / "run", RunConfig.from_table(table), quiet=True)
    assert all(0.02 < rate < 0.4 for rate in run.log()[0]["rates"])
    assert run.metrics()["valid"]["bits_per_byte"] < 9
    assert len(run.metrics()["valid"]["rates"]) == layers
