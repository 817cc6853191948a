"""Edges of a model as event files: units as pixels and back, values, steps, and what is lost."""

import json

import h5py
import numpy as np
import pytest
from test_event_files import WRITTEN, scattered, whole

from rheobase.backends import events
from rheobase.backends.events import convert, from_array, from_edge, open_events, to_edge
from rheobase.cli import run
from rheobase.spiking.errors import ConfigError, FormatError, LossyExportError
from rheobase.spiking.events import Events


def edge(values, seed=3, units=50, steps=40):
    rng = np.random.default_rng(seed)
    x = rng.choice([0, *values], (1, steps, units), p=[0.8, *[0.2 / len(values)] * len(values)])
    return Events.from_dense(x.astype(np.float32))


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("values, dt_s", [((1,), None), ((-1, 1), 0.0123), ((-0.5, 2), None)])
def test_an_edge_comes_back_from_every_format(suffix, values, dt_s, tmp_path):
    sent = edge(values)
    table = events.write_events(tmp_path / f"a{suffix}", from_edge(sent, dt_s=dt_s))
    said = table["mapping"]
    assert (said["units"], said["steps"], table["sensor"]) == (50, 40, [8, 7])
    assert said["step_us"] == (12300 if dt_s else 1000)
    assert table["lost"] == ([] if 1 in values else ["values: only their sign is kept, of -0.5 to 2"])
    with open_events(tmp_path / f"a{suffix}") as recording:
        back = to_edge(recording)
    assert (back.n_steps, back.n_units, back.dt_s) == (40, 50, dt_s)
    assert np.array_equal(back.to_dense(), np.sign(sent.to_dense()))
    read = whole(tmp_path / f"a{suffix}")
    assert np.array_equal(read["x"] + 8 * read["y"].astype(int), sent.unit)
    assert np.array_equal(read["t"], sent.step * said["step_us"])


@pytest.mark.parametrize("values, kind", [((1,), "BINARY"), ((-1, 1), "TERNARY"), ((-0.5, 2, 0.1), "GRADED")])
def test_an_edge_keeps_its_values_in_nirdata(values, kind, tmp_path):
    """By nir's own reader, and by ours; any length of a step, below a microsecond too."""
    nir = pytest.importorskip("nir")
    sent, path, dt_s = edge(values), tmp_path / "a.nirdata", 1e-7 / 3
    table = events.write_edge(path, "layers.0.y", sent, kind, dt_s=dt_s)
    assert table["lost"] == [] and table["events"] == len(sent)
    theirs = nir.read_data(path).nodes["layers.0.y"].observables["spikes"]
    assert isinstance(theirs, nir.EventData if kind == "BINARY" else nir.ValuedEventData)
    assert np.array_equal(theirs.idx[0], sent.unit) and np.array_equal(theirs.time[0] // dt_s, sent.step)
    assert kind == "BINARY" or np.array_equal(theirs.value[0], sent.value)
    back = events.read_edge(path)
    assert back.dt_s == dt_s and back.value.dtype == sent.value.dtype
    assert np.array_equal(back.to_dense(), sent.to_dense())
    with pytest.raises(ConfigError, match="none with .nirdata"):
        events.write_edge(path, "y", sent, kind, sensor=(8, 7))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="the bytes that its sidecar names"):
        events.read_edge(path)


@pytest.mark.parametrize("dt_s", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".nirdata", ".aedat4"])
def test_a_step_that_takes_no_time_is_refused(suffix, dt_s, tmp_path):
    with pytest.raises((ConfigError, LossyExportError), match="step|dt"):
        events.write_edge(tmp_path / f"a{suffix}", "y", edge((1,)), "BINARY", dt_s=dt_s)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".h5", ".nirdata"])
