"""The firmware: the same integers in NumPy, in C on the host, and on an emulated Cortex-M4F."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheobase.backends import export, verify
from rheobase.backends.exporters.spinnaker2 import emulate, firmware, host, load_images, products
from rheobase.backends.exporters.spinnaker2.image import layout_header
from rheobase.backends.exporters.spinnaker2.machine import Machine, fold
from rheobase.backends.exporters.spinnaker2.partition import build
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.exporters.spinnaker2.samples import random_machine
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import FormatError, ShapeError, UnsupportedError

needs_c = pytest.mark.skipif(host.library() is None, reason="no C compiler at install")
needs_qemu = pytest.mark.skipif(firmware.missing() is not None, reason=f"{firmware.missing()} is not installed")


def by_numpy(machine, tokens):
    rows = [(machine.step(int(t))[0], machine.hashes()) for t in tokens]
    return np.array([r[0] for r in rows]), np.array([r[1] for r in rows], np.uint32)


def test_the_layout_that_the_firmware_reads_is_the_image_s():
    assert (firmware.FOLDER / "layout.h").read_text() == layout_header()


def test_a_hash_by_hand():
    assert fold(np.array([5, -1])) == (5 * 16777619 - 1) % 2**32
    assert fold(np.zeros(0)) == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 900), st.sampled_from([0.0, 0.002, 0.05, 0.4, 1.0]))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_unpacked(seed, rows, width, density):
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((rows, width)) < density, rng.integers(-128, 128, (rows, width)), 0)
    packed = products.pack(weight)
    product = products.unpack("here", packed, rows, width)
    assert all(np.array_equal(product.add(np.array([r]), np.array([1])), weight[r]) for r in range(rows))
    values = rng.integers(-(2**14), 2**14, rows)
    assert np.array_equal(product.add(np.arange(rows), values), values @ weight)
    for r in range(rows):
        targets, kept = product.row(r)
        assert np.array_equal(targets, np.unique(targets))
        assert np.array_equal(np.bincount(targets, kept, width), weight[r])
    size = sum(a.nbytes for a in packed.values())
    load = products.load_of(weight, width)
    assert load.least <= load.bytes(0, width) <= size <= max(weight.size, 1)


def test_gaps_of_more_than_a_byte_by_hand():
    weight = np.zeros((2, 1000), np.int64)
    weight[0, 0], weight[0, 255], weight[0, 999], weight[1, 600] = 1, 2, 3, -4
    packed = products.pack(weight)
    assert packed["gaps"].tolist() == [0, 255, 255, 255, 234, 255, 255, 90]
    assert packed["weight"].tolist() == [1, 2, 0, 0, 3, 0, 0, -4]
    assert packed["rows"].tolist() == [0, 5, 8]
    for name, wrong in (("gaps", [0, 255, 255, 255, 235, 255, 255, 90]), ("rows", [0, 9, 8]), ("rows", [1, 5, 8])):
        with pytest.raises(FormatError, match="here"):
            products.unpack("here", packed | {name: np.array(wrong)}, 2, 1000)


@needs_c
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from([0, 1, 9000]))
@settings(max_examples=40, deadline=None)
def test_numpy_and_c_agree_on_every_hash(seed, extreme, density, zoneout):
    machine, pes = random_machine(seed, extreme=extreme, density=density, zoneout=zoneout)
    tokens = np.random.default_rng(seed).integers(0, 7, 12)
    c = host.Host(None, pes)
    logits, hashes = by_numpy(machine, tokens)
    first, second = c.run(tokens[:5]), c.run(tokens[5:])
    assert np.array_equal(np.concatenate([first[0], second[0]]), logits)
    assert np.array_equal(np.concatenate([first[1], second[1]]), hashes)
    c.reset()
    assert np.array_equal(c.run(tokens)[1], hashes)
    joined = host.Host(None, pes, joined=True)
    first, second = joined.run(tokens[:5]), joined.run(tokens[5:])
    assert np.array_equal(np.concatenate([first[0], second[0]]), logits)
    assert np.array_equal(np.concatenate([first[1], second[1]]), hashes)
    assert joined.events == c.events / 2
    for wrong in (-1, 7):
        with pytest.raises(ShapeError, match=f"token ids from 0 to 6, got {wrong}"):
            c.run([0, wrong, 6])


@needs_c
@pytest.mark.parametrize("dram", [True, False])
def test_a_trained_model_in_c(small_run, tmp_path, dram):
    text = small_run.config.splits().valid[: 2 * 64].reshape(2, 64)
    made = export(small_run.model(), "spinnaker2", tmp_path / "image", calibration=text, dram=dram)
    assert ("dram.bin" in made.manifest["files"]) == dram
    report = verify(tmp_path / "image")
    assert report.ok and "0 differ" in report.notes[0], report
    images = load_images(made)
    logits, hashes = by_numpy(Machine(*images), text[0])
    got = host.Host(*images).run(text[0])
    assert np.array_equal(got[0], logits) and np.array_equal(got[1], hashes)


@needs_c
@pytest.mark.parametrize("other", ["logits", "hashes"])
def test_firmware_that_computes_something_else_fails_the_image(small_image, monkeypatch, other):
    run = host.Host.run

    def one_off(self, tokens):
        found = dict(zip(("logits", "hashes"), run(self, tokens), strict=True))
        found[other][3, 1] += 1
        return tuple(found.values())

    monkeypatch.setattr(host.Host, "run", one_off)
    report = verify(small_image)
    assert not report.ok and report.mismatches == 0 and report.problem.endswith(" of 3 elements, 1 differ")


@needs_c
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["egru", "spikegpt"])
def test_ten_thousand_tokens_in_numpy_and_in_c(small_run, kind):
    text = small_run.config.splits().train[:10_000].astype(np.int64)
    if kind == "egru":
        model = small_run.model()
    else:
        model = SpikeGPT(SpikeGPTConfig(embedding=32, depth=2, placement="spike_fed")).eval()
        model.wake(torch.as_tensor(text[None, :512]))
    made = build(quantise(model.lower(), text[None, :512])[0])
    logits, hashes = by_numpy(Machine(*made.images), text)
    for joined in (False, True):
        got = host.Host(*made.images, joined=joined).run(text)
        assert np.array_equal(got[0], logits) and np.array_equal(got[1], hashes)
    print(f"{kind}: {hashes.size:,} ticks and {logits.size:,} logits compared, none differs")


@needs_c
def test_the_firmware_refuses_what_it_cannot_run():
    _, pes = random_machine(0, density=0.2)
    data = pes[1][1].pack()
    host.check(data, "layer")
    fields = {name: 8 + 4 * i for i, name in enumerate(pes[1][1].fields)}

    def patched(at, value):
        return data[:at] + int(value).to_bytes(4, "little") + data[at + 4 :]

    for damaged, problem in (
        (data[:40], "no image"),
        (patched(0, 0), "no image"),
        (patched(4, 2), "another version"),
        (patched(fields["units"], 2**31), "a field out of range"),
        (patched(fields["units"], 3), "a region of another size"),
        (patched(fields["zoneout"], 2**20), "a field out of range"),
        (patched(56 + 4, len(data)), "a region outside of the image"),
        (patched(56 + 8, 2**32 - 1), "a region outside of the image"),
    ):
        with pytest.raises(FormatError, match=f"layer: expected an image that the firmware takes, got {problem}"):
            host.check(damaged, "layer")


@needs_qemu
@pytest.mark.parametrize("how", [emulate.alone, emulate.together])
def test_every_element_on_an_emulated_cortex_m4f(how):
    for seed, extreme, density in ((1, False, 1.0), (2, True, 0.3), (3, False, 0.0)):
        machine, pes = random_machine(seed, extreme=extreme, density=density)
        found = how(machine, np.random.default_rng(seed).integers(0, 7, 20))
        assert (found.ticks, found.different) == (20 * len(pes), 0), found
        assert all((counts > 0).all() for counts in found.instructions.values())


@needs_qemu
def test_a_flipped_weight_shows_in_the_emulation():
    machine, pes = random_machine(1)
    image = machine.stages[1][0][1]
    image.regions["weight_a"][:] ^= 64
    found = emulate.alone(machine, np.arange(7))
    assert found.different and "layer 0.0" in found.first


@needs_qemu
def test_events_that_differ_under_equal_hashes_show_in_the_emulation(monkeypatch):
    emulated, tick = firmware.emulate, emulate._Process.tick

    def one_off(*args, **kwargs):
        run = emulated(*args, **kwargs)
        run.events["payload"][:1] += 1
        return run

    def all_off(self):
        events, *others = tick(self)
        events = events.copy()
        events["payload"] += 1
        return events, *others

    monkeypatch.setattr(firmware, "emulate", one_off)
    monkeypatch.setattr(emulate._Process, "tick", all_off)
    for how in (emulate.alone, emulate.together):
        machine, pes = random_machine(1)
        found = how(machine, np.arange(7))
        assert found.different >= len(pes) and "token 0, embedding" in found.first


@needs_qemu
def test_the_program_lies_within_the_memory_of_an_element(tmp_path):
    elf = firmware.compile_elf(tmp_path / "pe.elf")
    out = subprocess.run(["arm-none-eabi-nm", str(elf)], capture_output=True, text=True, check=True).stdout
    at = {name: int(address, 16) for address, _, name in (line.split() for line in out.splitlines())}
    assert at["data_load"] <= 0x8000 == at["image_begin"]
    assert at["image_end"] - at["image_begin"] == 93_184
    assert at["bss_end"] <= at["data_guard"] < at["stack_guard"] == 0x1F000 and at["stack_end"] == 0x20000
    with pytest.raises(FormatError, match="pe: expected an image it takes, got its report 1"):
        firmware.emulate(elf, b"nothing of the kind" * 9, firmware.TICK)


def test_tools_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert firmware.missing() == "arm-none-eabi-gcc"
    with pytest.raises(UnsupportedError, match="firmware: expected arm-none-eabi-gcc, to compile it, got none; apt-"):
        firmware.compile_elf(tmp_path / "x")


def test_a_compiler_without_headers_is_told_from_one(monkeypatch, tmp_path):
    """Debian has them in a package of their own, which its compiler only recommends."""
    compiler = tmp_path / "arm-none-eabi-gcc"
    compiler.write_text("#!/bin/sh\ngrep -q stdint && exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert firmware.missing() == "stdint.h of arm-none-eabi-gcc"
    with pytest.raises(UnsupportedError, match="stdint.h of arm.*, got none; .* libnewlib-arm-none-eabi"):
        firmware.compile_elf(tmp_path / "x")
