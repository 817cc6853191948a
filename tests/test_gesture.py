"""The classifier of event-camera recordings: what it computes, streams, lowers to, costs, saves and refuses."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

import rheobase
from rheobase.backends import count, export, simulate
from rheobase.models import Gesture, GestureConfig
from rheobase.models.training.run import RunConfig
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError, UnsupportedError
from rheobase.spiking.tally import BINARY, DENSE, TERNARY

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "dvs-gesture-10"

SMALL = {
    "channels": 2,
    "size": (20, 18),
    "convolutions": ((6, 5, 2, 2), (8, 3, 1, 1)),
    "pooled": 1,
    "features": 12,
    "units": 14,
    "classes": 4,
    "thr_mean": 0.1,
    "theta": 0.1,
}
FORMS = {
    "relu": {},
    "relu, dense frames": {"frames": DENSE},
    "lif": {"neurons": "lif", "frames": BINARY},
    "lif, ternary frames": {"neurons": "lif", "frames": TERNARY, "zoneout": 0.0},
}


def small(form="relu", **options):
    torch.manual_seed(1)
    return Gesture(GestureConfig(**{**SMALL, **FORMS[form], **options})).double().eval()


def frames_for(model, streams=2, steps=12, seed=0):
    """Frames a tenth of whose pixels hold something, of the model's kind."""
    generator = torch.Generator().manual_seed(seed)
    shape = (streams, steps, *model.config.image)
    events = (torch.rand(shape, generator=generator) > 0.9).double()
    if model.config.frames == BINARY:
        return events
    values = events * torch.randn(shape, generator=generator).double()
    return values.sign() if model.config.frames == TERNARY else values.abs()


@pytest.fixture(params=FORMS)
def model(request):
    return small(request.param)


def names_of(model):
    return [f"neurons.{i}.{'s' if model.spikes else 'out'}" for i in range(len(model.neurons))]


@torch.no_grad()
@pytest.mark.parametrize("on", ["event", "torch"])
def test_events_and_logits_of_the_graph_are_the_models(model, on):
    frames = frames_for(model, steps=40)
    logits, state, (sent, trajectory) = model.run(frames)
    trace = simulate(model.lower(), frames.numpy(), on=on)
    assert logits.shape == (2, 40, 4) and np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-9
    for name, values in zip([*names_of(model), "egru.y"], [*sent, trajectory.y], strict=True):
        events = trace.events[name].to_dense()
        assert 0 < (events != 0).mean() < 1 and np.array_equal(events != 0, values.numpy() != 0)
        assert np.abs(events - values.numpy()).max() < 1e-9
    assert np.abs(trace.state["egru.c"] - state[-1].c.numpy()).max() < 1e-9
    for i, layer in enumerate(state[:-1]):
        assert np.abs(trace.state[f"neurons.{i}.v"] - layer.v.numpy()).max() < 1e-9


def test_both_counters_agree_in_all_but_bytes(model):
    frames = frames_for(model)
    tallies = [simulate(model.lower(), frames.numpy(), on=on).tally for on in ("event", "torch")]
    assert tallies[0] == tallies[1]
    for precise in (model, model.float()):
        frames = frames.to(precise.readout.weight.dtype)
        by_dispatch = count(precise, frames, strict=True).without_bytes()
        assert by_dispatch == simulate(precise.lower(), frames.numpy()).tally.without_bytes()
        assert by_dispatch == count(precise, frames, kernels="reference").without_bytes()
        assert by_dispatch.tokens == 2 * 12


@torch.no_grad()
def test_spikes_make_every_product_but_the_readouts_an_accumulation():
    """Binary frames, LIF units behind each convolution: counted by hand from what the layers sent."""
    model = small("lif")
    frames = frames_for(model)
    _, _, (sent, trajectory) = model.run(frames)
    tally = count(model, frames)
    operators, n = tally.operators, 2 * 12
    pooled = torch.nn.functional.max_pool2d(sent[0].reshape(n, 6, 10, 9), 3, 2)
    for name, x, kernel, stride, padding, n_out in (
        ("convolutions.0", frames.flatten(0, 1), 5, 2, 2, 6),
        ("convolutions.1", pooled, 3, 1, 1, 8),
    ):
        windows = torch.nn.functional.unfold(x, kernel, padding=padding, stride=stride)
        assert operators[name].acs == n_out * int((windows != 0).sum()) > 0
        assert operators[name].deliveries == int((x != 0).sum())
    assert operators["features"].acs == 12 * int(sent[1].sum())
    assert operators["egru.kernel"].acs == 3 * 14 * int(sent[2].sum()) > 0
    late = int((trajectory.y[:, :-1] != 0).sum())
    assert operators["egru.recurrent_kernel"].macs == 3 * 14 * late > 0
    assert operators["readout"].macs == n * 14 * 4
    assert tally.macs == operators["egru.recurrent_kernel"].macs + operators["readout"].macs
    assert [operators[f"neurons.{i}"].events for i in range(3)] == [int(s.sum()) for s in sent]


