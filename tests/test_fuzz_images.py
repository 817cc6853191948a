"""Artefacts of strangers: whatever was done to them, `verify` and the firmware say what is wrong, and do no more."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import fuzz_images
import numpy as np
import pytest
from test_firmware import by_numpy, needs_c, random_machine

from rheobase.backends import verify
from rheobase.backends.artifact import MANIFEST, SEAL, _seal, open_artifact, reseal
from rheobase.backends.exporters.spinnaker2 import TRACE, firmware, host, products
from rheobase.backends.exporters.spinnaker2.image import ENTRY, PREFIX, PROGRAM, REGIONS, Image, unpack
from rheobase.backends.exporters.spinnaker2.machine import Machine
from rheobase.backends.exporters.spinnaker2.samples import random_element
from rheobase.backends.trace import StoredTrace, read_trace_tensors, trace_tensors
from rheobase.spiking.errors import FormatError

HERE = Path(__file__).parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    fuzz_images.make_bases(folder)
    return folder


def run(bases, folder, first, count):
    """Damaged artefacts through `verify`: the table of what happened."""
    shutil.copytree(bases, folder / "bases")
    command = [sys.executable, HERE / "fuzz_images.py", folder, str(first), str(count)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"case {(folder / 'case').read_text()}: {done.stderr[-2000:]}"
    found = json.loads((folder / "found.json").read_text())
    assert found["refused"] > 0.3 * count and found["replayed, differs"] > 0.01 * count
    assert found["images taken"] > 0.1 * found["images"]
    assert found["peak_growth_mb"] < 256
    return found


def sanitized(folder):
    """The same images through the firmware's C under AddressSanitizer and UBSan: (taken, all)."""
    program, sources = folder / "fuzz_pe", [firmware.FOLDER / f"{name}.c" for name in (*firmware.KERNELS, "host")]
    flags = ["-std=c99", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *SANITIZE, "-I", firmware.FOLDER]
    made = subprocess.run(["gcc", *flags, "-o", program, HERE / "fuzz_pe.c", *sources], capture_output=True, text=True)
    if "cannot find" in made.stderr:
        pytest.skip("gcc has no sanitizers")
    assert made.returncode == 0, made.stderr[-2000:]
    done = subprocess.run([program, folder / "images"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return tuple(int(n) for n in done.stdout.split(" of "))


@needs_c
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("count", [200, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_artefacts_are_reported_and_no_more(bases, tmp_path, count):
    found = run(bases, tmp_path, 0, count)
    print(found)
    assert sanitized(tmp_path) == (found["images taken"], found["images"])


def both_refuse(data, numpy, c):
    with pytest.raises(FormatError, match=numpy):
        fuzz_images.ELEMENTS[int(data[6])](unpack(data, "pe"), "pe")
    with pytest.raises(FormatError, match=f"the firmware takes, got {c}"):
        host.check(data, "pe")


def layer(**changes):
    """A sparse layer's image with other fields and regions."""
    image = random_machine(0, density=0.2)[1][1][1]
    fields = image.fields | {name: value for name, value in changes.items() if name in image.fields}
    regions = {**image.regions, **{name: value for name, value in changes.items() if name in image.regions}}
    return Image.of(image.kind, fields, regions).pack()


@needs_c
def test_regions_that_overlap_are_refused():
    """The firmware writes its sums: over the rows of a product they would lead it anywhere."""
    data, names = bytearray(layer()), list(REGIONS[0])
    sums, rows = (PREFIX.size + ENTRY.size * names.index(name) for name in ("accumulators", "rows_a"))
    data[sums + 4 : sums + 8] = data[rows + 4 : rows + 8]
    both_refuse(bytes(data), "expected a region after the last", "a region outside of the image")
    data = bytearray(layer())
    data[PREFIX.size + 4 : PREFIX.size + 8] = bytes(4)
    both_refuse(bytes(data), "cell: expected a region after the last", "a region outside of the image")


@needs_c
def test_half_a_number_at_a_region_s_end_is_refused():
    image = random_element(0)[0]
    data = bytearray(Image.of(PROGRAM, image.fields, {**image.regions, "rows": np.zeros(1)}).pack())
    at = PREFIX.size + ENTRY.size * list(REGIONS[PROGRAM]).index("rows") + 8
    data[at : at + 4] = struct.pack("<I", 3)
    both_refuse(bytes(data), "rows: expected a region after the last", "a region of another size")


@needs_c
def test_rows_of_a_product_lie_within_its_weights():
    rows = unpack(layer(), "pe").regions["rows_a"].copy()
    rows[1] = 60_000
    both_refuse(layer(rows_a=rows), "rows one after the other", "rows or targets out of order")


@needs_c
def test_targets_of_a_row_rise():
    """A row that names one target often would send more events than an element has units."""
    weight = np.eye(6, 18)
    weight[0, :3] = 1
    packed = {f"{name}_q": array for name, array in products.pack(weight).items()}
    host.check(layer(layer_units=6, **packed), "pe")
    packed["gaps_q"][1] = 0
    both_refuse(layer(layer_units=6, **packed), "ascending targets", "rows or targets out of order")


@needs_c
def test_keys_ascend():
    keys = unpack(layer(), "pe").regions["keys"].reshape(-1, 4)
    for wrong in (keys[[0, 1, 0]], keys + np.array([1, 0, 0, 0])):
        both_refuse(layer(keys=wrong), "first keys of slices, ascending", "a field out of range")


@needs_c
def test_what_keeps_states_below_one_is_checked():
    high, low = np.full(1025, 16385), np.full(1025, -1)
    for changes in ({"thr": [-1, 0]}, {"thr": [0, 16385]}, {"sigmoid": low}, {"sigmoid": high}, {"tanh": high}):
        both_refuse(layer(**changes), f"expected {next(iter(changes))} from", "a field out of range")
    for name, value in (("zoneout", 16385), ("layer", 252), ("slice", 256)):
        both_refuse(layer(**{name: value}), f"expected {name} from 0", "a field out of range")
    for name in ("cell", "accumulators"):
        both_refuse(layer(**{name: np.zeros(1)}), "expected a region of", "a region of another size")


@needs_c
def test_sizes_of_an_embedding_are_checked():
    image = random_machine(0)[1][0][1]
    for field, value in (("width", 65_537), ("x_frac", 16), ("x_frac", 2**32 - 1)):
        changed = Image.of(image.kind, {**image.fields, field: value}, image.regions)
        both_refuse(changed.pack(), f"expected {field} from 0", "a field out of range")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("value", [-(2**31), 2**31 - 1])
def test_registers_at_their_ends_do_not_overflow(bases, tmp_path, value):
    """A damaged image may begin with sums of WKV that no sound one reaches."""
    with open(tmp_path / "images", "wb") as file:
        for path in sorted((bases / "gpt-dense-dram" / "pe").iterdir()):
            image = unpack(path.read_bytes(), path.name)
            initial = np.full_like(image.regions["initial"], value)
            data = Image(image.kind, image.fields, {**image.regions, "initial": initial}).pack()
            file.write(struct.pack("<I", len(data)) + data)
    taken, images = sanitized(tmp_path)
    assert taken == images > 5


def test_a_forged_size_allocates_nothing():
    """Sparse weights name 10^5 x 65535 numbers in a few bytes: they are never unpacked."""
    packed = {"rows": np.zeros(65_001, "<u2"), "gaps": np.zeros(0, np.uint8), "weight": np.zeros(0, np.int8)}
    product = products.unpack("here", packed, 65_000, 2**31)
    assert product.row(64_999)[0].size == 0


@needs_c
def test_gaps_of_a_sparse_embedding_count_in_c_as_in_numpy():
    _, pes = random_machine(3, density=0.3)
    table = np.zeros((7, 600), np.int64)
    table[:, 0], table[2, 599], table[3, 300] = 5, -7, 9
    image = pes[0][1]
    wide = Image.of(image.kind, {**image.fields, "width": 600}, {**image.regions, **products.pack(table)})
    pes[0] = ("embedding", wide)
    assert wide.regions["rows"].size and (wide.regions["gaps"] == 255).any()
    logits, hashes = by_numpy(Machine(None, pes), np.arange(7))
    got = host.Host(None, pes).run(np.arange(7))
    assert np.array_equal(got[0], logits) and np.array_equal(got[1], hashes)


def sealed(folder, text):
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_bytes(_seal(text))
    return verify(folder).problem


@pytest.fixture
def artefact(bases, tmp_path):
    return shutil.copytree(bases / "egru-dense-dram", tmp_path / "artefact")


@pytest.mark.parametrize("name", [MANIFEST, SEAL, "dram.bin", "pe/000.bin"])
def test_a_link_or_a_pipe_is_not_read(artefact, tmp_path, name):
    shutil.move(artefact / name, tmp_path / "outside")
    (artefact / name).symlink_to(tmp_path / "outside")
    assert f"{name}: expected a plain file, got a link" in verify(artefact).problem
    (artefact / name).unlink()
    os.mkfifo(artefact / name)
    assert f"{name}: expected a listed file, got none" in verify(artefact).problem


def test_a_folder_that_is_a_link_is_not_listed(artefact, tmp_path):
    shutil.move(artefact / "pe", tmp_path / "pe")
    (artefact / "pe").symlink_to(tmp_path / "pe")
    assert "pe/000.bin: expected a plain file, got a link" in verify(artefact).problem


def test_folders_that_nobody_listed_are_refused(artefact):
    artefact.joinpath("pe", *["d"] * 300).mkdir(parents=True)
    assert "pe/d: expected only files that the manifest lists" in verify(artefact).problem


def test_manifests_that_no_parser_likes(artefact):
    manifest = json.loads((artefact / MANIFEST).read_bytes())
    utf_16 = json.dumps(manifest).encode("utf-16-le")
    for text in (utf_16, b"[" * 100_000, b"null", b"5", b"\xff", b'{"files": {"x": {"bytes": 1e999, "sha256": ""}}}'):
        assert "JSON with the fields of a manifest" in sealed(artefact, text)
    for entry in ({"bytes": True, "sha256": ""}, {"bytes": 1, "sha256": 5}, {"bytes": 1}, None):
        table = {**manifest, "files": {**manifest["files"], "dram.bin": entry}}
        assert "JSON with the fields of a manifest" in sealed(artefact, json.dumps(table).encode())
    long = {**manifest, "files": {**manifest["files"], "a" * 5000: manifest["files"]["dram.bin"]}}
    assert "paths inside the directory" in sealed(artefact, json.dumps(long).encode())


def test_a_file_larger_than_memory_is_not_read(artefact):
    with open(artefact / "dram.bin", "ab") as file:
        file.truncate(1 << 40)
    assert "dram.bin: expected at most 1073741824 bytes" in verify(artefact).problem


def test_a_trace_in_tensors():
    tokens, signal = np.array([[1, 2]]), np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    trace = StoredTrace(tokens, {"a.y": signal, "b.c": signal + 1}, {"b.c": signal[:, 0]}, {"a.y": "graded"}, "g", "s")
    data = trace_tensors(trace)
    again = read_trace_tensors(data, "here")
    assert all(trace_tensors(trace) == data for _ in range(20))
    assert np.array_equal(again.tokens, tokens) and np.array_equal(again.signals["b.c"], signal + 1)
    assert np.array_equal(again.state["b.c"], signal[:, 0])
    assert (again.kinds, again.graph, again.simulator) == ({"a.y": "graded"}, "g", "s")
    wrong = [
        StoredTrace(tokens + 0.5, {}, {}, {}, "", ""),
        StoredTrace(tokens[0], {}, {}, {}, "", ""),
        StoredTrace(tokens, {"a.y": signal[:, :1]}, {}, {}, "", ""),
        StoredTrace(tokens, {}, {}, {}, 5, ""),
    ]
    for damaged in (b"", data[:50], b"\xff" * 8 + data[8:], *map(trace_tensors, wrong)):
        with pytest.raises(FormatError, match="here: expected"):
            read_trace_tensors(damaged, "here")


def test_tokens_out_of_range_are_reported(artefact):
    trace = read_trace_tensors(open_artifact(artefact).read(TRACE), TRACE)
    other = StoredTrace(trace.tokens + 7, trace.signals, {}, {}, trace.graph, trace.simulator)
    (artefact / TRACE).write_bytes(trace_tensors(other))
    reseal(artefact)
    assert "token ids from 0 to 6" in verify(artefact).problem
