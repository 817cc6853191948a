"""SpikeGPT on processing elements: its sections, and the same integers from the graph, NumPy, C and QEMU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikegpts import FORMS, TEXT, model_of

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import open_artifact, write_artifact
from rheobase.backends.exporters.spinnaker2 import emulate, firmware, host, load_images, partition
from rheobase.backends.exporters.spinnaker2.image import FIELDS, HEAD, PROGRAM, REGIONS, Image, key
from rheobase.backends.exporters.spinnaker2.machine import Machine, ProgramElement
from rheobase.backends.exporters.spinnaker2.partition import build
from rheobase.backends.exporters.spinnaker2.program import OPS, Sizes, check
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.exporters.spinnaker2.samples import random_element
from rheobase.backends.exporters.spinnaker2.sections import plan_of
from rheobase.spiking.errors import FormatError, UnsupportedError

needs_c = pytest.mark.skipif(host.library() is None, reason="no C compiler at install")
needs_qemu = pytest.mark.skipif(firmware.missing() is not None, reason=f"{firmware.missing()} is not installed")


@pytest.fixture(scope="module", params=FORMS)
def integer(request):
    return quantise(model_of(**FORMS[request.param]).lower(), TEXT)[0]


def test_a_block_s_sections():
    graph = quantise(model_of().lower(), TEXT)[0]
    plan = plan_of(graph)
    assert plan.embedded == "blocks.0.ln0.out" and plan.head.name == "head"
    own = [s for s in plan.sections if s.nodes[0].name.startswith("blocks.1")]
    assert [{n.name.removeprefix("blocks.1.") for n in s.nodes} for s in own] == [
        {"ln1", *(f"att.{part}_{x}" for part in ("time_mix", "lif") for x in "kvr")},
        {"att.key", "att.value", "att.receptance", "att.wkv", "att.gate", "att.product", "att.lif_o"},
        {"att.output", "lif1.add"},
        {"ln2", *(f"ffn.{part}_{x}" for part in ("time_mix", "lif") for x in "kr")},
        {"ffn.key", "ffn.lif_h"},
        {"ffn.receptance", "ffn.value", "ffn.gate", "ffn.product", "lif2.add"},
    ]
    assert [s.units for s in own] == [24, 24, 24, 24, 96, 24]
    moves = sum(i.op == OPS.index("move") for s in plan.sections for i in s.program)
    assert moves == len({e.source for e in graph.edges if e.delay})
    assert [sorted(s.sends) for s in own[:2]] == [
        [f"blocks.1.att.lif_{x}.s" for x in "krv"],
        ["blocks.1.att.lif_o.s"],
    ]


@pytest.mark.parametrize("bytes_", [partition.PE_BYTES, 6000])
def test_the_packed_sections_compute_the_graph_s_integers(integer, bytes_, monkeypatch):
    """Every signal of every step, on one PE a section and on several."""
    monkeypatch.setattr(partition, "PE_BYTES", bytes_)
    made = build(integer)
    assert (len(made.placed) > len(plan_of(integer).sections)) == (bytes_ == 6000)
    names, tokens = list(made.probes.values()), TEXT[0, :60]
    run = simulate(integer, tokens[None], on="integer", record=names)
    machine = Machine(*made.images)
    logits, hashes = [], []
    for t, token in enumerate(tokens.tolist()):
        row, seen = machine.step(token)
        for probe, name in made.probes.items():
            assert np.array_equal(seen[probe], run.recorded[name][0, t]), (name, t)
        logits.append(row)
        hashes.append(machine.hashes())
    assert np.array_equal(logits, run.outputs["logits"][0])
    if host.library():
        for joined in (False, True):
            got = host.Host(*made.images, joined=joined).run(tokens)
            assert np.array_equal(got[0], logits) and np.array_equal(got[1], np.array(hashes, np.uint32))


@needs_qemu
def test_every_section_on_an_emulated_cortex_m4f(integer):
    machine = Machine(*build(integer).images, record=True)
    found = emulate.alone(machine, TEXT[0, :8])
    assert found.different == 0 and found.ticks == 8 * (len(machine.elements) - 1), found


@needs_qemu
@pytest.mark.slow
def test_a_whole_spikegpt_with_a_process_a_section():
    made = build(quantise(model_of(embedding=64).lower(), TEXT)[0])
    found = emulate.together(Machine(*made.images), np.tile(TEXT[0], 2)[:200])
    assert (found.ticks, found.different) == (200 * len(made.placed), 0), found


def test_export_and_verify(tmp_path):
    model = model_of()
    made = export(model, "spinnaker2", tmp_path / "image", calibration=TEXT)
    report = verify(tmp_path / "image")
    assert report.ok and report.mismatches == 0 and report.compared > 100 * 24 * 40, report
    manifest = open_artifact(tmp_path / "image").manifest
    assert manifest["coverage"]["blocks.0.att.wkv"] == "PEs of blocks.0.att.receptance"
    assert manifest["coverage"]["blocks.0.ln0"] == manifest["coverage"]["head"] == "dram"
    assert made.manifest["arithmetic"]["formats"]["blocks.0.att.lif_k.s"] == [8, 0]
    with pytest.raises(UnsupportedError, match="expected a SpikeGPT with its head in DRAM"):
        export(model, "spinnaker2", tmp_path / "other", calibration=TEXT, dram=False)


def test_a_model_that_needs_more_chips_says_so():
    graph = quantise(model_of(embedding=128, depth=1, binary_embedding=False).lower(), TEXT)[0]
    needed = len(build(graph).placed)
    with pytest.raises(UnsupportedError, match="expected at most 0 processing elements"):
        build(graph, chips=0)
    assert needed == len(build(graph, chips=4).placed) < 10


@needs_c
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["none", "some", "all"]))
@settings(max_examples=60, deadline=None)
def test_every_op_agrees_in_c(seed, extreme, events):
    image, program = random_element(seed, extreme=extreme)
    assert {OPS[i.op] for i in program} == set(OPS)
    numpy, c = ProgramElement(image, "pe"), host.Alone(image)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        for stream, size, low, high in ((0, 7, -16384, 16385), (1, 8, -32768, 32768)):
            sent = {"none": rng.permutation(0), "some": rng.permutation(size)[:3], "all": np.arange(size)}[events]
            values = rng.choice([low, high - 1], len(sent)) if extreme else rng.integers(low, high, len(sent))
            numpy.receive((key(stream, 0) + sent, values))
            c.receive(key(stream, 0) + sent, values)
        own, _ = numpy.tick()
        keys, payloads, hash_ = c.tick()
        assert hash_ == numpy.hash
        assert np.array_equal(keys, own[0]) and np.array_equal(payloads, own[1])


def test_programs_of_what_is_not_there_are_refused_by_both_readers():
    image, program = random_element(0)
    sizes = Sizes(21, len(image.regions["factors"]), 1, [8], 7, True, True)
    for format_ in (64, -64):
        good = [*program[:8], program[8]._replace(s0=format_, s1=format_, s2=format_), *program[9:]]
        assert check(good, sizes) is None
        if host.library():
            host.check(Image.of(PROGRAM, image.fields, {**image.regions, "program": np.array(good)}).pack(), "pe")
    assert check(program, sizes._replace(vectors=[(1 << 14) - 1])) is None
    assert check(program, sizes._replace(vectors=[1 << 14])) == "eps of norm"
    for at, change in (
        (0, {"op": len(OPS)}),
        (0, {"out": 21}),
        (0, {"port": 0}),
        (0, {"port": 2}),
        (1, {"factor": len(image.regions["factors"]) - 1}),
        (1, {"s1": 0}),
        (1, {"s2": -1}),
        (2, {"port": 1}),
        (4, {"s0": 32}),
        (4, {"factor": -1}),
        (8, {"s0": 30}),
        (8, {"s0": 64, "s1": 64, "s2": 65}),
        (8, {"s0": -64, "s1": -64, "s2": -65}),
        (14, {"s1": -1}),
        (14, {"s0": 21}),
        (17, {"s0": 0}),
        (17, {"s0": 0xFD}),
    ):
        wrong = list(program)
        wrong[at] = wrong[at]._replace(**change)
        assert check(wrong, sizes), (at, change)
        bad = Image.of(PROGRAM, image.fields, {**image.regions, "program": np.array(wrong)})
        with pytest.raises(FormatError, match="pe: expected a program of what there is"):
            ProgramElement(bad, "pe")
        if host.library():
            with pytest.raises(FormatError, match="pe: expected an image that the firmware takes"):
                host.check(bad.pack(), "pe")


def test_more_than_a_thousand_elements_stay_in_order(tmp_path):
    images = [
        Image.of(HEAD, dict.fromkeys(FIELDS[HEAD], 0) | {"unit_lo": number}, dict.fromkeys(REGIONS[HEAD], []))
        for number in range(1002)
    ]
    files = {f"pe/{number:03d}.bin": image.pack() for number, image in enumerate(images)}
    said = dict.fromkeys(("format", "exporter", "version", "graph", "not_claimed"), "")
    _, pes = load_images(write_artifact(tmp_path / "many", files, {**said, "coverage": {}, "deviations": []}))
    assert [image.fields["unit_lo"] for _, image in pes] == list(range(1002))
