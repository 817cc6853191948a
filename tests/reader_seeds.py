"""What each reader of the package takes from strangers: a small sound example by our writers, and how it is read."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from nir_nets import net
from test_damaged_event_files import SENSOR, made

import rheobase
from rheobase.backends import events, export, verify
from rheobase.backends.artifact import reseal
from rheobase.backends.counting.target import load_target
from rheobase.backends.events import Recording, open_events
from rheobase.backends.exporters.spinnaker2.power import read_log, read_recording
from rheobase.backends.importers.nir import import_file
from rheobase.backends.nir_file import read_nirdata
from rheobase.backends.trace import StoredTrace, load_trace, read_trace_tensors, save_trace, trace_tensors
from rheobase.exchange import feed
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.models.training import event_corpus
from rheobase.models.training.checkpoint import MAGIC, load_checkpoint, save_checkpoint
from rheobase.models.training.data import DataConfig, read_texts
from rheobase.models.training.evaluate import Evaluation
from rheobase.models.training.recordings import labelled
from rheobase.models.training.run import Run, RunConfig
from rheobase.models.training.sentences import read_sentences
from rheobase.models.training.shards import read_shards
from rheobase.models.training.tokenizers import Characters, Words, read_tokenizer
from rheobase.spiking.files import sha256
from rheobase.spiking.graph.stored import load_graph, save_graph

TEXT = b"1 the spike was sent\n0 the unit was at rest\n1 and fired again\n"
EVENTS = (".aedat4", ".raw", ".evt3.raw", ".dat", ".es", ".bs2", ".npy", ".h5", ".nirdata")
EXPORTED = ("nir", "onnx", "pyspinnaker2", "events")


class Reader(NamedTuple):
    """make(folder) writes the example, read(folder) reads it whole, seal(folder) puts hashes right after damage."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    seal: Callable[[Path], object] = lambda folder: None


def _egru():
    return EGRULM(EGRULMConfig(vocabulary=7, embedding=6, layers=(6, 6), thr_mean=0.02))


