"""Sets of labelled recordings: how they are named, cut to frames and parted, and where their files are found."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rheobase.models.training.cache import cache_folder
from rheobase.models.training.datasets import check_sum
from rheobase.spiking.errors import ConfigError, FormatError


@dataclass(frozen=True, kw_only=True)
class EventsConfig:
    """Labelled recordings to learn to classify; without them a run is a language model's or of sentences."""

    set: str | None = None
    """a set of `SETS`, `tonic:NAME` for a data set of tonic's, or a folder, .zip or .tar of recordings"""
    folder: str | None = None
    """where `SET/FILE` of a set lies; if not given, $RHEOBASE_DATA, then the cache, then the set's public address"""
    labels: str | None = None
    """the file of labels among the recordings of a folder or archive (`recordings.labelled`)"""
    size: tuple[int, int] = (128, 128)
    """height and width of the sensor of a folder or archive; a set has its own"""
    steps: int = 10
    """frames a recording"""
    by: str = "time"
    """"time" or "count": whether frames last equally long or hold equally many events"""
    window_ms: float | None = None
    """what is read of a recording from its first event on; all of it if not given"""
    pool: int = 1
    """pixels along each axis that one of a frame adds up"""
    scale: float = 1.0
    """what numbers of events are divided by; a model that reads BINARY or TERNARY frames gets those"""
    shift: int = 0
    """in training, frames are shifted by up to so many pixels along each axis, each recording by its own"""
    held_out: float = 0.1
    """fraction of the training recordings that chooses settings and the step to keep"""
    folds: int = 5
    """parts of a set without a test part, one of which judges; 1: all recordings train, choose and judge, which
    shows that a model can fit them and says nothing about others"""
    fold: int = 0
    """which part judges, from 0"""
    fit_all: bool = False
    """train on the part held out too and keep the last step: for settings that other runs have chosen"""

    def __post_init__(self):
        for name, wanted, right in (
            ("scale", "above 0", self.scale > 0),
            ("shift", "at least 0", self.shift >= 0),
            ("held_out", "above 0 and below 1", 0 < self.held_out < 1),
            ("folds", "at least 1", self.folds >= 1),
            ("fold", f"from 0 to {self.folds - 1}", 0 <= self.fold < self.folds),
        ):
            if not right:
                raise ConfigError(f"events.{name}", wanted, repr(getattr(self, name)), "mend it")


@dataclass(frozen=True)
class EventFile:
    """A file of a set, its public address and its hash."""

    name: str
    address: str
    sum: str


@dataclass(frozen=True)
class EventSet:
    """A public set: its files, those of the test part if it has one, and the height and width of its sensor."""

    train: tuple[EventFile, ...]
    test: tuple[EventFile, ...]
    size: tuple[int, int]
    licence: str


_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"


def _mnist(part: str, images: str, labels: str) -> tuple[EventFile, ...]:
    names = {f"{part}-images-idx3-ubyte.gz": images, f"{part}-labels-idx1-ubyte.gz": labels}
    return tuple(EventFile(name, f"{_MNIST}/{name}", f"md5:{md5}") for name, md5 in names.items())


def _one(name: str, address: str, md5: str) -> tuple[EventFile]:
    return (EventFile(name, address, f"md5:{md5}"),)


SETS = {
    "nmnist": EventSet(
        _one(
            "train.zip",
            f"{_MENDELEY}/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
            "20959b8e626244a1b502305a9e6e2031",
        ),
        _one(
            "test.zip",
            f"{_MENDELEY}/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
            "69ca8762b2fe404d9b9bad1103e97832",
        ),
        (34, 34),
        "CC BY-SA 4.0",
    ),
    "dvs128-gesture": EventSet(
        _one(
            "ibmGestureTrain.tar.gz",
            "https://figshare.com/ndownloader/files/38022171",
            "3a8f0d4120a166bac7591f77409cb105",
        ),
        _one(
            "ibmGestureTest.tar.gz",
            "https://figshare.com/ndownloader/files/38020584",
            "56070e45dadaa85fff82e0fbfbc06de5",
        ),
        (128, 128),
        "CC BY 4.0",
    ),
    "shd": EventSet(
        _one("shd_train.h5.zip", "https://zenkelab.org/datasets/shd_train.h5.zip", "f3252aeb598ac776c1b526422d90eecb"),
        _one("shd_test.h5.zip", "https://zenkelab.org/datasets/shd_test.h5.zip", "1503a5064faa34311c398fb0a1ed0a6f"),
        (1, 700),
        "CC BY 4.0",
    ),
    "smnist": EventSet(
        _mnist("train", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
        _mnist("t10k", "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        (1, 1),
        "CC BY-SA 3.0",
    ),
}
"""N-MNIST (Orchard et al., Frontiers in Neuroscience 2015), DVS gesture (Amir et al., CVPR 2017) as tonic passes it
on, the spiking Heidelberg digits (Cramer et al., IEEE TNNLS 2020), and MNIST pixel by pixel, 784 steps of one pixel
(Le, Jaitly and Hinton, 2015), which has no events. Addresses and sums: tonic 1.7.0; no file was fetched here."""


def located(config: EventsConfig, file: EventFile) -> Path:
    """A file of a set, looked for and fetched as `EventsConfig.folder` says, its sum checked."""
    local, cache = config.folder or os.environ.get("RHEOBASE_DATA"), cache_folder() / "data"
    for base in (Path(local) if local else None, None if config.folder else cache):
        if base and (path := base / config.set / file.name).is_file():
            check_sum(path, path, file.sum)
            return path
    home = Path(config.folder) if config.folder else cache
    where, remedy = f"events.set {config.set!r}", f"put {file.address} at {home / config.set / file.name}"
    if config.folder:
        raise FormatError(where, f"{config.set}/{file.name} in {config.folder}", "none", remedy)
    try:
        import pooch
    except ImportError:
        raise ConfigError(where, "the pooch package to download with", "none", f"pip install it, or {remedy}") from None
    try:
        options = {"fname": file.name, "path": cache / config.set, "progressbar": sys.stderr.isatty()}
        return Path(pooch.retrieve(file.address, file.sum, **options))
    except (OSError, ValueError) as error:
        raise FormatError(where, "a download of the known sum", type(error).__name__, remedy) from None
