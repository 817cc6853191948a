"""Event files: what other libraries read of ours, what we read of theirs, and what is kept, recorded or refused."""

import json
import lzma
from pathlib import Path

import event_peers
import h5py
import numpy as np
import pytest

from rheobase.backends import events
from rheobase.backends.events import EVENT, Recording, convert, from_array, open_events
from rheobase.cli import run
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
WRITTEN = (".aedat4", ".raw", ".dat", ".es", ".bs2", ".h5")
SENSOR = (200, 180)

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own

# file: events, the first and the last as (t, x, y, p), all by each of these libraries, 28 November 2026
SAMPLES = {
    "tonic_sample.aedat4": (
        111_954,
        (1605537493718345, 154, 204, 0),
        (1605537494308262, 88, 237, 1),
        ("dv_processing", "aedat", "faery", "evlib"),
    ),
    "expelliarmus_evt3_sample.raw": (
        219_596,
        (11718656, 874, 200, 0),
        (11727457, 1218, 572, 1),
        ("evt3", "evlib"),
    ),
    "faery_dvs.es.xz": (473_225, (0, 0, 239, 1), (999000, 38, 46, 1), ("event_stream", "faery")),
    "tonic_sample_ncars.dat": (2009, (0, 25, 8, 0), (99952, 75, 28, 1), ("expelliarmus",)),
    "tonic_sample_nmnist.bin": (4325, (654, 7, 15, 1), (311175, 21, 14, 1), ("tonic_mnist",)),
}
READERS = {
    ".aedat4": ("dv_processing", "aedat", "faery", "evlib"),
    ".raw": ("expelliarmus", "faery", "evlib"),
    ".dat": ("expelliarmus", "faery"),
    ".es": ("event_stream", "faery"),
    ".bs2": ("tonic_mnist",),
    ".h5": ("tonic_shd",),
}