def _seal_model(folder):
    header = json.loads((folder / "config.json").read_bytes())
    header["weights_sha256"] = sha256((folder / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(header))


def _make_pth(folder):
    torch.save(SpikeGPT(SpikeGPTConfig(vocabulary=7, embedding=4, depth=1)).to_reference(), folder / "a.pth")


def _make_checkpoint(folder):
    model = _egru()
    optimiser = torch.optim.AdamW(model.parameters())
    save_checkpoint(folder, 1, {"step": 1, "model": model.state_dict(), "optimiser": optimiser.state_dict()})


def _seal_checkpoint(folder):
    for path in folder.glob("*.ckpt"):
        payload = path.read_bytes().partition(b"\n")[2]
        path.write_bytes(MAGIC + sha256(payload).encode() + b"\n" + payload)


def _make_run(folder):
    table = {"model": {"name": "egru_lm", "embedding": 8, "layers": [8]}, "data": {"tokenizer": "words"}}
    run = Run.create(folder, RunConfig.from_table(table), Words.from_text([TEXT]))
    run.log_path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    run.add_metrics(test=Evaluation(2.5, 2.5, 5.7, 9, (0.5,), (0,), (0,)), text_sha256="0" * 64)


def _read_run(folder):
    run = Run.open(folder)
    return run.config, run.log(), run.metrics(), run.tokenizer()


def _make_pieces(folder):
    from tokenizers import Tokenizer, models, trainers

    library = Tokenizer(models.BPE())
    library.train_from_iterator([TEXT.decode()] * 3, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    (folder / "t.json").write_text(library.to_str())


def _read_tokenizer(folder):
    tokenizer = read_tokenizer(folder / "t.json")
    return tokenizer.vocabulary, tokenizer.to_json()


def _bs2(folder):
    events.write_events(folder / "0.bs2", Recording([made()], SENSOR))
    return (folder / "0.bs2").read_bytes()


def _make_archive(name):
    def make(folder):
        data = _bs2(folder)
        for path in list(folder.iterdir()):
            path.unlink()
        entries = {"labels.txt": b"0 1\n1 0\n", "a/0.bs2": data, "a/1.bs2.xz": lzma.compress(data)}
        if name.endswith("zip"):
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for entry, content in entries.items():
                    archive.writestr(entry, content)
            return
        with tarfile.open(folder / name, f"w:{name.partition('.tar')[2].lstrip('.')}") as archive:
            for entry, content in entries.items():
                info = tarfile.TarInfo(entry)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return make


def _make_rows(folder):
    np.save(folder / "3.npy", np.stack([made()[name].astype(np.int64) for name in "xypt"], 1))


def _shd(file, rows=3):
    with h5py.File(file, "w") as h5:
        for name, kind in (("times", np.float16), ("units", np.uint16)):
            stored = h5.create_dataset(f"spikes/{name}", (rows,), h5py.vlen_dtype(kind))
            for i in range(rows):
                stored[i] = np.arange(4 + i)
        h5["labels"] = np.arange(rows)


def _make_shd(folder):
    file = io.BytesIO()
    _shd(file)
    with zipfile.ZipFile(folder / "shd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("shd.h5", file.getvalue())


def _make_smnist(folder):
    (folder / "images.gz").write_bytes(gzip.compress(bytes(16 + 2 * 784)))
    (folder / "labels.gz").write_bytes(gzip.compress(bytes(8) + b"\1\2"))


def _make_events(suffix):
    def make(folder):
        path = folder / f"a{suffix}"
        if suffix == ".npy":
            np.save(path, made())
        elif suffix == ".evt3.raw":
            t, x, y, p = (made()[name].astype(int) for name in "txyp")
            words = np.stack([0x8000 | t >> 12, 0x6000 | t & 0xFFF, y, 0x3000 | p << 11 | x, 0x5001 + 0 * t], 1)
            path.write_bytes(b"% evt 3.0\n% geometry 200x180\n% end\n" + words.astype("<u2").tobytes())
        elif suffix == ".nirdata":
            _make_artifact("nir")(folder / "net")
            path.write_bytes((folder / "net" / "events.nirdata").read_bytes())
            _remove(folder / "net")
        else:
            events.write_events(path, Recording([made()], SENSOR))
            (folder / f"a{suffix}.json").unlink()

    return make


def _remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _read_events(suffix):
    options = {".nirdata": {"signal": "n1.spikes", "sample": 0}, ".h5": {"sensor": SENSOR}}.get(suffix, {})

    def read(folder):
        with open_events(folder / f"a{suffix}", **options) as recording:
            return sum(len(chunk) for chunk in recording.chunks)

    return read


def _seal_sidecar(folder):
    table = json.loads((folder / "a.raw.json").read_bytes())
    table["sha256"] = sha256((folder / "a.raw").read_bytes())
    (folder / "a.raw.json").write_text(json.dumps(table))


def _make_artifact(to):
    def make(folder):
        graph = _egru().lower() if to == "onnx" else net()
        frames = np.random.default_rng(0).integers(0, 2, (1, 8, 12, 1, 1)).astype(np.float32)
        calibration = np.array([[0, 3, 6, 3]]) if to == "onnx" else frames
        export(graph, to, folder / "x", calibration=calibration, allow_lossy=True)
        for path in (folder / "x").iterdir():
            path.rename(folder / path.name)
        (folder / "x").rmdir()

    return make


def _trace():
    signals = {"a.s": np.ones((2, 3, 4), np.int8)}
    return StoredTrace(np.ones((2, 3), np.int64), signals, {"a.v": np.ones((2, 4))}, {"a.s": "BINARY"}, "g", "event")


def _make_power(folder):
    t = 1.7e9 + np.arange(40) / 10
    (folder / "log.csv").write_text("seconds,watts\n" + "".join(f"{s:.3f},{0.5 + s % 1:.3f}\n" for s in t))
    save_trace(folder / "t.h5", _trace())
    with h5py.File(folder / "t.h5", "a") as file:
        file["tick_seconds"], file["cycles"] = t, np.full((40, 2), 1000)
        file.attrs["level"] = "0.8 V, 300 MHz"


TARGET = Path(rheobase.backends.__file__).parent / "targets" / "horowitz-45nm.toml"
READERS = {
    "model": Reader(lambda f: _egru().save_pretrained(f), rheobase.load, _seal_model),
    "pth": Reader(_make_pth, lambda f: SpikeGPT.from_reference(f / "a.pth", binary_embedding=False)),
    "checkpoint": Reader(_make_checkpoint, lambda f: [load_checkpoint(p) for p in f.iterdir()], _seal_checkpoint),
    "run": Reader(_make_run, _read_run),
    "tokenizer-characters": Reader(
        lambda f: (f / "t.json").write_text(Characters.from_text([TEXT]).to_json()), _read_tokenizer
    ),
    "tokenizer-words": Reader(lambda f: (f / "t.json").write_text(Words.from_text([TEXT]).to_json()), _read_tokenizer),
    "tokenizer-pieces": Reader(_make_pieces, _read_tokenizer),
    "sentences": Reader(lambda f: (f / "a.txt").write_bytes(TEXT), lambda f: read_sentences(f / "a.txt", 2)),
    "sentences-xz": Reader(
        lambda f: (f / "a.xz").write_bytes(lzma.compress(TEXT)), lambda f: read_sentences(f / "a.xz", 2)
    ),
    "text-xz": Reader(
        lambda f: (f / "a.xz").write_bytes(lzma.compress(TEXT)), lambda f: read_texts(DataConfig(text=str(f / "a.xz")))
    ),
    "shards": Reader(lambda f: np.arange(99, dtype="<u2").tofile(f / "a.bin"), read_shards),
    **{
        f"recordings-{name}": Reader(_make_archive(name), lambda f, name=name: list(labelled(f / name, "labels.txt")))
        for name in ("a.zip", "a.tar", "a.tar.gz", "a.tar.xz")
    },
    "recordings-npy": Reader(_make_rows, lambda f: list(labelled(f))),
    "recordings-shd": Reader(_make_shd, lambda f: list(event_corpus._shd(f / "shd.zip"))),
    "recordings-smnist": Reader(_make_smnist, lambda f: list(event_corpus._smnist(f / "images.gz", f / "labels.gz"))),
    "graph": Reader(lambda f: save_graph(f / "g", net()), lambda f: load_graph(f / "g")),
    "nir": Reader(_make_artifact("nir"), lambda f: import_file(f / "net.nir")),
    "nir-data": Reader(_make_artifact("nir"), lambda f: read_nirdata(f / "events.nirdata")),
    "trace": Reader(lambda f: save_trace(f / "t.h5", _trace()), lambda f: load_trace(f / "t.h5")),
    "trace-tensors": Reader(
        lambda f: (f / "t.safetensors").write_bytes(trace_tensors(_trace())),
        lambda f: read_trace_tensors((f / "t.safetensors").read_bytes(), "t.safetensors"),
    ),
    **{f"events{suffix}": Reader(_make_events(suffix), _read_events(suffix)) for suffix in EVENTS},
    "events-sidecar": Reader(
        lambda f: events.write_events(f / "a.raw", Recording([made()], SENSOR)), _read_events(".raw"), _seal_sidecar
    ),
    **{f"artifact-{to}": Reader(_make_artifact(to), verify, reseal) for to in EXPORTED},
    "target": Reader(lambda f: (f / "t.toml").write_bytes(TARGET.read_bytes()), lambda f: load_target(f / "t.toml")),
    "power-log": Reader(_make_power, lambda f: read_log(f / "log.csv")),
    "power-trace": Reader(_make_power, lambda f: read_recording(f / "log.csv", f / "t.h5")),
    "input-npy": Reader(
        lambda f: np.save(f / "x.npy", np.ones((1, 4, 12), np.float32)), lambda f: feed(net(), str(f / "x.npy"), 4)
    ),
}
