"""The exporter `events`: a file for each spiking output, which other libraries read, and what verify makes of them."""

import json

import event_peers
import numpy as np
import pytest
from test_hand_built_graphs import graph_of

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import MANIFEST, reseal
from rheobase.backends.events import read_edge, write_edge
from rheobase.backends.trace import TRACE
from rheobase.cli import run
from rheobase.models import EGRULM, LSTMLM, EGRULMConfig, LSTMLMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import ConfigError, LossyExportError, UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.graph import GradedLIFCell, TernaryLIFCell
from rheobase.spiking.graph.stored import save_graph

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own
TOKENS = np.random.default_rng(0).integers(0, 99, (2, 40))
PEERS = {"aedat4": ["aedat"], "raw": ["expelliarmus"], "dat": ["expelliarmus"], "es": [], "bs2": [], "h5": []}


@pytest.fixture(scope="module")
def spikegpt():
    config = SpikeGPTConfig(embedding=32, depth=2, placement="spike_fed")
    return SpikeGPT(config).eval().lower()


@pytest.fixture(scope="module")
def egru():
    return EGRULM(EGRULMConfig(embedding=8, layers=(12, 8), thr_mean=0.05)).eval().lower()


@pytest.mark.parametrize("suffix", PEERS)
def test_each_spiking_output_is_a_file_that_other_libraries_read(tmp_path, egru, suffix):
    made, sent = export(egru, "events", tmp_path / "x", calibration=TOKENS, format=suffix), simulate(egru, TOKENS[:1])
    assert made.manifest["edges"].keys() == sent.events.keys() == {"layers.0.y", "layers.1.y"}
    for name, file in made.manifest["edges"].items():
        events, read = sent.events[name], read_edge(made.path / file)
        assert len(events) and np.array_equal(read.to_dense(), np.sign(events.to_dense()))
        for library in PEERS[suffix]:
            t, x, y, p = getattr(event_peers, library)(made.path / file)
            width = json.loads((made.path / f"{file}.json").read_text())["mapping"]["width"]
            assert np.array_equal(np.asarray(t) // 1000, events.step) and np.array_equal(p > 0, events.value > 0)
            assert np.array_equal(np.asarray(y, int) * width + x, events.unit)
    report = verify(made.path)
    assert report.ok and report.compared == 40 * (12 + 8)
    off = [float(np.abs(e.value - np.sign(e.value)).max()) for e in sent.events.values()]
    assert [d["bound"] for d in made.manifest["deviations"]] == off


def test_a_format_with_values_changes_nothing(tmp_path, egru):
    pytest.importorskip("nir")
    made = export(egru, "events", tmp_path / "x", calibration=TOKENS, format="nirdata")
    assert not made.manifest["deviations"] and verify(made.path).ok
    for name, events in simulate(egru, TOKENS[:1]).events.items():
        assert np.array_equal(read_edge(made.path / made.manifest["edges"][name]).to_dense(), events.to_dense())


def test_binary_and_ternary_events_change_in_no_format(tmp_path, spikegpt):
    ternary = graph_of(("n", TernaryLIFCell(theta=0.4), {}, {"x": "e.out"}), output="n.s")
    for graph, tokens in ((spikegpt, TOKENS), (ternary, TOKENS % 5)):
        made = export(graph, "events", tmp_path / graph.hash(), calibration=tokens)
        assert verify(made.path).ok
        deviations = {d["node"] for d in made.manifest["deviations"]}
        kinds = {f"{n.name}.{port}": kind for n in graph.nodes for port, kind in n.op.outputs.items()}
        assert deviations == {name for name in made.manifest["edges"] if kinds[name] == "GRADED"}
    places = made.manifest["coverage"]
    assert places == {"x": "no events", "e": "no events", "n": "00_n.s.aedat4"}


def test_steps_that_are_no_whole_microseconds_are_recorded(tmp_path, egru):
    made = export(egru, "events", tmp_path / "x", calibration=TOKENS, dt_s=1 / 3000)
    assert [d["bound"] for d in made.manifest["deviations"] if d["field"] == "t"] == [5e-7, 5e-7] and verify(
        made.path
    ).ok


@pytest.mark.parametrize("dt_s", [0.0, -1.0, float("nan"), float("inf"), 4294.967295999])
def test_steps_of_no_time_are_refused(tmp_path, egru, dt_s):
    with pytest.raises(LossyExportError, match="events: expected steps of 1 us to an hour"):
        export(egru, "events", tmp_path / "x", calibration=TOKENS, dt_s=dt_s)
    assert not list(tmp_path.iterdir())


def test_another_event_is_found_where_all_hashes_are_right(tmp_path, egru):
    made = export(egru, "events", tmp_path / "x", calibration=TOKENS)
    file = made.path / made.manifest["edges"]["layers.1.y"]
    x = read_edge(file).to_dense()
    x[0, 7, 3] = 0 if x[0, 7, 3] else 1
    write_edge(file, "layers.1.y", Events.from_dense(x), "GRADED")
    assert "hash" in verify(made.path).problem or "bytes" in verify(made.path).problem
    reseal(made.path)
    report = verify(made.path)
    assert (report.ok, report.mismatches) == (False, 1) and report.problem.startswith("step 7, node layers.1.y, unit 3")
    write_edge(file, "layers.1.y", Events.from_dense(x[:, :20]), "GRADED")
    reseal(made.path)
    assert TRACE in verify(made.path).problem


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, egru):
    lstm, out = LSTMLM(LSTMLMConfig(embedding=8, layers=(8,))).eval(), tmp_path / "x"
    loud = graph_of(("n", GradedLIFCell(), {}, {"x": "e.out"}), output="n.s", table=np.full((99, 4), np.inf))
    for error, model, options in (
        (UnsupportedError, lstm, {}),
        (UnsupportedError, loud, {}),
        (UnsupportedError, egru, {"format": "npy"}),
        (ConfigError, egru, {"format": "csv"}),
        (ConfigError, egru, {"calibration": None}),
        (LossyExportError, egru, {"dt_s": 1e-9}),
    ):
        with pytest.raises(error):
            export(model, "events", out, **{"calibration": TOKENS} | options)
    assert not any(tmp_path.iterdir())


def test_the_command_writes_them_of_a_stored_graph(tmp_path, egru, capsys):
    save_graph(tmp_path / "g", egru)
    np.save(tmp_path / "x.npy", TOKENS)
    own = ["--input", str(tmp_path / "x.npy"), "--format", "raw", "--dt", "0.002"]
    assert run(["export", str(tmp_path / "g"), "--to", "events", "--out", str(tmp_path / "x"), *own]) == 0
    assert "outputs: 2" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "x")]) == 0 and run(["inspect", str(tmp_path / "x")]) == 0
    manifest = json.loads((tmp_path / "x" / MANIFEST).read_text())
    sidecar = json.loads((tmp_path / "x" / f"{manifest['edges']['layers.0.y']}.json").read_text())
    assert sidecar["mapping"]["dt_s"] == 0.002