def sample(name, folder):
    path = DATA / name
    if not path.exists():
        pytest.skip("needs the recordings in shared/data beside the checkout")
    if path.suffix != ".xz":
        return path
    (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return folder / path.stem


def whole(path, **options):
    with open_events(path, **options) as recording:
        return np.concatenate([np.empty(0, EVENT), *recording.chunks])


def scattered(n=5000, t_end=8_000_000, sensor=SENSOR, seed=1):
    """Events at random places and times, with some of one time, the last at the sensor's last pixel."""
    rng = np.random.default_rng(seed)
    made = np.empty(n, EVENT)
    made["t"] = np.sort(rng.integers(0, t_end, n) // 3 * 3)
    made["x"], made["y"] = rng.integers(0, sensor[0], n), rng.integers(0, sensor[1], n)
    made["p"] = rng.integers(0, 2, n)
    made[-1:] = (t_end, sensor[0] - 1, sensor[1] - 1, True)
    return made


def equal(a, columns):
    return all(
        np.array_equal(a[k].astype(np.int64), np.asarray(c).astype(np.int64))
        for k, c in zip("txyp", columns, strict=True)
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_real_recording_is_read_as_its_own_libraries_read_it(name, tmp_path):
    n, first, last, libraries = SAMPLES[name]
    path = sample(f"event-formats/{name}", tmp_path)
    if path.suffix == ".aedat4":
        pytest.importorskip("lz4", reason="its packets are compressed")
    read = whole(path)
    assert (len(read), tuple(read[0].tolist()), tuple(read[-1].tolist())) == (n, first, last)
    for library in libraries:
        try:
            columns = getattr(event_peers, library)(path)
        except pytest.skip.Exception:
            continue
        assert equal(read, columns), library


@pytest.mark.parametrize(
    "name, sensor, header",
    [
        ("dvs-gesture-10/4.t0-950ms.bs2.xz", (128, 128), 0),
        ("event-formats/tonic_sample_nmnist.bin", (34, 34), 0),
        ("event-formats/faery_dvs.es.xz", None, 20),
        ("event-formats/tonic_sample_ncars.dat", None, -8 * 2009),
    ],
)
def test_a_real_recording_is_written_again_byte_for_byte(name, sensor, header, tmp_path):
    path = sample(name, tmp_path)
    convert(path, tmp_path / f"again{path.suffix}", sensor=sensor)
    assert (tmp_path / f"again{path.suffix}").read_bytes()[header:] == path.read_bytes()[header:]


@pytest.mark.parametrize("suffix, library", [(s, r) for s, readers in READERS.items() for r in readers])
@pytest.mark.parametrize("kind", ["random", "real"])
def test_other_libraries_read_what_is_written(suffix, library, kind, tmp_path):
    made, sensor = scattered(), SENSOR
    if kind == "real":
        made, sensor = whole(sample("event-formats/tonic_sample_ncars.dat", tmp_path)), (120, 100)
    path = tmp_path / f"made{suffix}"
    events.write_events(path, from_array(made, sensor))
    shape = sensor if library == "tonic_shd" else ()
    assert equal(made, getattr(event_peers, library)(path, *shape))


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_what_is_written_is_read_again(suffix, n, tmp_path, monkeypatch):
    made, path = scattered(n), tmp_path / f"made{suffix}"
    table = events.write_events(path, Recording([made[:7], made[7:7], made[7:]], SENSOR))
    assert table == json.loads((tmp_path / f"made{suffix}.json").read_text())
    assert table["events"] == n and table["lost"] == [] and table["shift_us"] == 0 and table["kind"] == "camera"
    for size in (1 << 18, 5, 3):  # the words of an event lie in different blocks
        monkeypatch.setattr("rheobase.backends.events.es._BLOCK", 11 * size)
        monkeypatch.setattr("rheobase.backends.events._record.CHUNK", size)
        with open_events(path) as recording:
            chunks = list(recording.chunks)
        assert recording.sensor == SENSOR and recording.lost == [] and max(map(len, chunks), default=0) <= size
        assert np.array_equal(np.concatenate([np.empty(0, EVENT), *chunks]), made)
    (tmp_path / f"made{suffix}.json").unlink()
    if suffix not in (".bs2", ".h5"):  # these do not hold the size
        with open_events(path) as recording:
            assert recording.sensor == SENSOR
    assert np.array_equal(whole(path, sensor=SENSOR), made)


def test_blocks_of_any_size_give_the_same_evt3(tmp_path, monkeypatch):
    path = sample("event-formats/expelliarmus_evt3_sample.raw", tmp_path)
    data = path.read_bytes()[:5_000]
    (tmp_path / "cut.raw").write_bytes(data)
    at_once = whole(tmp_path / "cut.raw")
    for size in (1, 2, 13, 501):
        monkeypatch.setattr("rheobase.backends.events._record.CHUNK", size)
        assert np.array_equal(whole(tmp_path / "cut.raw"), at_once), size


def evt3(*words):
    return b"% evt 3.0\n% end\n" + np.array(words, "<u2").tobytes()


def test_words_of_evt3_by_hand(tmp_path):
    """The time wraps, a vector steps its column, a new upper half begins at 0, and what cannot be said is counted."""
    (tmp_path / "a.raw").write_bytes(
        evt3(0x2001, 0x8FFF, 0x6007, 0x0003, 0x2809, 0x3864, 0x4003, 0x5081, 0x4800, 0xA000, 0x8000, 0x2001)
    )
    with open_events(tmp_path / "a.raw") as recording:
        read = np.concatenate(list(recording.chunks))
    t = 0xFFF007
    wanted = [(t, 9, 3, 1), *((t, x, 3, 1) for x in (100, 101, 112, 119, 131)), (1 << 24, 1, 3, 0)]
    assert [tuple(e) for e in read.tolist()] == wanted
    assert recording.lost == ["1 triggers left out", "1 events before the first time and row left out"]


def test_times_beyond_the_words_wrap_and_are_carried_on(tmp_path):
    dat = np.array([[4294967295, 0], [5, 0]], "<u4").tobytes()
    (tmp_path / "a.dat").write_bytes(b"% Version 2\n% end\n\x0c\x08" + dat)
    evt2 = np.array([0x8FFFFFFF, 0x1FC00000, 0x80000000, 0x10400000], "<u4").tobytes()
    (tmp_path / "a.raw").write_bytes(b"% evt 2.0\n% end\n" + evt2)
    assert whole(tmp_path / "a.dat")["t"].tolist() == [4294967295, 4294967301]
    assert whole(tmp_path / "a.raw")["t"].tolist() == [2**34 - 1, 2**34 + 1]


def test_nmnists_overflow_row_adds_to_the_time(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes([1, 2, 128, 0, 9, 0, 240, 0, 0, 0, 3, 4, 0, 0, 10]))
    assert whole(tmp_path / "a.bin").tolist() == [(9, 1, 2, True), (8202, 3, 4, False)]


@pytest.mark.parametrize("compression", [("lz4", 1), ("zstd", 3), None])
def test_compressed_packets_are_read(compression, tmp_path):
    faery = event_peers._library("faery")
    if compression:
        pytest.importorskip({"lz4": "lz4", "zstd": "zstandard"}[compression[0]])
    made = scattered()
    theirs = made.astype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), (("p", "on"), "?")])
    theirs["on"] = made["p"]
    from faery import file_encoder

    file_encoder.events_to_file([theirs], tmp_path / "a.aedat4", SENSOR, compression=compression)
    assert np.array_equal(whole(tmp_path / "a.aedat4"), made), faery


