"""Labelled recordings as frames: what of them trains, what chooses and what judges."""

import gzip
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rheobase.models.training.cache import cache_folder, cached_array, file_digest
from rheobase.models.training.event_sets import SETS, EventsConfig, located
from rheobase.models.training.recordings import DAMAGE, LARGEST, Recording, frame, from_structured, labelled
from rheobase.spiking import registry
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import open_atomic
from rheobase.spiking.hdf5 import open_hdf5

FRAMES = 2
"""of the cache: raised where the same settings give other frames"""


@dataclass(frozen=True, eq=False)
class Frames:
    """N of M recordings, whose frames stay on disk until they are asked for.

    source  numbers of events by polarity, [M, T, 2, H, W] uint16, memory-mapped;  rows  which of them, [N]
    labels  [N] int64, from 0 on
    """

    source: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: np.ndarray | slice) -> "Frames":
        return Frames(self.source, self.rows[which], self.labels[which])

    def __add__(self, other: "Frames") -> "Frames":
        """These recordings and others of the same source."""
        rows, labels = (np.concatenate([getattr(p, n) for p in (self, other)]) for n in ("rows", "labels"))
        return Frames(self.source, rows, labels)

    @property
    def frames(self) -> np.ndarray:
        """[N, T, 2, H, W]."""
        return self.source[self.rows]


@dataclass(frozen=True)
class EventCorpus:
    """What is learnt from, what chooses and what judges, and a SHA-256 of it all."""

    train: Frames
    held_out: Frames
    test: Frames
    digest: str


def load_events(config: EventsConfig) -> EventCorpus:
    """The parts of a configuration, which depend on it and on the recordings alone, never on a run's seed.

    Recordings are taken in turns from one random order: number i of it judges if i mod folds = fold, and of the others
    the first `held_out` of them choose. A set with a test part is judged by that.

    raises  ConfigError: no such set, or no way to fetch it;  FormatError: recordings that cannot be read
    """
    whole, digest = _frames(config, test=False)
    has_test = config.set in SETS or config.set.startswith("tonic:")
    if has_test:
        test, test_digest = _frames(config, test=True)
        digest = hashlib.sha256(f"{digest} {test_digest}".encode()).hexdigest()
    classes = np.unique(whole.labels)
    order = np.random.default_rng(0).permutation(len(whole))
    if has_test:
        rest = order
    elif config.folds == 1:
        return EventCorpus(*[Frames(whole.source, whole.rows, np.searchsorted(classes, whole.labels))] * 3, digest)
    else:
        judging = np.arange(len(order)) % config.folds == config.fold
        test, rest = whole[np.sort(order[judging])], order[~judging]
    if not np.isin(test.labels, classes).all():
        raise FormatError(config.set, "labels of the training part in the test part", "others", "fetch it anew")
    n = round(config.held_out * len(rest))
    if not 0 < n < len(rest) or not len(test):
        got = f"{len(whole)} recordings, {n} held out, {len(test)} to judge"
        raise FormatError(config.set, "recordings for every part", got, "give more recordings")
    parts = whole[np.sort(rest[n:])], whole[np.sort(rest[:n])], test
    return EventCorpus(*(Frames(p.source, p.rows, np.searchsorted(classes, p.labels)) for p in parts), digest)