def test_no_event_reaches_a_layer_of_spiking_neurons_in_silence():
    model = small("lif")
    frames = torch.zeros(1, 5, 2, 20, 18).double()
    for tally in (count(model, frames), simulate(model.lower(), frames.numpy()).tally):
        assert tally.acs == 0 and all(tally.operators[f"neurons.{i}"].event_updates == 0 for i in range(3))
    frames[0, 3, 0, 4, 4] = 1
    for tally in (count(model, frames), simulate(model.lower(), frames.numpy()).tally):
        first = tally.operators["neurons.0"]
        assert (first.state_updates, first.event_updates) == (5 * 6 * 10 * 9, 6 * 10 * 9)


@torch.no_grad()
def test_cuts_steps_and_batches_change_nothing(model):
    frames = frames_for(model)
    whole, end = model(frames)
    tally = count(model, frames)
    for cut in (0, 1, 5, 12):
        first, state = model(frames[:, :cut])
        second, last = model(frames[:, cut:], state)
        assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12, rtol=0)
        for a, b in zip(last, end, strict=True):
            assert all(torch.allclose(x, y, atol=1e-12, rtol=0) for x, y in zip(a, b, strict=True))
        assert count(model, frames[:, :cut]) + count(model, frames[:, cut:], state) == tally
    state, rows = None, []
    for t in range(12):
        row, state = model(frames[:, t : t + 1], state)
        rows.append(row)
    assert torch.allclose(torch.cat(rows, 1), whole, atol=1e-12, rtol=0)
    assert torch.allclose(torch.cat([model(row[None])[0] for row in frames]), whole, atol=1e-12, rtol=0)
    graph = model.lower()
    parts = simulate(graph, frames[:, :5].numpy())
    rest = simulate(graph, frames[:, 5:].numpy(), parts.state)
    assert np.abs(rest.outputs["logits"] - whole[:, 5:].numpy()).max() < 1e-9
    assert (parts.tally + rest.tally).without_bytes() == tally.without_bytes()


def test_training_reaches_every_parameter_and_drops_in_training_only(model):
    frames = frames_for(model)
    assert torch.equal(model(frames)[0], model(frames)[0])
    model.train()
    assert not torch.equal(model(frames)[0], model(frames)[0])
    model(frames)[0].mean(1).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        model.egru.thr += 2
    model.project_()
    assert model.egru.thr.max() == 1


def test_the_published_sizes():
    """Five convolutions, 128 x 128 down to one place of 256 channels, and an EGRU of 3.12 million parameters."""
    config = GestureConfig()
    model = Gesture(config)
    assert [s.after for s in config.stages()] == [(64, 31, 31), (192, 15, 15), (384, 7, 7), (256, 3, 3), (256, 1, 1)]
    assert sum(p.numel() for p in model.egru.parameters()) == 3 * 795 * (512 + 795) + 7 * 795 == 3_122_760
    convolutions = 64 * 122 + 192 * (64 * 25 + 1) + 384 * (192 * 9 + 1) + 256 * (384 * 9 + 1) + 256 * (256 * 9 + 1)
    assert model.n_parameters == convolutions + 512 * 257 + 3_122_760 + 11 * 796
    assert Gesture.least_numbers(config) <= model.n_parameters


