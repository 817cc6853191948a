"""A run recorded elsewhere against an image: the first element, token and unit that differ."""

import dataclasses
import json
import re

import numpy as np
import pytest
from spikegpts import TEXT, model_of

from rheobase.backends import export, verify
from rheobase.backends.artifact import open_artifact
from rheobase.backends.exporters.spinnaker2 import partition, run_machine
from rheobase.backends.trace import StoredTrace, save_trace
from rheobase.cli import run


def recorded(path, tokens, names=None):
    """What a board that computes the same would have recorded."""
    artifact = open_artifact(path)
    streams = [run_machine(artifact, row) for row in tokens]
    signals = {name: np.concatenate([s[name] for s in streams]).astype(np.int32) for name in streams[0]}
    kept = {name: array for name, array in signals.items() if names is None or name in names}
    return StoredTrace(tokens, kept, {}, {}, artifact.manifest["integer_graph"], "board")


def problem(path, trace, tmp_path):
    save_trace(tmp_path / "board.h5", trace)
    return verify(path, against=tmp_path / "board.h5").problem


@pytest.fixture(scope="module")
def images(small_run, tmp_path_factory):
    """An EGRU and a SpikeGPT, cut over several elements."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "PE_BYTES", 12_000)
        text = small_run.config.splits().valid[: 2 * 64].reshape(2, 64)
        export(small_run.model(), "spinnaker2", folder / "egru", calibration=text, dram=False)
        export(model_of(), "spinnaker2", folder / "spikegpt", calibration=TEXT)
    return folder


TOKENS = np.array([[5, 9, 200, 5, 7], [1, 2, 3, 4, 5]])


def test_the_same_run_has_no_difference(small_image, tmp_path, capsys):
    save_trace(tmp_path / "board.h5", recorded(small_image, TOKENS))
    assert run(["verify", str(small_image), "--against", str(tmp_path / "board.h5")]) == 0
    assert f"{tmp_path / 'board.h5'}: " in capsys.readouterr().out


def test_a_difference_in_an_egru_names_its_element(images, tmp_path, capsys):
    path = images / "egru"
    manifest = open_artifact(path).manifest
    probes = manifest["probes"]
    layer = [e for e in _pes(path) if e["layer"] == probes["0.y"].rpartition(".")[0]]
    assert len(layer) > 2 and manifest["coverage"]["embedding"].startswith("PEs")
    last = layer[-1]
    lo, units = last["units"][0], layer[-1]["units"][1]
    trace = recorded(path, TOKENS)
    place = f"{last['file']} (slice {last['slice']}), stream 1, token 3: "
    # a later signal, and a later token, are planted too: the cause comes first
    for probe, unit in (("0.c", 0), ("0.y", lo + 1)):
        trace.signals[probes[probe]][1, 3, unit] += 7
    trace.signals[probes["embedding"]][0, 4, 2] += 1
    value = trace.signals[probes["0.y"]][1, 3, lo + 1]
    ending = f"unit {lo + 1} of the layer, 1 of the element: expected {value - 7}, got {value}"
    assert problem(path, trace, tmp_path) == f"{place}{probes['0.y']}, {ending}"
    trace.signals[probes["0.q"]][1, 3, 2 * units + lo] += 1
    assert f"{place}{probes['0.q']}, gate g of unit {lo} of the layer, 0 of the" in problem(path, trace, tmp_path)
    trace.signals[probes["embedding"]][1, 2, 4] -= 1
    owner = next(e for e in _pes(path) if e["layer"] == "embedding" and e["units"][0] <= 3 < e["units"][1])
    assert problem(path, trace, tmp_path).startswith(f"{owner['file']} (slice 0), stream 1, token 2: embedding.out")
    assert run(["verify", str(path), "--against", str(tmp_path / "board.h5")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "stream 1, token 2" in error and "look for the cause there" in error


def _pes(path):
    return json.loads((path / "partition.json").read_text())["pes"]


def test_a_difference_is_given_by_fields_too(images, tmp_path, capsys):
    path = images / "egru"
    trace, probes = recorded(path, TOKENS), open_artifact(path).manifest["probes"]
    name = probes["1.q"]
    last = [e for e in _pes(path) if e["layer"] == probes["1.y"].rpartition(".")[0]][-1]
    lo = last["units"][0]
    units = trace.signals[name].shape[-1] // 3
    trace.signals[name][1, 3, 2 * units + lo] += 1
    save_trace(tmp_path / "board.h5", trace)
    assert run(["verify", str(path), "--against", str(tmp_path / "board.h5"), "--json"]) == 1
    table = json.loads(capsys.readouterr().out)
    value = int(trace.signals[name][1, 3, 2 * units + lo])
    own = {"where": last["file"], "slice": last["slice"], "gate": "g", "unit_of_layer": lo, "unit_of_element": 0}
    first = {"step": 3, "node": name, "unit": 2 * units + lo, "expected": value - 1, "got": value, "stream": 1}
    assert table["first"] == first | own and "look for the cause there" in table["error"] and not table["ok"]
    assert (table["mismatches"], table["compared"]) == (1, sum(a.size for a in trace.signals.values()))


@pytest.mark.parametrize("kind", ["u1", "u8", "i2"])
def test_tokens_may_be_any_integers(small_image, tmp_path, kind):
    trace = recorded(small_image, TOKENS)
    assert problem(small_image, dataclasses.replace(trace, tokens=TOKENS.astype(kind)), tmp_path) is None
    assert "integer tokens" in problem(small_image, dataclasses.replace(trace, tokens=TOKENS * 1.0), tmp_path)


def test_a_trace_that_cannot_be_read_is_one_plain_line(small_image, tmp_path, capsys):
    missing = str(tmp_path / "missing.h5")
    assert run(["verify", str(small_image), "--against", missing]) == 1
    assert capsys.readouterr().err == f"rheobase: {missing}: expected a trace in HDF5, got no file; check the path\n"
    save_trace(missing, dataclasses.replace(recorded(small_image, TOKENS), graph="another"))
    assert run(["verify", str(small_image), "--against", missing]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"rheobase: \S+: expected a run of graph \w+, got another; record it anew\n", error)


def test_a_difference_in_a_spikegpt_names_its_element(images, tmp_path):
    path, name = images / "spikegpt", "blocks.1.att.lif_o.s"
    section = [e for e in _pes(path) if e["layer"] == "blocks.1.att.receptance"]
    trace = recorded(path, TOKENS, [name, "head.out"])
    assert set(trace.signals) == {name, "head.out"} and problem(path, trace, tmp_path) is None
    trace.signals["head.out"][0, 4, 11] += 1
    assert "dram.bin, stream 0, token 4: head.out, unit 11" in problem(path, trace, tmp_path)
    lo = section[-1]["units"][0]
    trace.signals[name][0, 4, lo] += 1
    place = f"{section[-1]['file']} (slice {section[-1]['slice']}), stream 0, token 4: {name}, unit {lo} of the layer"
    assert problem(path, trace, tmp_path).startswith(f"{place}, 0 of the element: expected ")


def test_a_run_of_something_else_is_refused_in_one_line(small_image, tmp_path):
    trace = recorded(small_image, TOKENS)
    name = next(iter(trace.signals))
    for change, line in (
        ({"graph": "other"}, "expected a run of graph"),
        ({"signals": {}}, "expected some of the signals"),
        ({"signals": {name + "x": trace.signals[name]}}, "did you mean"),
        ({"signals": {name: trace.signals[name][:, :2]}}, "expected signals [B, T, n] of these tokens"),
        ({"signals": {name: trace.signals[name] * 1.0}}, "got float64"),
        ({"signals": {name: trace.signals[name][..., :2]}}, "expected shape"),
        ({"tokens": TOKENS + 1000}, "expected token ids"),
        ({"tokens": TOKENS[0]}, "expected integer tokens"),
    ):
        found = problem(small_image, dataclasses.replace(trace, **change), tmp_path)
        assert line in found and "\n" not in found, found