def test_the_data_sets_float16_is_read_and_recorded(tmp_path):
    seconds, units = np.array([0.0625, 0.5, 1.001], np.float16), np.array([3, 699, 0], np.uint16)
    with h5py.File(tmp_path / "shd.h5", "w") as h5:
        for name, rows in (("times", [seconds, seconds[:1]]), ("units", [units, units[:1]])):
            stored = h5.create_dataset(f"spikes/{name}", (2,), h5py.vlen_dtype(rows[0].dtype))
            stored[0], stored[1] = rows
    with pytest.raises(ConfigError, match="expected one recording, got 2 rows; choose one with --sample 0 to 1"):
        whole(tmp_path / "shd.h5")
    with open_events(tmp_path / "shd.h5", sample=0) as recording:
        read = np.concatenate(list(recording.chunks))
    assert read.tolist() == [(62500, 3, 0, True), (500000, 699, 0, True), (1000977, 0, 0, True)]
    assert recording.lost == ["times rounded to 1 us", "times as exact as float16 seconds are"]
    assert len(whole(tmp_path / "shd.h5", sample=1)) == 1


def test_nirdata_is_read_as_nir_writes_it(tmp_path):
    nir = pytest.importorskip("nir")
    idx = np.array([[2, 0, 5, -1], [1, -1, -1, -1]])
    time = np.array([[0.001, 0.001, 0.25, np.inf], [0.5, np.inf, np.inf, np.inf]])
    observables = {
        "spikes": nir.EventData(idx, time, 6, 1.0),
        "graded": nir.ValuedEventData(idx, time, 6, 1.0, np.array([[0.5, -2, 1, 0], [1, 0, 0, 0]])),
        "v": nir.TimeGriddedData(np.zeros((1, 3, 6)), 0.1),
    }
    nir.write_data(tmp_path / "a.nirdata", nir.NIRGraphData({"lif": nir.NIRNodeData(observables)}))
    spikes = whole(tmp_path / "a.nirdata", signal="lif.spikes", sample=0, sensor=(3, 2))
    assert spikes.tolist() == [(1000, 2, 0, True), (1000, 0, 0, True), (250000, 2, 1, True)]
    assert whole(tmp_path / "a.nirdata", signal="lif.spikes", sample=1).tolist() == [(500000, 1, 0, True)]
    with open_events(tmp_path / "a.nirdata", signal="lif.graded", sample=0) as recording:
        assert recording.sensor == (6, 1)
        assert [chunk["p"].tolist() for chunk in recording.chunks] == [[True, False, True]]
        assert recording.lost == ["values: only their sign is kept"]
    many = nir.EventData(np.array([[69_999]]), np.array([[0.5]]), 70_000, 1.0)
    nir.write_data(tmp_path / "many.nirdata", nir.NIRGraphData({"lif": nir.NIRNodeData({"spikes": many})}))
    assert whole(tmp_path / "many.nirdata", sensor=(300, 300)).tolist() == [(500000, 99, 233, True)]
    for sensor, line in ((None, "1x1 to 65536x65536 pixels, got 70000x1"), ((1, 1000), "room for 70,000 units")):
        with pytest.raises(ConfigError, match=line):
            whole(tmp_path / "many.nirdata", sensor=sensor)
    for options, line in (
        ({}, "one signal, got 3 signals; choose --signal from lif"),
        ({"signal": "lif.v"}, "expected events, got TimeGriddedData"),
        ({"signal": "lif.spikes"}, "one recording, got 2 samples"),
        ({"signal": "lif.spikes", "sample": 2}, "--sample: expected 0 to 1, got 2"),
    ):
        with pytest.raises((ConfigError, FormatError), match=line):
            whole(tmp_path / "a.nirdata", **options)


