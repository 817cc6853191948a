"""Files that a stranger made on purpose: bombs, views without numbers, data that lie elsewhere."""

import lzma
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from rheobase.backends.events import open_events
from rheobase.backends.exporters.onnx.writer import run_onnx
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training import cache, loop
from rheobase.models.training.recordings import labelled
from rheobase.models.training.run import Run
from rheobase.spiking import hdf5
from rheobase.spiking.errors import FormatError

ZEROS = bytes(5 * 100_000)


def zip_of(path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/0.bs2", ZEROS)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_method_knows_no_bound_is_refused(tmp_path, method):
    with pytest.raises(FormatError, match="expected a stored or deflated file, got another"):
        list(labelled(zip_of(tmp_path / "a.zip", method)))


def test_a_zip_that_says_less_than_it_holds_is_refused(tmp_path):
    data = bytearray(zip_of(tmp_path / "a.zip").read_bytes())
    at = data.rindex(b"PK\1\2") + 24
    assert int.from_bytes(data[at : at + 4], "little") == len(ZEROS)
    data[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match=r"a.zip: expected a folder, .zip or .tar of recordings"):
        list(labelled(tmp_path / "a.zip"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_are_not_read(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("a/0.bs2")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(FormatError, match="expected recordings, .*, got none"):
        list(labelled(tmp_path / "a.tar"))


def test_pipes_and_devices_are_not_read_and_links_not_written(small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    weights = folder / "model" / "model.safetensors"
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        weights.unlink()
        make(weights)
        with pytest.raises(FormatError, match="safetensors: expected a model's weights, got a pipe or a device"):
            Run(folder).model()
    (folder / "log.jsonl").rename(tmp_path / "mine")
    (folder / "log.jsonl").symlink_to(tmp_path / "mine")
    before = (tmp_path / "mine").read_bytes()
    with pytest.raises(FormatError, match="log.jsonl: expected a plain file, which is written to, got a link"):
        loop.resume(folder, quiet=True)
    assert (tmp_path / "mine").read_bytes() == before


def test_a_bomb_of_text_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LARGEST", 1000)
    monkeypatch.setattr(cache, "_BLOCK", 1000)
    (tmp_path / "a.xz").write_bytes(lzma.compress(bytes(10_000_000)))
    with pytest.raises(FormatError, match="a.xz: expected at most .* bytes of text, got more"):
        cache.unpacked(tmp_path / "a.xz")
    assert not list(cache.cache_folder().rglob("*.partial"))


def test_a_view_without_numbers_allocates_nothing(tmp_path):
    tensors = SpikeGPT(SpikeGPTConfig(vocabulary=7, embedding=4, depth=1)).to_reference()
    torch.save(tensors | {"emb.weight": torch.zeros(1).expand(10**9, 10**6)}, tmp_path / "a.pth")
    with pytest.raises(FormatError, match="emb.weight: expected a number of its own for each place, got fewer"):
        SpikeGPT.from_reference(tmp_path / "a.pth", binary_embedding=False)


def test_numbers_of_another_file_are_not_read(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT8, [4], np.zeros(4, np.int8).tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [out], [tensor]))
    with pytest.raises(FormatError, match="a.onnx: expected numbers of its own, got those of another file"):
        run_onnx(model.SerializeToString(), {}, "a.onnx")


def rows(path, spoil):
    with h5py.File(path, "w") as file:
        for name, kind in (("times", np.float64), ("units", np.uint16)):
            file.create_dataset(f"spikes/{name}", (1,), h5py.vlen_dtype(kind))[0] = np.arange(3)
        spoil(file)
    with open_events(path) as recording:
        return sum(len(chunk) for chunk in recording.chunks)


def _external(file):
    del file["spikes/units"]
    file.create_dataset("spikes/units", (1, 3), "u1", external=[("/etc/passwd", 0, 3)])


def _virtual(file):
    del file["spikes/units"]
    layout = h5py.VirtualLayout((1, 3), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (1, 3))
    file.create_virtual_dataset("spikes/units", layout)


def _huge(file):
    for name in ("times", "units"):
        del file[f"spikes/{name}"]
        file.create_dataset(f"spikes/{name}", (1, 1 << 40), "f8", chunks=(1, 1 << 20))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "x")), "no links"),
        (lambda file: file.__setitem__("x", h5py.SoftLink("/spikes")), "no links"),
        (lambda file: file.__setitem__("x", file["spikes"]), None),
        (lambda file: file.__setitem__("spikes/spikes", file["spikes"]), "at most 100000 objects, 12 deep"),
        (_external, "numbers and text, got other data"),
        (_virtual, "numbers and text, got other data"),
        (_huge, "at most [0-9]+ bytes, got 8796093022208 at spikes/"),
    ],
)
def test_hdf5_that_points_elsewhere_or_nowhere(tmp_path, spoil, line):
    if line is None:
        assert rows(tmp_path / "a.h5", spoil) == 3
        return
    with pytest.raises(FormatError, match=line):
        rows(tmp_path / "a.h5", spoil)


def test_hdf5_of_any_size_may_be_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "PATIENCE", 20)
    for numbers in (0, 1, 1000, 100_000):
        with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
            file["x"] = np.arange(numbers)
        data = (tmp_path / "a.h5").read_bytes()
        with hdf5.open_hdf5(data, "a") as opened:
            np.testing.assert_array_equal(opened.read("x"), np.arange(numbers))
        with pytest.raises(FormatError, match="a: expected HDF5, got OSError"), hdf5.open_hdf5(data[:424], "a"):
            pass


@pytest.mark.parametrize("ending", ["while True: pass", "import os; os.abort()", "bytearray(1 << 33)"])
def test_a_reader_that_hangs_crashes_or_eats_memory_is_one_line(tmp_path, monkeypatch, ending):
    source = Path(hdf5._hdf5_program.__file__).read_text()
    (tmp_path / "program.py").write_text(source.replace("waiting, count =", f"{ending}\n    waiting, count ="))
    monkeypatch.setattr(hdf5._hdf5_program, "__file__", str(tmp_path / "program.py"))
    monkeypatch.setattr(hdf5, "SECONDS", 1)
    with pytest.raises(FormatError, match="status -|MemoryError") as caught:
        rows(tmp_path / "a.h5", lambda file: None)
    assert "\n" not in str(caught.value)