def test_a_file_without_recordings(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    with h5py.File(path, "w") as file:
        if suffix == ".h5":
            for name in ("times", "units"):
                file.create_dataset(f"spikes/{name}", (0,), h5py.vlen_dtype("f8" if name == "times" else "i8"))
        else:
            one = file.create_group("nodes/n/observables/s")
            file["nodes/n"].attrs["__type__"] = "NIRNodeData"
            one.attrs.update({"__type__": "EventData", "n_neurons": 3})
            one.create_dataset("idx", (0, 0), "i8")
            one.create_dataset("time", (0, 0), "f8")
    with pytest.raises(FormatError, match="expected a recording, got 0"):
        whole(path)


def test_nirdata_that_is_replaced_while_open_is_still_what_was_checked(tmp_path):
    paths = [tmp_path / f"{name}.nirdata" for name in "ab"]
    for seed, path in enumerate(paths):
        events.write_edge(path, "y", edge((1,), seed=seed), "BINARY", dt_s=1e-3)
    checked, second = map(whole, paths)
    with open_events(paths[0]) as recording:
        paths[1].replace(paths[0])
        np.testing.assert_array_equal(np.concatenate(list(recording.chunks)), checked)
    assert not np.array_equal(checked, second)


def test_an_edge_of_a_cameras_format_is_read_by_one_name(tmp_path):
    sent = edge((-1, 1))
    events.write_edge(tmp_path / "a.aedat4", "layers.0.y", sent, "TERNARY")
    assert np.array_equal(events.read_edge(tmp_path / "a.aedat4").to_dense(), sent.to_dense())
    beside = tmp_path / "a.aedat4.json"
    said = json.loads(beside.read_text())
    for wrong in ({"width": 1 << 70}, {"width": 0}, {"units": 1 << 70}, {"steps": 1 << 70}, {"step_us": 0.5}):
        beside.write_text(json.dumps(said | {"mapping": said["mapping"] | wrong}))
        with pytest.raises(FormatError, match="a mapping of units"):
            events.read_edge(tmp_path / "a.aedat4")
    events.write_edge(tmp_path / "a.nirdata", "layers.0.y", sent, "TERNARY", dt_s=1e-3)
    convert(tmp_path / "a.nirdata", tmp_path / "b.raw")
    read = whole(tmp_path / "b.raw")
    assert np.array_equal(read["t"], sent.step * 1000)
    assert np.array_equal(read["x"] + 8 * read["y"].astype(int), sent.unit)
    sidecar = tmp_path / "a.nirdata.json"
    said = json.loads(sidecar.read_text())
    for wrong in ({"dt_s": 0}, {"dt_s": 1e-12}, {"steps": 1e400}, {"value": "O"}, {"units": -1}, {"dt_s": "x"}):
        sidecar.write_text(json.dumps(said | {"mapping": said["mapping"] | wrong}))
        with pytest.raises(FormatError):
            events.read_edge(tmp_path / "a.nirdata")
    for wrong in ({"dt_s": 0}, {"dt_s": 1e-4}, {"steps": 1e400}, {"steps": 9}, {"units": 49}, {"dt_s": "x"}):
        sidecar.write_text(json.dumps(said | {"mapping": said["mapping"] | wrong}))
        with pytest.raises(FormatError, match="as its sidecar says|times within"):
            convert(tmp_path / "a.nirdata", tmp_path / "c.raw")
    assert not (tmp_path / "c.raw").exists()
    sidecar.unlink()
    with pytest.raises(FormatError, match="an edge as its sidecar says"):
        events.read_edge(tmp_path / "a.nirdata")


EDGES = (
    *(((1,), "BINARY", dt_s) for dt_s in (1e-6, 1.7e-6, 1e-3, 0.0123)),
    *(((-1, 1), "TERNARY", dt_s) for dt_s in (None, 1e-3 / 3)),
    ((-0.5, 2, 0.1), "GRADED", 2e-5),
)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("values, kind, dt_s", EDGES)
def test_an_edge_in_nirdata_is_one_in_every_cameras_format(suffix, values, kind, dt_s, tmp_path):
    pytest.importorskip("nir")
    sent, path, out = edge(values), tmp_path / "a.nirdata", tmp_path / f"b{suffix}"
    events.write_edge(path, "layers.0.y", sent, kind, dt_s=dt_s)
    told = events.write_edge(tmp_path / f"c{suffix}", "layers.0.y", sent, kind, dt_s=dt_s)
    told["mapping"]["dt_s"] = dt_s or 1e-3  # which .nirdata says in any case
    table = convert(path, out)
    assert (table["mapping"], table["edge"], table["kind"]) == (told["mapping"], told["edge"], told["kind"])
    assert np.array_equal(whole(out), whole(tmp_path / f"c{suffix}"))
    back, source = events.read_edge(out), events.read_edge(path)
    assert (back.dt_s, back.n_steps, back.n_units) == (source.dt_s, 40, 50)
    assert np.array_equal(back.step, source.step) and np.array_equal(back.unit, source.unit)
    assert np.array_equal(back.value, np.sign(source.value))
    lost = ["values: only their sign is kept"] * (kind == "GRADED")
    assert [line for line in table["lost"] if not line.startswith("times")] == lost
    again = convert(out, tmp_path / "d.aedat4")
    assert again["mapping"] == table["mapping"] and again["lost"] == table["lost"]
    assert np.array_equal(whole(tmp_path / "d.aedat4"), whole(out))


def test_an_edge_in_nirdata_takes_a_sensor_and_refuses_steps_within_a_microsecond(tmp_path):
    pytest.importorskip("nir")
    sent, path = edge((1,), units=300), tmp_path / "a.nirdata"
    events.write_edge(path, "y", sent, "BINARY", dt_s=1e-3)
    assert convert(path, tmp_path / "b.raw", sensor=(30, 10))["mapping"]["width"] == 30
    assert np.array_equal(events.read_edge(tmp_path / "b.raw").to_dense(), sent.to_dense())
    with pytest.raises(ConfigError, match="room for 300 units, got 17x17"):
        convert(path, tmp_path / "c.raw", sensor=(17, 17))
    events.write_edge(path, "y", sent, "BINARY", dt_s=1e-7)
    with pytest.raises(LossyExportError, match="steps of 1 us to an hour, got 0.1 us; keep it as .nirdata"):
        convert(path, tmp_path / "c.raw")


def test_steps_that_are_no_microseconds_are_rounded_and_come_back(tmp_path):
    sent = edge((1,))
    table = events.write_events(tmp_path / "a.raw", from_edge(sent, dt_s=1e-3 / 3))
    assert table["lost"] == ["times rounded to 1 us; the step of each is kept"]
    with open_events(tmp_path / "a.raw") as recording:
        assert np.array_equal(to_edge(recording).step, sent.step)
    with pytest.raises(LossyExportError, match="steps of 1 us to an hour, got 0.1 us"):
        from_edge(sent, dt_s=1e-7)
    with pytest.raises(ConfigError, match="room for 50 units, got 7x7"):
        from_edge(sent, (7, 7))
    with pytest.raises(ConfigError, match="1x1 to 65536x65536 pixels, got 65537x1"):
        from_edge(sent, (65537, 1))
    with pytest.raises(ConfigError, match="one stream, got 2"):
        from_edge(Events.from_dense(np.ones((2, 1, 1))))
    with pytest.raises(FormatError, match="a model's edge, got a camera's recording"):
        to_edge(from_array(scattered(10)))


def test_a_models_spikes_are_recorded_and_converted(small_run, tmp_path, capsys):
    def ask(*argv, status=0):
        assert run([str(a) for a in argv]) == status
        return capsys.readouterr()

    out, trace = tmp_path / "y.aedat4", tmp_path / "y.h5"
    simulate = ("simulate", small_run.folder, "--tokens", 40, "--record")
    said = ask(*simulate, "layers.0.y", "--out", out, "--sensor", "16x4").out
    assert f"{out}: " in said and "events of 16x4 pixels" in said and "lost: values: only their sign is kept" in said
    ask(*simulate, "layers.0.y", "--out", trace)
    with h5py.File(trace) as h5:
        dense = h5["signals/layers.0.y"][()]
    with open_events(out) as recording:
        assert recording.about["edge"] == "layers.0.y" and recording.about["mapping"]["units"] == 64
        assert np.array_equal(to_edge(recording).to_dense(), np.sign(dense))
    table = json.loads(ask("convert", out, tmp_path / "y.raw", "--json").out)
    assert table["sidecar"]["mapping"]["width"] == 16 and table["sidecar"]["lost"] == recording.lost
    assert np.array_equal(whole(tmp_path / "y.raw"), whole(out))
    said = ask(*simulate, "layers.1.y", "--on", "integer", "--out", tmp_path / "z.es", "--dt", 0.002).out
    assert "events of 7x7 pixels" in said and whole(tmp_path / "z.es")["t"].max() <= 39 * 2000
    for argv, line in (
        ((*simulate, "layers.*.y", "--out", out), "one output for an event file, got layers.0.y, layers.1.y; name one"),
        ((*simulate, "layers.0.c", "--out", out), "record: expected a node's output, got 'layers.0.c'"),
        ((*simulate, "layers.0.y", "--out", tmp_path / "y.npy"), "read only"),
        ((*simulate, "layers.0.y", "--out", trace, "--sensor", "8x8"), "expected an event file as --out"),
        (("convert", tmp_path / "none.raw", out), "expected an event file, got No such file"),
    ):
        assert line in ask(*argv, status=1).err
    with pytest.raises(SystemExit, match="2"):
        run(["convert", "a.raw", "b.raw", "--sensor", "640"])
