"""The program's bytes, and its stack at its deepest."""

import pytest

from rheobase.backends.exporters.spinnaker2 import firmware
from rheobase.backends.exporters.spinnaker2.firmware import memory
from rheobase.spiking.errors import FormatError

needs_compiler = pytest.mark.skipif(firmware.missing_to_compile() is not None, reason="no compiler for the Cortex-M4F")


def graph(*calls: tuple[str, str], **frames: int) -> str:
    nodes = [f'node: {{ title: "{n}" label: "{n}\\nx.c:1:1\\n{size} bytes (static)" }}' for n, size in frames.items()]
    return "\n".join([*nodes, *(f'edge: {{ sourcename: "{a}" targetname: "{b}" label: "" }}' for a, b in calls)])


def test_the_deepest_path_by_hand():
    frames, calls = {}, {}
    text = graph(("a", "b"), ("a", "c"), ("c", "__indirect_call"), a=8, b=100, c=40) + "\n"
    memory.read(text + graph(**{"/src/main.c:send": 72}), frames, calls)
    assert memory.depth("a", frames, calls) == (120, ("a", "c", "send"))


def test_what_has_no_bound_is_refused():
    frames, calls = {}, {}
    memory.read(graph(("a", "b"), ("b", "a"), a=8, b=8), frames, calls)
    with pytest.raises(FormatError, match="a > b > a: .*got recursion"):
        memory.depth("a", frames, calls)
    with pytest.raises(FormatError, match="memcpy: .*not ours"):
        memory.depth("memcpy", frames, calls)
    with pytest.raises(FormatError, match="fixed size, got dynamic"):
        memory.read(graph(a=8).replace("static", "dynamic"), frames, calls)


@needs_compiler
def test_the_program_fits_an_element():
    found = memory.footprint()
    script = (firmware.FOLDER / "pe.ld").read_text()
    assert all(f"LENGTH = {size:#x}" in script for size in (memory.CODE, memory.DATA, memory.STACK))
    assert 1_000 < found.code <= memory.CODE and 0 < found.data <= memory.DATA
    assert memory.EXCEPTION_FRAME < found.stack <= memory.STACK // 4
    assert found.deepest[0] == "reset" and "exception" in found.deepest