def test_structured_arrays_of_any_order_are_read(tmp_path):
    made = scattered(100)
    tonic = np.empty(100, [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", bool)])
    for name in "xytp":
        tonic[name] = made[name]
    np.save(tmp_path / "tonic.npy", tonic)
    assert np.array_equal(whole(tmp_path / "tonic.npy"), made)
    fields = [("timestamp", "u4"), ("x", "u1"), ("y", "u1"), ("polarity", "i1")]
    signed = np.array([(5, 1, 2, -1), (6, 3, 4, 1)], fields)
    assert list(from_array(signed).chunks)[0].tolist() == [(5, 1, 2, False), (6, 3, 4, True)]
    row = np.array([(3, 699, 1), (3, 0, 1), (9, 5, 0)], [("t", "i8"), ("x", "i2"), ("p", "i1")])  # tonic's SHD and SSC
    assert list(from_array(row).chunks)[0].tolist() == [(3, 699, 0, True), (3, 0, 0, True), (9, 5, 0, False)]
    np.save(tmp_path / "shd.npy", row)
    assert run(["convert", str(tmp_path / "shd.npy"), str(tmp_path / "s.h5"), "--sensor", "700x1"]) == 0
    assert whole(tmp_path / "s.h5").tolist() == list(from_array(row).chunks)[0].tolist()
    for bad, line in (
        (row[["t", "x"]], "integer fields t, x, y and p"),
        (np.zeros(3), "integer fields t, x, y and p, got float64"),
        (np.zeros(3, [("t", "f8"), ("x", "i2"), ("y", "i2"), ("p", "?")]), "integer fields"),
        (np.full(2, -1, [("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "i1")]), "x of 0 to 65535, got -1 to -1"),
    ):
        with pytest.raises(FormatError, match=line):
            list(from_array(bad).chunks)


@pytest.mark.parametrize(
    "suffix, event, line",
    [
        (".bs2", (1 << 23, 0, 0, 1), "times below 8388608 us, got 8388608 us; cut it, or shift it"),
        (".dat", (1 << 32, 0, 0, 1), "times below 4294967296 us"),
        (".raw", (1 << 34, 0, 0, 1), "times below 17179869184 us"),
        (".es", (1 << 32, 0, 0, 1), "times below 4294967296 us"),
        (".aedat4", (5, 200, 0, 1), "x of 0 to 199, got x = 200"),
        (".raw", (5, 0, 180, 1), "y of 0 to 179, got y = 180"),
        (".raw", (-1, 0, 0, 1), "never fall, got -1 us after 0 us at event 0"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(suffix, event, line, tmp_path):
    with pytest.raises(FormatError, match=line):
        events.write_events(tmp_path / f"a{suffix}", Recording([np.array([event], EVENT)], SENSOR))
    assert list(tmp_path.iterdir()) == []


def test_disorder_and_other_mistakes_are_named(tmp_path):
    mixed = scattered(10)[::-1].copy()
    with pytest.raises(FormatError, match="at event 1; sort the events by time"):
        events.write_events(tmp_path / "a.raw", from_array(mixed, SENSOR))
    with pytest.raises(ConfigError, match="expected a sensor's size, got none in what is read; give --sensor WxH"):
        events.write_events(tmp_path / "a.es", from_array(scattered(10)))
    with pytest.raises(UnsupportedError, match="a format that is written, got .npy, read only"):
        events.write_events(tmp_path / "a.npy", from_array(scattered(10)))
    with pytest.raises(FormatError, match="at most 256x240 pixels, got 640x480"):
        events.write_events(tmp_path / "a.bs2", from_array(scattered(10), (640, 480)))
    with pytest.raises(FormatError, match="at most 65535x65535 pixels, got 65536x1"):
        events.write_events(tmp_path / "a.es", from_array(scattered(10), (65536, 1)))
    with pytest.raises(ConfigError, match="expected 1x1 to 65536x65536 pixels, got 0x5"):
        events.write_events(tmp_path / "a.es", from_array(scattered(10), (0, 5)))
    with pytest.raises(ConfigError, match="did you mean '.aedat4'"):
        events.write_events(tmp_path / "a.aedat", from_array(scattered(10)))
    with pytest.raises(FormatError, match="expected an event file, got No such file"):
        whole(tmp_path / "none.raw")
    events.write_events(tmp_path / "a.raw", from_array(scattered(10), SENSOR))
    with pytest.raises(ConfigError, match="--sample: expected another format than .raw, got 0; leave it out"):
        whole(tmp_path / "a.raw", sample=0)


def test_a_shift_is_kept_beside_and_added_again(tmp_path):
    made = scattered(100)
    made["t"] += 1605537493718345
    events.write_events(tmp_path / "a.aedat4", from_array(made, SENSOR))
    table = convert(tmp_path / "a.aedat4", tmp_path / "b.bs2", shift=True)
    assert table["shift_us"] == made["t"][0]
    convert(tmp_path / "b.bs2", tmp_path / "c.aedat4")
    assert np.array_equal(whole(tmp_path / "c.aedat4"), made)
    table = events.write_events(tmp_path / "d.bs2", Recording([made[:0], made], SENSOR), shift=True)
    assert table["shift_us"] == made["t"][0]
    made["t"] -= made["t"][50]
    with pytest.raises(FormatError, match="expected times from 0 on that never fall, got -"):
        events.write_events(tmp_path / "e.bs2", from_array(made, SENSOR), shift=True)


def test_a_cut_or_changed_file_is_told_by_its_sidecar(tmp_path):
    path = tmp_path / "a.bs2"
    events.write_events(path, from_array(scattered(100), SENSOR))
    data = path.read_bytes()
    for damaged in (data[:-5], data[:-1] + b"\1", data + data[-5:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="expected the bytes that its sidecar names, got others"):
            whole(path)
    path.write_bytes(data)
    beside = tmp_path / "a.bs2.json"
    table = json.loads(beside.read_text())
    for key in table.keys() - {"mapping", "kind"}:
        beside.write_text(json.dumps({k: v for k, v in table.items() if k != key}))
        with pytest.raises(FormatError, match=f"a.bs2.json: expected rheobase-events/1, got KeyError: '{key}'"):
            whole(path)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_file_that_is_replaced_while_open_is_still_the_one_that_was_checked(suffix, tmp_path):
    path, other = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for seed, file in enumerate((path, other)):
        events.write_events(file, from_array(scattered(100, seed=seed), SENSOR))
    checked, second = whole(path), whole(other)
    with open_events(path) as recording:
        other.replace(path)
        np.testing.assert_array_equal(np.concatenate(list(recording.chunks)), checked)
    assert not np.array_equal(checked, second)
