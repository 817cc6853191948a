"""Classifiers of recordings as `rheobase train` makes them: the task, the commands, EGRU layers alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_recordings import own_cache, random_events, small_set  # noqa: F401

import rheobase
from rheobase.backends import count, export, simulate, verify
from rheobase.backends.events import open_events, to_edge
from rheobase.cli import run as command
from rheobase.models import EGRUFrames, EGRUFramesConfig, Gesture, GestureConfig
from rheobase.models.training import loop
from rheobase.models.training.event_sets import SETS, EventsConfig
from rheobase.models.training.event_task import as_pixels, judge_frames, shifted
from rheobase.models.training.run import Run, RunConfig, config_path
from rheobase.spiking.config import read_toml, to_toml
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError, UnsupportedError
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY

GESTURES = Path(__file__).parent.parent.parent / "shared" / "data" / "dvs-gesture-10"
SMALL = {"name": "egru_frames", "size": [6, 5], "layers": [12], "classes": 2, "thr_mean": 0.05}
SPIKING = {
    "name": "gesture",
    "channels": 2,
    "size": [6, 5],
    "frames": BINARY,
    "convolutions": [[4, 3, 1, 1]],
    "pooled": 1,
    "pool": [2, 2],
    "neurons": "lif",
    "features": 8,
    "units": 12,
    "classes": 2,
    "thr_mean": 0.05,
    "dropout": 0.1,
    "rate_weight": 1.0,
}
TRAIN = {"steps": 40, "batch": 4, "warmup": 2, "evaluate_every": 20, "checkpoint_every": 10, "threads": 1}


def table(folder, model=SMALL, **events):
    source = {"set": str(folder / "s.tar.xz"), "labels": "labels.txt", "size": [6, 5], "steps": 4, "shift": 1}
    return {"model": dict(model), "events": source | events, "train": dict(TRAIN)}


@pytest.fixture
def folder(tmp_path):
    small_set(tmp_path / "s.tar.xz")
    return tmp_path


def frames_model(kind=GRADED, **options):
    torch.manual_seed(0)
    settings = {"size": (4, 3), "layers": (9, 7), "classes": 3, "thr_mean": 0.1, "frames": kind} | options
    if kind == TERNARY:
        settings["channels"] = 1
    return EGRUFrames(EGRUFramesConfig(**settings)).double().eval()


def frames_of(model, streams=2, steps=10):
    c, generator = model.config, torch.Generator().manual_seed(1)
    shape = (streams, steps, c.channels, *c.size)
    on = (torch.rand(shape, generator=generator) > 0.7).double()
    values = on * torch.randn(shape, generator=generator).double()
    return {BINARY: on, TERNARY: values.sign(), GRADED: values.abs(), DENSE: values}[c.frames]


@torch.no_grad()
@pytest.mark.parametrize("readout", ["trace", "y"])
@pytest.mark.parametrize("kind", [BINARY, TERNARY, GRADED, DENSE])
def test_egru_layers_alone_lower_count_and_carry_on(kind, readout):
    model = frames_model(kind, readout=readout)
    frames = frames_of(model)
    logits, end, runs = model.run(frames)
    trace = simulate(model.lower(), frames.numpy())
    assert logits.shape == (2, 10, 3) and np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-9
    assert all(0 < rate.mean() < 1 for rate in model.rates(runs))
    tally = count(model, frames, strict=True)
    assert tally.without_bytes() == trace.tally.without_bytes()
    first, on = tally.operators["layers.0.kernel"], int((frames != 0).sum())
    size = frames[0, 0].numel()
    products = {BINARY: (0, 27 * on), TERNARY: (0, 27 * on), GRADED: (27 * on, 0), DENSE: (27 * 20 * size, 0)}
    assert (first.macs, first.acs) == products[kind] and first.dense_macs == 27 * 20 * size
    half, state = model(frames[:, :6])
    rest, last = model(frames[:, 6:], state)
    assert torch.allclose(torch.cat([half, rest], 1), logits, atol=1e-12, rtol=0)
    assert all(torch.allclose(a, b) for x, y in zip(last, end, strict=True) for a, b in zip(x, y, strict=True))


def test_egru_layers_alone_save_learn_and_refuse(tmp_path):
    model = frames_model(dropout=0.2, rate_weight=1.0)
    model.save_pretrained(tmp_path)
    again, frames = rheobase.load(tmp_path), frames_of(model)
    assert type(again) is EGRUFrames and torch.equal(again(frames)[0], model(frames)[0])
    assert EGRUFrames.least_numbers(model.config) <= model.n_parameters
    logits, _, runs = model.train().run(frames)
    o = [run.o.mean().item() for run in runs]
    assert model.penalty(runs).item() == pytest.approx(sum((rate - 0.05) ** 2 for rate in o))
    (logits.mean(1).square().sum() + model.penalty(runs)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with pytest.raises(ShapeError, match=r"egru_frames frames: expected numbers \[B, T, 2, 4, 3\]"):
        model(frames[0])
    with pytest.raises(ShapeError, match="egru_frames state: expected"):
        model(frames, model(frames[:1])[1])
    for options, message in (({"layers": ()}, "at least one size"), ({"readout": "c"}, "'trace' or 'y'")):
        with pytest.raises(ConfigError, match=message):
            EGRUFramesConfig(**options)


def test_what_a_model_reads_of_the_counts():
    counts = np.zeros((1, 1, 2, 1, 3), np.uint16)
    counts[0, 0] = [[[0, 3, 1]], [[2, 1, 1]]]
    events = EventsConfig(scale=2.0)

    def pixels(**settings):
        return as_pixels(counts, EGRUFramesConfig(size=(1, 3), **settings), events).flatten().tolist()

    assert pixels() == [0, 1.5, 0.5, 1, 0.5, 0.5] and pixels(channels=1) == [1, 2, 1]
    assert pixels(frames=BINARY) == [0, 1, 1, 1, 1, 1] and pixels(frames=BINARY, channels=1) == [1, 1, 1]
    assert pixels(frames=TERNARY, channels=1) == [1, -1, 0]


def test_shifts_move_whole_recordings_and_lose_what_leaves():
    counts = np.zeros((200, 3, 2, 5, 4), np.uint16)
    counts[:, :, :, 2, 1] = 7
    moved = shifted(counts, 2, np.random.default_rng(0))
    where = [{tuple(at) for at in np.argwhere(each)[:, 2:]} for each in moved]
    assert all(len(places) <= 1 for places in where) and all((each == each[0]).all() for each in moved)
    seen = set.union(*where)
    assert seen == {(y, x) for y in range(5) for x in range(4)} and any(not places for places in where)
    assert shifted(counts, 0, np.random.default_rng(0)) is counts


def test_waking_brings_every_layer_of_spiking_neurons_to_fire():
    torch.manual_seed(0)
    model = Gesture(GestureConfig(**{k: v for k, v in SPIKING.items() if k != "name"} | {"size": (20, 20)}))
    frames = (torch.rand(8, 6, 2, 20, 20) > 0.95).float()
    with torch.no_grad():
        for layer in (*model.convolutions, model.features):
            layer.weight *= 1e-3
        assert not any(rate.any() for rate in model.rates(model.run(frames)[2])[:2])
        model.wake(frames)
        rates = [rate.mean().item() for rate in model.rates(model.run(frames)[2])]
    assert all(0.01 < rate < 0.4 for rate in rates[:2]) and model.training
    with pytest.raises(ConfigError, match="neurons.0: expected events before it on the first batch, got none"):
        model.wake(torch.zeros_like(frames))


@pytest.mark.parametrize("model", [SMALL, SPIKING], ids=["egru", "lif and egru"])
def test_a_run_from_training_to_every_command(folder, model, capsys):
    out = str(folder / "run")
    config = folder / "c.toml"
    config.write_text(to_toml(table(folder, model)))

    def answer(*arguments, code=0):
        assert command([*arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    made = answer("train", str(config), "--out", out)
    assert made["valid"]["recordings"] == 2 and "test" not in made
    assert not (folder / "run" / "tokenizer.json").exists()
    tested = answer("eval", out)
    run = Run.open(out)
    test = run.corpus().test
    logits = run.model()(as_pixels(test.frames, run.config.settings, run.config.events))[0].mean(1)
    right = (logits.argmax(1).numpy() == test.labels).mean()
    assert tested["recordings"] == 4 and tested["accuracy"] == right >= 0.5
    counted = answer("count", out, "--tokens", "9", "--strict")
    assert counted["tally"]["tokens"] == 8
    simulated = answer("simulate", out, "--tokens", "9", "--on", "event")
    assert simulated["tokens"] == 8 and simulated["tally"]["total"]["macs"] == counted["tally"]["total"]["macs"]
    assert command(["eval", out]) == 0
    assert f"{100 * right:.1f} % of 4 recordings right\n" in capsys.readouterr().out
    for arguments in (["sample", out], ["report", out]):
        assert command(arguments) == 1
        assert "expected a language model's run, got a classifier's" in capsys.readouterr().err


def test_a_run_that_was_cut_off_ends_with_the_same_bits(folder):
    config = RunConfig.from_table(table(folder, SPIKING))
    whole = loop.start(folder / "whole", config, quiet=True)
    cut = loop.start(folder / "cut", RunConfig.from_table({**table(folder, SPIKING), "train": {**TRAIN, "steps": 40}}))
    for path in cut.checkpoints.iterdir():
        if "40" in path.name or "30" in path.name:
            path.unlink()
    again = loop.resume(folder / "cut", quiet=True)
    ours, theirs = whole.model().state_dict(), again.model().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_a_run_on_recordings_refuses(folder):
    for change, message in (
        ({"model": {**SMALL, "size": [5, 6]}}, r"model.size: expected \[6, 5\], the frames', got \[5, 6\]"),
        ({"model": {**SMALL, "channels": 3}}, "model.channels: expected 1 or 2, got 3"),
        ({"data": {"tokenizer": "words"}}, "no .data."),
        ({"model": {"name": "egru_lm"}}, "expected a classifier of recordings, got 'egru_lm'"),
        ({"sentences": {"train": "sst2"}}, r"expected \[events\] or \[sentences\], got both"),
        ({"budget": {"weight": 1.0}}, "no .budget.|known key"),
    ):
        with pytest.raises(ConfigError, match=message):
            config = RunConfig.from_table({**table(folder), **change})
            loop.start(folder / "never", config, quiet=True)
        assert not (folder / "never").exists()
    run = loop.start(folder / "run", RunConfig.from_table(table(folder)), quiet=True)
    with pytest.raises(UnsupportedError, match="expected a run on text, got one on recordings"):
        run.tokenizer()
    small_set(folder / "s.tar.xz", 30)
    with pytest.raises(FormatError, match="the recordings of the training, got another"):
        run.corpus()


@pytest.mark.parametrize("model", [SMALL, SPIKING], ids=["egru_frames", "gesture"])
def test_float64_trains_judges_counts_and_simulates(folder, model, capsys):
    source = table(folder, model)
    source["train"] |= {"steps": 2, "precision": "float64"}
    run = loop.start(folder / "run", RunConfig.from_table(source), quiet=True)
    assert {p.dtype for p in run.model().parameters()} == {torch.float64}
    for words in ("eval", "count --tokens 8", "simulate --tokens 8", "simulate --on torch --tokens 8"):
        name, *rest = words.split()
        assert command([name, str(run.folder), *rest]) == 0, capsys.readouterr().err


def test_more_classes_than_the_model_has(folder):
    """Without their file of labels, recordings are what their names say."""
    source = table(folder, folds=1)
    del source["events"]["labels"]
    with pytest.raises(ConfigError, match="model.classes: expected the recordings' 20 or more, got 2"):
        loop.start(folder / "never", RunConfig.from_table(source), quiet=True)


@pytest.mark.parametrize("name", ["nmnist", "dvs128_gesture", "shd", "smnist"])
def test_the_built_in_configurations(name, monkeypatch):
    """What of them can be checked without their data: every key, and that the model reads the set's frames."""
    config = RunConfig.from_table(read_toml(config_path(name)), name)
    size = tuple(-(-n // config.events.pool) for n in SETS[config.events.set].size)
    assert config.sees and config.settings.size == size
    model = config.build()
    frames = torch.zeros(1, 2, config.settings.channels, *size)
    assert model(frames)[0].shape == (1, 2, config.settings.classes)


def need_gestures():
    if not GESTURES.is_dir():
        pytest.skip("needs the recordings in shared/data/dvs-gesture-10 beside the checkout")


@pytest.mark.parametrize(
    "form", [{}, pytest.param({"neurons": "lif", "channels": 2, "frames": BINARY}, marks=pytest.mark.slow)]
)
def test_ten_gestures_are_learnt_by_heart(tmp_path, form):
    need_gestures()
    given = read_toml(config_path("dvs128_gesture"))
    model = given["model"] | {
        "size": [64, 64],
        "convolutions": [[8, 5, 4, 2], [16, 3, 1, 1]],
        "pooled": 2,
        "features": 32,
        "units": 32,
        "classes": 10,
        "dropout": 0.0,
        "zoneout": 0.0,
        "dropconnect": 0.0,
        "thr_mean": 0.05,
        **form,
    }
    events = {"set": str(GESTURES), "steps": 19, "window_ms": 950.0, "pool": 2, "folds": 1, "scale": 38.0}
    train = TRAIN | {"steps": 200, "batch": 10, "learning_rate": 1e-2, "evaluate_every": 50, "checkpoint_every": 200}
    run = loop.start(tmp_path / "run", RunConfig.from_table({"model": model, "events": events, "train": train}))
    corpus = run.corpus()
    verdict = judge_frames(run.model(), corpus.test, run.config.events, 10)
    assert verdict.accuracy == 1.0 and verdict.recordings == 10
    frames = as_pixels(corpus.test.frames[:1], run.config.settings, run.config.events)
    assert count(run.model(), frames, strict=True).tokens == 19
    if form:
        pytest.importorskip("nir")
        export(run.model(), "nir", tmp_path / "nir")
        assert verify(tmp_path / "nir").ok


def test_ten_gestures_from_recordings_to_a_verified_image(tmp_path, capsys):
    """EGRU layers alone learn them by heart, and go to SpiNNaker 2 and back into an event file."""
    need_gestures()
    model = SMALL | {"size": [32, 32], "channels": 2, "frames": BINARY, "readout": "y", "layers": [48], "classes": 10}
    events = {"set": str(GESTURES), "steps": 19, "window_ms": 950.0, "pool": 4, "folds": 1}
    train = TRAIN | {"steps": 150, "batch": 10, "learning_rate": 1e-2, "evaluate_every": 50, "checkpoint_every": 150}
    loop.start(tmp_path / "run", RunConfig.from_table({"model": model, "events": events, "train": train}))
    run, image, spikes = (str(tmp_path / name) for name in ("run", "image", "spikes.aedat4"))

    def answer(*arguments):
        assert command([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert answer("eval", run)["accuracy"] == 1.0
    answer("export", run, "--to", "spinnaker2", "--out", image)
    assert answer("verify", image)["compared"] > 300_000
    integers = answer("simulate", run, "--on", "integer", "--tokens", "20")
    assert integers["tokens"] == 19 and 0 < integers["rates"]["layers.0.y"] < 1
    answer("simulate", run, "--tokens", "20", "--record", "layers.0.y", "--out", spikes)
    with open_events(spikes) as recording:
        assert to_edge(recording).n_steps == 19
