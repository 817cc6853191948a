"""Readers of event files that are not ours, each as a function from a path to the columns t, x, y, p."""

import importlib

import numpy as np
import pytest


def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"needs {name}, see docs/events.md")


def _columns(array, t, p):
    return array[t], array["x"], array["y"], array[p]


def dv_processing(path):
    dv = _library("dv_processing")
    recording, parts = dv.io.MonoCameraRecording(str(path)), []
    while recording.isRunning() and (batch := recording.getNextEventBatch()) is not None:
        parts.append(batch.numpy())
    return _columns(np.concatenate(parts), "timestamp", "polarity")


def aedat(path):
    packets = _library("aedat").Decoder(str(path))
    return _columns(np.concatenate([packet["events"] for packet in packets if "events" in packet]), "t", "on")


def faery(path):
    """Upside down for .es, which faery turns."""
    stream = _library("faery").events_stream_from_file(path)
    t, x, y, p = _columns(np.concatenate([part.copy() for part in stream]), "t", "on")
    return t, x, stream.dimensions()[1] - 1 - y.astype(int) if path.suffix == ".es" else y, p


def evlib(path):
    table = _library("evlib").load_events(str(path)).collect()
    return table["t"].dt.total_microseconds(), table["x"], table["y"], table["polarity"].to_numpy() > 0


def expelliarmus(path):
    encoding = {".dat": "dat", ".raw": "evt2"}[path.suffix]
    return _columns(_library("expelliarmus").Wizard(encoding=encoding).read(str(path)), "t", "p")


def evt3(path):
    read = _library("evt3").decode_file(str(path))
    return read.timestamp, read.x, read.y, read.polarity


def event_stream(path):
    return _columns(np.concatenate(list(_library("event_stream").Decoder(str(path)))), "t", "on")


def tonic_mnist(path):
    io = _library("tonic.io")
    return _columns(io.read_mnist_file(str(path), dtype=io.events_struct), "t", "p")


def tonic_shd(path, width, height):
    """By the class of the data set itself, told that the file is there."""
    datasets = _library("tonic.datasets")

    class Here(datasets.SHD):
        def _check_exists(self):
            return True

    folder = path.parent / "Here"
    folder.mkdir(exist_ok=True)
    (folder / "shd_train.h5").write_bytes(path.read_bytes())
    found, label = Here(str(path.parent))[0]
    assert label == 0
    unit = found["x"]
    return found["t"], unit % width, unit // width % height, unit < width * height
