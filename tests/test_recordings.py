"""Recordings of event cameras: read, refused, added up to frames, parted and cached."""

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rheobase.models.training import event_sets, recordings
from rheobase.models.training.event_corpus import load_events
from rheobase.models.training.event_sets import EventFile, EventsConfig, EventSet
from rheobase.models.training.recordings import (
    Recording,
    frame,
    from_structured,
    labelled,
    members,
    read_bs2,
    read_npy,
)
from rheobase.spiking.errors import ConfigError, FormatError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
NMNIST = SHARED / "nmnist-small" / "nmnist-small-train1000.tar.xz"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RHEOBASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RHEOBASE_DATA", raising=False)


def bs2(*events):
    """The five bytes of each (x, y, p, t), written digit by digit."""
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, p, t in events)


def random_events(seed, n=200, size=(6, 5), span=99_000):
    rng = np.random.default_rng(seed)
    columns = (rng.integers(0, size[1], n), rng.integers(0, size[0], n), rng.integers(0, 2, n))
    return list(zip(*(c.tolist() for c in columns), np.sort(rng.integers(0, span, n)).tolist(), strict=True))


def tar_of(path, files, mode="w:xz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def small_set(path, n=20):
    """An archive of n recordings of two classes that differ in where their events lie."""
    files = {"labels.txt": "#name class\n" + "".join(f"{i} {3 + i % 2}\n" for i in range(n))}
    for i in range(n):
        events = [(x // 2 + 2 * (i % 2), y, p, t) for x, y, p, t in random_events(i)]
        files[f"set/{i}.bs2"] = bs2(*events)
    return tar_of(path, {name: d if isinstance(d, bytes) else d.encode() for name, d in files.items()})


def test_five_bytes_an_event():
    read = read_bs2(bytes([3, 4, 0x80, 1, 2, 250, 0, 0x7F, 255, 255]), "here")
    assert (read.x.tolist(), read.y.tolist()) == ([3, 250], [4, 0])
    assert (read.p.tolist(), read.t.tolist()) == ([1, 0], [258, (1 << 23) - 1])


def test_an_overflow_of_time_is_no_event():
    read = read_bs2(bs2((1, 1, 0, 7), (0, 240, 0, 0), (2, 2, 1, 5)), "here")
    assert len(read) == 2 and read.t.tolist() == [7, 5 + 8192]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "here: expected five bytes an event, got 0 bytes"),
        (bytes(9), "here: expected five bytes an event, got 9 bytes"),
        (bs2((1, 1, 0, 9), (1, 1, 0, 8)), "here: event 1: expected times that rise"),
    ],
)
def test_damaged_recordings(data, message):
    with pytest.raises(FormatError, match=message):
        read_bs2(data, "here")


def test_the_same_events_from_bs2_npy_and_a_structured_array():
    events = random_events(1)
    whole = read_bs2(bs2(*events), "a")
    x, y, p, t = np.array(events).T
    file = io.BytesIO()
    np.save(file, np.stack([x, y, p, t / 1000], 1))
    table = np.zeros(len(events), [("x", int), ("y", int), ("t", int), ("p", bool)])
    for name, column in zip("xypt", (x, y, p, t), strict=True):
        table[name] = column
    for other in (read_npy(file.getvalue(), "b"), from_structured(table, "c")):
        for name in "xypt":
            assert np.array_equal(getattr(whole, name), getattr(other, name))
    line = from_structured(table[["x", "t", "p"]], "d")
    assert not line.y.any() and np.array_equal(line.x, x)
    with pytest.raises(FormatError, match="a structured array of x, y, t and p"):
        from_structured(np.zeros(3), "e")
    with pytest.raises(FormatError, match="rows of x, y, p and t"):
        bad = io.BytesIO()
        np.save(bad, np.zeros(3))
        read_npy(bad.getvalue(), "f")