def _frames(config: EventsConfig, test: bool) -> tuple[Frames, str]:
    """All recordings of a source as frames, from the cache if they were made before, and a digest of them."""
    if config.set.startswith("tonic:"):
        sums, size, source = _tonic(config, test)
    elif config.set in SETS:
        known = SETS[config.set]
        paths = [located(config, file) for file in (known.test if test else known.train)]
        sums, size = [file.sum for file in (known.test if test else known.train)], known.size
        source = {"shd": _shd, "smnist": _smnist}.get(config.set, labelled)(*paths)
    elif not Path(config.set).exists():
        remedy = registry.nearest(config.set, SETS)
        raise ConfigError("events.set", "a set, tonic:NAME, or a folder or archive", repr(config.set), remedy)
    else:
        sums, size, source = (
            [_digest(Path(config.set)), config.labels],
            config.size,
            labelled(config.set, config.labels),
        )
    how = {name: getattr(config, name) for name in ("steps", "by", "window_ms", "pool")}
    key = hashlib.sha256(json.dumps([FRAMES, sums, size, how]).encode()).hexdigest()
    labels: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for item, label in source:
            labels.append(label)
            yield (frame(item, size, **how) if isinstance(item, Recording) else _fits(item, config)).ravel()
        classes()  # in their place before the frames are

    def classes() -> np.ndarray:
        return cached_array(f"{key}.labels", np.int64, [np.array(labels, np.int64)])

    frames = cached_array(f"{key}.frames", np.uint16, pieces())
    found = classes()
    shape = (len(found), config.steps, 2, *(-(-n // config.pool) for n in size))
    if not len(found) or frames.size != np.prod(shape):
        where, remedy = cache_folder() / "tokens", f"delete {key[:12]}*"
        raise FormatError(where, f"frames {shape}", f"{frames.size} numbers", remedy)
    return Frames(frames.reshape(shape), np.arange(len(found)), np.array(found)), key


def _fits(pixels: np.ndarray, config: EventsConfig) -> np.ndarray:
    if len(pixels) != config.steps or config.pool != 1:
        raise ConfigError("events.steps", f"{len(pixels)}, a pixel a step, and pool 1", f"{config.steps}", "set it")
    return pixels


def _digest(path: Path) -> str:
    """Of a file its SHA-256, of a folder that of its files' names and contents."""
    if path.is_file():
        return file_digest(path)
    files = sorted(f for f in path.rglob("*") if f.is_file())
    table = [(f.relative_to(path).as_posix(), file_digest(f)) for f in files]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def _tonic(config: EventsConfig, test: bool):
    """(What names the frames, the sensor's size, the recordings with labels) of one of tonic's data sets."""
    name = config.set.partition(":")[2]
    try:
        import tonic
    except ImportError:
        raise ConfigError("events.set", "the tonic package", "none", "pip install tonic, or use a set") from None
    kind = getattr(tonic.datasets, name, None)
    if kind is None:
        raise ConfigError("events.set", "one of tonic's data sets", repr(name), "see tonic.datasets")
    folder = config.folder or str(cache_folder() / "tonic")
    try:
        data = kind(folder, train=not test)
    except (OSError, RuntimeError) as error:
        remedy = f"put what it downloads at {folder}"
        raise FormatError(f"events.set {config.set!r}", "tonic's download", type(error).__name__, remedy) from None
    width, height, _ = data.sensor_size

    def source():
        for index in range(len(data)):
            try:
                events, label = data[index]
            except (OSError, ValueError, LookupError) as error:
                got = " ".join(str(error).split())
                raise FormatError(
                    f"{config.set} {index}", "a recording that tonic reads", got, "fetch it anew"
                ) from None
            yield from_structured(events, f"{config.set} {index}"), int(label)

    sums = [config.set, test, tonic.__version__, len(data), _digest(Path(data.location_on_system))]
    return sums, (height, width), source()


def _shd(path: Path) -> Iterator[tuple[Recording, int]]:
    """The one HDF5 file of a .zip: spikes/times in seconds and spikes/units, an array a recording, and labels."""
    out = cache_folder() / "unpacked" / file_digest(path)
    if not out.exists():
        try:
            with zipfile.ZipFile(path) as archive, archive.open(archive.infolist()[0]) as packed:
                with open_atomic(out) as file:
                    shutil.copyfileobj(packed, file)
        except (*DAMAGE, IndexError) as error:
            raise FormatError(path, "a .zip of one HDF5 file", str(error), "fetch it anew") from None
    with open_hdf5(out, path, "spoken digits in HDF5") as file:
        columns = ("spikes/times", "spikes/units")
        labels = file.read("labels")
        if {file.dataset(name).shape for name in columns} != {labels.shape} or labels.ndim != 1:
            raise FormatError(path, "a label for each recording", str(labels.shape), "fetch it anew")
        for index, label in enumerate(labels):
            times, units = (file.read(name, index, most=LARGEST).astype(np.float64) for name in columns)
            if not all((np.abs(each) < 1 << 40).all() for each in (1e6 * times, units)):
                raise FormatError(f"{path}: {index}", "finite times and units below 2^40", "others", "fetch it anew")
            t = np.rint(1e6 * times).astype(np.int64)
            order, zero = np.argsort(t, kind="stable"), np.zeros(len(t), np.int64)
            yield Recording(f"{path}: {index}", units.astype(np.int64)[order], zero, zero, t[order]), int(label)


def _smnist(images: Path, labels: Path) -> Iterator[tuple[np.ndarray, int]]:
    """MNIST's images, a step a pixel: [784, 2, 1, 1] with the grey value, 0 to 255, in the first channel."""
    pixels, classes = (_gunzipped(path)[head:] for path, head in ((images, 16), (labels, 8)))
    if not classes or len(pixels) != 784 * len(classes):
        raise FormatError(images, f"784 bytes for each of {len(classes)} labels", f"{len(pixels)}", "fetch it anew")
    grey = np.frombuffer(pixels, np.uint8).astype(np.uint16).reshape(len(classes), 784, 1, 1, 1)
    yield from zip(np.concatenate([grey, np.zeros_like(grey)], 2), classes, strict=True)


def _gunzipped(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            data = file.read(LARGEST + 1)
    except DAMAGE as error:
        raise FormatError(path, "a .gz file", str(error), "fetch it anew") from None
    if len(data) > LARGEST:
        raise FormatError(path, f"at most {LARGEST:,} bytes", "more", "fetch it anew")
    return data