def test_saving_and_loading(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again = rheobase.load(tmp_path / "m")
    frames = frames_for(model)
    assert type(again) is Gesture and again.config == model.config and torch.equal(again(frames)[0], model(frames)[0])
    header = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(header.replace('"units": 14', '"units": 900000'))
    with pytest.raises(FormatError, match="expected sizes that fit"):
        rheobase.load(tmp_path / "m")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": "SPIKES"}, "gesture frames: expected one of BINARY, TERNARY, GRADED, DENSE, got 'SPIKES'"),
        ({"neurons": "if"}, "gesture neurons: expected 'relu' or 'lif', got 'if'"),
        ({"convolutions": ()}, "gesture convolutions: expected .channels, kernel, stride, padding. of one or more"),
        ({"convolutions": ((6, 5, 0, 2),)}, "gesture convolutions: expected"),
        ({"convolutions": ((6, 5, 2),)}, "gesture convolutions: expected"),
        ({"size": (3, 3)}, "an image as large as its kernel, got .2, 3, 3. before convolution 0"),
        ({"pool": (3, 0)}, "gesture pool: expected a kernel and a stride, at least 1"),
        ({"units": 0}, "gesture units: expected at least 1"),
        ({"classes": 1}, "gesture classes: expected at least 2"),
        ({"dropout": 1.0}, "gesture dropout: expected at least 0 and below 1"),
        ({"tau": 0.5, "neurons": "lif"}, "LIF tau: expected at least 1 step"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_frames_and_states_that_do_not_fit():
    model = small("lif")
    frames = frames_for(model)
    for wrong in (frames[0], frames[:, :, :1], frames.long()):
        with pytest.raises(ShapeError, match=r"gesture frames: expected numbers \[B, T, 2, 20, 18\].* or call .float"):
            model(wrong)
    with pytest.raises(ShapeError, match="gesture frames: expected BINARY pixels"):
        model(0.5 * frames)
    _, state = model(frames)
    for other in (state[1:], model(frames[:1])[1], small()(frames)[1]):
        with pytest.raises(ShapeError, match="gesture state: expected .* use a state of this model and batch size"):
            model(frames, other)


@pytest.mark.parametrize("calibration", [None, np.zeros((1, 3, 2, 20, 18))])
def test_spinnaker2_refuses_convolutions_in_one_line(model, tmp_path, calibration):
    cells = "Relu, MaxPool2d" if model.config.neurons == "relu" else "MaxPool2d"
    wanted = f"frames: expected an EGRU language model without a projection, or a SpikeGPT, got Frames, Conv2d, {cells}"
    with pytest.raises(UnsupportedError) as refused:
        export(model, "spinnaker2", tmp_path / "image", calibration=calibration)
    assert str(refused.value) == f"{wanted}; export one of these" and not list(tmp_path.iterdir())


def test_a_training_configuration_asks_for_a_language_model():
    with pytest.raises(ConfigError, match="expected a language model, got 'gesture'"):
        RunConfig.from_table({"model": {"name": "gesture"}})


def recording(name: str, frame_ms: int = 25) -> np.ndarray:
    """Numbers of events of a `.bs2` recording, frame by frame and polarity by polarity: [T, 2, 128, 128].

    Five bytes an event, big-endian: x, y, one bit of polarity, 23 bits of time in microseconds.
    """
    path = DATA / f"{name}.t0-950ms.bs2.xz"
    if not path.exists():
        pytest.skip("needs the recordings in shared/data/dvs-gesture-10 beside the checkout")
    x, y, *rest = np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8).reshape(-1, 5).T.astype(np.int64)
    word = (rest[0] << 16) + (rest[1] << 8) + rest[2]
    frame, polarity = (word & (1 << 23) - 1) // (1000 * frame_ms), word >> 23
    frames = np.zeros((frame.max() + 1, 2, 128, 128))
    np.add.at(frames, (frame, polarity, y, x), 1)
    return frames


def test_the_published_model_on_a_real_recording():
    """Six frames of a hand's wave: a pixel in 16 holds events, and their products alone are counted and done."""
    events = recording("5")
    assert events.shape == (38, 2, 128, 128) and events.sum() == 116_157
    frames = events.mean(1)[None, 10:16, None] / 19
    torch.manual_seed(0)
    model = Gesture(GestureConfig(thr_mean=0.01)).double().eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.egru.bias, std=0.5)
        logits, _ = model(torch.from_numpy(frames))
    trace, tally = simulate(model.lower(), frames), count(model, torch.from_numpy(frames), strict=True)
    assert np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-9
    assert tally.without_bytes() == trace.tally.without_bytes()
    taps = sum(min(i, 127) - max(i - 10, 0) + 1 for i in range(8, 8 + 4 * 31, 4))
    padded = np.pad(frames[0, :, 0], ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), (1, 2))
    first = tally.operators["convolutions.0"]
    assert (first.dense_macs, first.macs) == (6 * 64 * taps**2, 64 * np.count_nonzero(windows[:, ::4, ::4]))
    assert first.deliveries == np.count_nonzero(frames) and first.macs < 0.2 * first.dense_macs
    assert trace.events["egru.y"].rate > 0


def test_the_spiking_form_on_a_real_recording():
    """Whether a pixel had events of each polarity: nothing but accumulations before the EGRU's own events."""
    frames = np.minimum(recording("5"), 1)[None, 10:16]
    torch.manual_seed(0)
    model = Gesture(GestureConfig(channels=2, neurons="lif", frames=BINARY, theta=0.05, thr_mean=0.01)).eval()
    tally = count(model, torch.from_numpy(frames).float(), strict=True)
    assert tally.without_bytes() == simulate(model.lower(), frames).tally.without_bytes()
    spiking = [f"convolutions.{i}" for i in range(5)] + ["features", "egru.kernel"]
    assert all(tally.operators[name].macs == 0 < tally.operators[name].acs for name in spiking)
    assert tally.operators["convolutions.0"].deliveries == frames.sum()