@pytest.mark.parametrize("by, window_ms", [("time", None), ("time", 60.0), ("count", None), ("count", 60.0)])
def test_frames_are_a_slow_count(by, window_ms):
    events = random_events(2)
    counts = frame(read_bs2(bs2(*events), "here"), (6, 5), 4, by=by, window_ms=window_ms, pool=2)
    first, last = events[0][3], events[-1][3]
    kept = [e for e in events if window_ms is None or e[3] - first < 1000 * window_ms]
    wanted = np.zeros((4, 2, 3, 3), int)
    for i, (x, y, p, t) in enumerate(kept):
        if by == "count":
            at = 4 * i // len(kept)
        elif window_ms:
            at = 4 * (t - first) // 60_000
        else:
            at = 4 * (t - first) // (last + 1 - first)
        wanted[at, p, y // 2, x // 2] += 1
    assert counts.dtype == np.uint16 and np.array_equal(counts, wanted) and counts.sum() == len(kept)


def test_frames_that_cannot_be():
    recording = read_bs2(bs2((4, 5, 0, 1000)), "here")
    for size in ((5, 5), (6, 4)):
        with pytest.raises(FormatError, match="here: expected events of x 0 to"):
            frame(recording, size, 4)
    with pytest.raises(FormatError, match="here: expected events, got none"):
        frame(Recording("here", *np.zeros((4, 0), np.int64)), (6, 5), 4)
    for bad in ({"by": "events"}, {"pool": 0}, {"window_ms": 0.0}):
        with pytest.raises(ConfigError, match='expected "time" or "count"'):
            frame(recording, (6, 5), 4, **bad)
    many = Recording("here", *np.zeros((4, 65_536), np.int64))
    with pytest.raises(FormatError, match="at most 65535 events"):
        frame(many, (6, 5), 1)


def test_archives_and_folders_hold_the_same_in_the_same_order(tmp_path):
    files = {f"Train/{i % 3}/{i}.bin": bs2(*random_events(i)) for i in range(12)}
    tar = tar_of(tmp_path / "a.tar.gz", files, "w:gz")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for name, data in files.items():
        path = tmp_path / "c" / f"{name}.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(data))
    (tmp_path / "c" / "README").write_text("not a recording")
    found = [[(len(r), label, r.t.sum()) for r, label in labelled(p)] for p in (tar, tmp_path / "b.zip")]
    assert found[0] == found[1] and [label for _, label, _ in found[0]] == [i % 3 for i in range(12)]
    assert sorted(found[0]) == sorted((len(r), label, r.t.sum()) for r, label in labelled(tmp_path / "c"))
    (tmp_path / "c" / "labels.txt").write_text("0 1\n1 0\n0 2\n")
    with pytest.raises(FormatError, match="labels.txt: expected a line a recording, got 0 again"):
        list(labelled(tmp_path / "c", "labels.txt"))
    numbered = tmp_path / "d"
    numbered.mkdir()
    for i in (10, 2, 1):
        (numbered / f"{i}.cut.bs2").write_bytes(bs2(*random_events(i)))
    assert [label for _, label in labelled(numbered)] == [1, 2, 10]
    (numbered / f"{10**30}.bs2").write_bytes(bs2(*random_events(0)))
    with pytest.raises(FormatError, match="expected a label, got none"):
        list(labelled(numbered))


def test_archives_that_are_refused(tmp_path, monkeypatch):
    outside = tar_of(tmp_path / "up.tar", {"../../0.bs2": bs2((1, 1, 0, 1))}, "w")
    before = sorted(tmp_path.rglob("*"))
    assert [label for _, label in labelled(outside)] == [0] and sorted(tmp_path.rglob("*")) == before
    whole = small_set(tmp_path / "whole.tar.xz")
    (tmp_path / "cut.tar.xz").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.tar").write_text("text" * 1000)
    for path in ("cut.tar.xz", "text.tar", "none.tar"):
        with pytest.raises(FormatError, match=r"a folder, .zip or .tar of recordings"):
            list(labelled(tmp_path / path))
    with pytest.raises(FormatError, match="expected recordings, .bs2, .bin, .npy, got none"):
        list(labelled(tar_of(tmp_path / "empty.tar", {"README": b"hello"}, "w")))
    with pytest.raises(FormatError, match="the file of labels train1K.txt, got none"):
        list(labelled(whole, "train1K.txt"))
    for text, message in ((b"0 1\n", "a label, got none"), (b"0 one\n", "a name and a label a line")):
        path = tar_of(tmp_path / "l.tar", {"l.txt": text, "a/1.bs2": bs2((1, 1, 0, 1))}, "w")
        with pytest.raises(FormatError, match=message):
            list(labelled(path, "l.txt"))
    with pytest.raises(FormatError, match="a label, got none"):
        list(labelled(tar_of(tmp_path / "n.tar", {"clap.bs2": bs2((1, 1, 0, 1))}, "w")))
    monkeypatch.setattr(recordings, "LARGEST", 999)
    with pytest.raises(FormatError, match="at most 999 bytes, got more"):
        list(labelled(whole, "labels.txt"))
    bomb = tmp_path / "bomb"
    bomb.mkdir()
    (bomb / "0.bs2.xz").write_bytes(lzma.compress(bytes(100_000)))
    with pytest.raises(FormatError, match="at most 999 bytes, got more"):
        list(labelled(bomb))


def test_folds_part_every_recording_once(tmp_path):
    source = {"set": str(small_set(tmp_path / "s.tar.xz")), "labels": "labels.txt", "size": (6, 5), "steps": 3}
    whole = load_events(EventsConfig(**source, folds=1))
    assert len(whole.train) == len(whole.test) == 20 and sorted(set(whole.train.labels)) == [0, 1]
    seen = []
    for fold in range(5):
        parts = load_events(EventsConfig(**source, fold=fold, held_out=0.25))
        assert (len(parts.train), len(parts.held_out), len(parts.test)) == (12, 4, 4) and parts.digest == whole.digest
        rows = [{f.tobytes() for f in p.frames} for p in (parts.train, parts.held_out, parts.test)]
        assert len(set.union(*rows)) == 20
        seen += [f.tobytes() for f in parts.test.frames]
    assert len(set(seen)) == 20
    assert load_events(EventsConfig(**source, folds=1)).train.frames.sum() == 20 * 200
    other = load_events(EventsConfig(**{**source, "steps": 4}, folds=1))
    assert other.digest != whole.digest and other.train.frames.shape == (20, 4, 2, 6, 5)


def test_frames_come_from_the_cache_and_follow_the_file(tmp_path, monkeypatch):
    path = small_set(tmp_path / "s.tar.xz")
    config = EventsConfig(set=str(path), labels="labels.txt", size=(6, 5), folds=1)
    first = load_events(config)
    with monkeypatch.context() as patch:
        patch.setattr("rheobase.models.training.event_corpus.frame", lambda *_, **__: pytest.fail("not cached"))
        again = load_events(config)
    assert np.array_equal(first.train.frames, again.train.frames) and first.digest == again.digest
    small_set(path, 18)
    assert len(load_events(config).train) == 18


@pytest.mark.parametrize(
    "options, message",
    [
        ({"set": "nmnits"}, "events.set: expected a set, tonic:NAME, or a folder or archive.*did you mean 'nmnist'"),
        ({"fold": 5}, "events.fold: expected from 0 to 4"),
        ({"held_out": 1.0}, "events.held_out: expected above 0 and below 1"),
        ({"scale": 0.0}, "events.scale: expected above 0"),
        ({"set": "tonic:NoSuch"}, "events.set: expected (one of tonic's data sets|the tonic package)"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        load_events(EventsConfig(**options))


def test_a_file_that_a_folder_lacks_is_to_be_put_there(tmp_path):
    lacking = f"expected nmnist/Train.zip in {tmp_path}, got none; put https://.* at {tmp_path}/nmnist/Train.zip"
    with pytest.raises(FormatError, match="(?i)" + lacking):
        load_events(EventsConfig(set="nmnist", folder=str(tmp_path)))


def known_set(monkeypatch, name, folder, train, test, size):
    """A set of that name whose files are these bytes, with their sums."""
    for file, data in {**train, **test}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_bytes(data)

    def files(table):
        sums = {file: hashlib.md5(data).hexdigest() for file, data in table.items()}
        return tuple(EventFile(file, f"https://localhost/{file}", f"md5:{sum}") for file, sum in sums.items())

    monkeypatch.setitem(event_sets.SETS, name, EventSet(files(train), files(test), size, ""))


def test_frames_whose_making_was_cut_off_are_made_again(tmp_path, monkeypatch):
    """Killed between the frames and their labels, a set could not be loaded until its cache was deleted by hand."""
    source = {"set": str(small_set(tmp_path / "s.tar.xz")), "labels": "labels.txt", "size": (6, 5), "steps": 3}
    replace = os.replace
    for ending in "labels.npy", "frames.npy":

        def put(source, target, ending=ending):
            if str(target).endswith(ending):
                raise OSError(5, "killed")
            replace(source, target)

        monkeypatch.setenv("RHEOBASE_CACHE", str(tmp_path / ending))
        with monkeypatch.context() as patch:
            patch.setattr("rheobase.spiking.files.os.replace", put)
            with pytest.raises(OSError, match="killed"):
                load_events(EventsConfig(**source, folds=1))
        assert len(load_events(EventsConfig(**source, folds=1)).train) == 20


def test_a_set_with_a_test_part_and_a_sum(tmp_path, monkeypatch):
    def packed(numbers):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for i in numbers:
                archive.writestr(f"T/{i % 2}/{i}.bin", bs2(*random_events(i, size=(34, 34))))
        return file.getvalue()

    known_set(
        monkeypatch, "nmnist", tmp_path, {"train.zip": packed(range(20))}, {"test.zip": packed((20, 21))}, (34, 34)
    )
    config = EventsConfig(set="nmnist", folder=str(tmp_path))
    parts = load_events(config)
    assert [len(p) for p in (parts.train, parts.held_out, parts.test)] == [18, 2, 2]
    assert parts.test.labels.tolist() == [0, 1]
    (tmp_path / "nmnist" / "train.zip").write_bytes(packed(range(10)))
    with pytest.raises(FormatError, match="expected md5"):
        load_events(config)
    with pytest.raises(FormatError, match=r"nmnist/train.zip in .*none, got none; put https://localhost/train.zip at"):
        load_events(EventsConfig(set="nmnist", folder=str(tmp_path / "none")))


def test_spoken_digits_in_hdf5(tmp_path, monkeypatch):
    import h5py

    def packed(n, last=0.75):
        file, outer = io.BytesIO(), io.BytesIO()
        with h5py.File(file, "w") as h5:
            times = h5.create_dataset("spikes/times", (n,), h5py.vlen_dtype(np.float32))
            units = h5.create_dataset("spikes/units", (n,), h5py.vlen_dtype(np.int32))
            for i in range(n):
                times[i], units[i] = np.array([0.5, 0.25, last]), np.array([699, i, 3])
            h5["labels"] = np.arange(n) % 2
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr("shd.h5", file.getvalue())
        return outer.getvalue()

    known_set(monkeypatch, "shd", tmp_path, {"a.zip": packed(20)}, {"b.zip": packed(2)}, (1, 700))
    test = load_events(EventsConfig(set="shd", folder=str(tmp_path), steps=4, window_ms=1000.0)).test
    assert test.frames.shape == (2, 4, 2, 1, 700)
    assert [tuple(at) for at in np.argwhere(test.frames[1])] == [(0, 0, 0, 1), (1, 0, 0, 699), (2, 0, 0, 3)]
    for last in (np.nan, np.inf):
        known_set(monkeypatch, "shd", tmp_path, {"a.zip": packed(20, last)}, {"b.zip": packed(2)}, (1, 700))
        with pytest.raises(FormatError, match=r"a.zip: 0: expected finite times"):
            load_events(EventsConfig(set="shd", folder=str(tmp_path), steps=4))


def test_digits_pixel_by_pixel(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    files = {
        "i.gz": gzip.compress(bytes(16) + images.tobytes()),
        "l.gz": gzip.compress(bytes(8) + bytes(range(10)) * 2),
    }
    tests = {f"t{name}": data for name, data in files.items()}
    known_set(monkeypatch, "smnist", tmp_path, files, tests, (1, 1))
    test = load_events(EventsConfig(set="smnist", folder=str(tmp_path), steps=784)).test
    assert np.array_equal(test.frames[:, :, 0, 0, 0], images.reshape(20, 784)) and not test.frames[:, :, 1].any()
    with pytest.raises(ConfigError, match="events.steps: expected 784, a pixel a step"):
        load_events(EventsConfig(set="smnist", folder=str(tmp_path), steps=10))


def test_tonic_reads_the_same_events(tmp_path, monkeypatch):
    """Its N-MNIST beside our reader of the same files; only its count of files before a download is left out."""
    tonic = pytest.importorskip("tonic", reason="tonic is not installed; it is never required")
    for part, numbers in (("Train", range(20)), ("Test", range(20, 24))):
        for i in numbers:
            path = tmp_path / "NMNIST" / part / str(i % 2) / f"{i:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bs2(*random_events(i, size=(34, 34))))
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)
    theirs = load_events(EventsConfig(set="tonic:NMNIST", folder=str(tmp_path), steps=2))
    ours = load_events(EventsConfig(set=str(tmp_path / "NMNIST" / "Test"), size=(34, 34), steps=2, folds=1)).train
    assert [len(part) for part in (theirs.train, theirs.held_out, theirs.test)] == [18, 2, 4]
    assert ours.frames.sum() == 800
    assert np.array_equal(theirs.test.frames, ours.frames) and np.array_equal(theirs.test.labels, ours.labels)
    path.write_bytes(bs2(*random_events(99, size=(34, 34))))
    changed = load_events(EventsConfig(set="tonic:NMNIST", folder=str(tmp_path), steps=2))
    assert changed.digest != theirs.digest and not np.array_equal(changed.test.frames, theirs.test.frames)
    path.write_bytes(b"cut")
    with pytest.raises(FormatError, match="tonic:NMNIST 3: expected a recording that tonic reads"):
        load_events(EventsConfig(set="tonic:NMNIST", folder=str(tmp_path), steps=2))


@pytest.mark.slow
def test_the_thousand_recordings():
    if not NMNIST.exists():
        pytest.skip("needs the recordings in shared/data/nmnist-small beside the checkout")
    config = EventsConfig(set=str(NMNIST), labels="train1K.txt", size=(34, 34), folds=1)
    whole = load_events(config).train
    assert np.bincount(whole.labels).tolist() == [97, 116, 99, 93, 105, 92, 94, 117, 87, 100]
    assert whole.frames.sum() == 4_133_231


def test_a_cut_recording_is_not_read_as_a_shorter_one(tmp_path):
    whole = lzma.compress(bytes(5 * 4000))
    for data in (whole[:-30], whole + whole):
        (tmp_path / "1.bs2.xz").write_bytes(data)
        with pytest.raises(FormatError, match="expected one whole .xz stream, got a cut one or more"):
            list(members(tmp_path, lambda name: True))


@pytest.mark.parametrize("shape", ["(1125899906842624, 4)", "(2, 4", "'no'"])
def test_a_forged_array_is_refused(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with pytest.raises(FormatError, match="a .npy file of numbers"):
        read_npy(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header, "here")
