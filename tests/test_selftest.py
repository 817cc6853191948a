"""The self-test that a board's owner runs first, and the stub of the board's machine."""

import dataclasses
import subprocess

import numpy as np
import pytest

from rheobase.backends.artifact import open_artifact
from rheobase.backends.exporters.spinnaker2 import firmware
from rheobase.backends.exporters.spinnaker2.firmware import selftest
from rheobase.backends.exporters.spinnaker2.image import KINDS
from rheobase.spiking.errors import FormatError

needs_compiler = pytest.mark.skipif(firmware.missing_to_compile() is not None, reason="no compiler for the Cortex-M4F")
needs_qemu = pytest.mark.skipif(firmware.missing() is not None, reason=f"{firmware.missing()} is not installed")


def test_every_kind_of_element_is_there_and_does_something():
    tests = selftest.cases()
    assert [KINDS[t.image.kind] for t in tests] == ["embedding", "egru", "head", "program"]
    for test in tests:
        assert test.expected.shape == (selftest.TOKENS, 2) and len(np.unique(test.expected[:, 0])) >= 7
    assert selftest.header(tests) == selftest.header(selftest.cases())


@needs_qemu
def test_the_self_test_passes_on_an_emulated_cortex_m4f(tmp_path):
    assert selftest.run(selftest.compile_selftest(tmp_path / "selftest.elf")) == 4 * selftest.TOKENS


@needs_qemu
@pytest.mark.parametrize(("case", "tick", "which"), [(0, 1, 1), (1, 6, 0), (3, 8, 0)])
def test_one_wrong_hash_fails_it_at_its_tick(tmp_path, case, tick, which):
    tests = selftest.cases()
    tests[case].expected[tick - 1, which] ^= 1
    elf = selftest.compile_selftest(tmp_path / "selftest.elf", tests)
    with pytest.raises(FormatError, match=f"self-test, case {case}: .* got another at tick {tick};"):
        selftest.run(elf)


@needs_qemu
def test_an_image_that_is_refused_fails_it(tmp_path):
    tests = selftest.cases()
    image = dataclasses.replace(tests[2].image, fields={**tests[2].image.fields, "units": 9999})
    tests[2] = dataclasses.replace(tests[2], image=image)
    with pytest.raises(FormatError, match="self-test, case 2: .* got an image refused"):
        selftest.run(selftest.compile_selftest(tmp_path / "selftest.elf", tests))


@needs_compiler
def test_the_board_s_sources_compile_as_they_are(tmp_path):
    (tmp_path / selftest.DATA).write_text(selftest.header(selftest.cases()))
    for name in (*firmware.KERNELS, "main", "selftest", "board"):
        argv = [*firmware.FLAGS, "-DS2LM_BOARD", f"-I{tmp_path}", "-c", str(firmware.FOLDER / f"{name}.c")]
        subprocess.run([firmware.COMPILER, *argv, "-o", str(tmp_path / f"{name}.o")], check=True)
    declared = set(_functions((firmware.FOLDER / "s2_hal.h").read_text()))
    assert declared == set(_functions((firmware.FOLDER / "board.c").read_text())) and len(declared) == 6


def _functions(text: str) -> list[str]:
    return [
        line.partition("(")[0].split()[-1].lstrip("*")
        for line in text.splitlines()
        if " hal_" in line[:25] or " *hal_" in line[:25]
    ]


@needs_compiler
def test_an_artefact_holds_what_a_board_s_owner_compiles(small_image, tmp_path):
    listed = {n.removeprefix("csrc/") for n in open_artifact(small_image).manifest["files"] if n.startswith("csrc/")}
    assert listed == set(selftest.sources()) and {"board.c", "selftest.c", selftest.DATA, "pe.ld"} <= listed
    folder = small_image / "csrc"
    for program in ("main", "selftest"):
        names = [f"{name}.c" for name in (*firmware.KERNELS, program, "qemu")]
        argv = [*firmware.FLAGS, "-Wl,-T,pe.ld", "-o", str(tmp_path / f"{program}.elf"), *names, "-lgcc"]
        subprocess.run([firmware.COMPILER, *argv], cwd=folder, check=True)
    if firmware.missing() is None:
        assert selftest.run(tmp_path / "selftest.elf") == 4 * selftest.TOKENS
