"""The py-spinnaker2 bundle: its emulator against published traces, its rules, its network, its script."""

import json
import subprocess
import sys
from types import SimpleNamespace

import nir
import numpy as np
import pytest
from spikegpts import TEXT, model_of

from rheobase.backends import export, verify
from rheobase.backends.artifact import reseal
from rheobase.backends.exporters.pyspinnaker2 import emulate
from rheobase.backends.exporters.pyspinnaker2.lint import lint
from rheobase.backends.exporters.pyspinnaker2.words import CONFIG
from rheobase.cli import run
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import Add, CubaLIFCell, Edge, EventGraph, Frames, LIFCell, Linear, Node
from rheobase.spiking.tally import BINARY, DENSE

# paper/01_lif of NIR's repository (BSD-3), by py-spinnaker2's Brian2 backend; voltages over 102.02, and input spikes.
# lif_spinnaker2.csv of commit 9149719: FORWARD, ZERO.  Of commit 8dc8ffc: before the two fields were there.
SCALE, TICKS, SPIKES = 102.02, 1000, [460, 510, 710, 760]
INPUT = 10 * np.array([6, 22, 27, 31, 32, 35, 37, 40, 41, *range(43, 54), *range(67, 79), 84, 85])
FORWARD = (102, 0.96, 255.05, False, {
    429: 9.172145877850002016e-01, 430: 1.880329944600151792e00, 431: 1.805116706468642418e00,
    440: 2.249908394189964245e00, 450: 2.495616154116440111e00, 459: 1.728298679579969077e00, 460: 0.0, 469: 0.0,
    470: 9.998039600078416633e-01, 480: 1.664506113642068907e00, 490: 2.106421699816096726e00,
    500: 2.400221538188516135e00, 510: 0.0, 520: 9.998039600078416633e-01, 853: 1.557192753309783795e00,
    900: 2.286071822022253675e-01, 999: 4.017362122237558633e-03,
})  # fmt: skip
EARLIER = (4, float(np.exp(np.float32(-0.04))), 0.1 * SCALE, True, {
    59: 0.0, 60: 3.920799843168006754e-02, 61: 3.767063327453529925e-02, 220: 3.927314544485386444e-02,
    270: 4.452305798549936744e-02, 310: 4.819707220470848680e-02, 320: 7.151548311189495633e-02,
    350: 6.074809005285572439e-02, 430: 7.466767810119577520e-02, 450: 9.904031695995199613e-02,
    460: 5.596754742598081776e-03, 461: 5.377303200093355891e-03, 500: 9.604644856726314572e-02,
    510: 3.589903438009381994e-03, 670: 3.945613833945161436e-02, 710: 2.882561299280069107e-03,
    760: 3.222576104575443356e-03, 850: 6.956044058477833802e-02, 999: 1.794615532849055028e-04,
})  # fmt: skip


@pytest.mark.parametrize("trace", [FORWARD, EARLIER], ids=["reset to 0", "reset by subtraction"])
def test_the_emulator_gives_the_published_traces_to_the_last_bit(trace):
    weight, alpha, threshold, subtract, voltages = trace
    unit = SimpleNamespace(name="0", size=1, threshold=[threshold], alpha_decay=[alpha], i_offset=[0.0],
                           subtract=subtract)  # fmt: skip
    line = np.zeros((TICKS + 1, 1), bool)
    line[INPUT] = True
    synapse = SimpleNamespace(pre="in", post="0", weight=np.array([[weight]], np.int8))
    fired, v = emulate.run([unit], [synapse], {"in": line}, TICKS + 1)["0"]
    assert (np.nonzero(fired[1:, 0])[0] == SPIKES).all(), "the trace is shifted by a tick"
    published = np.array(list(voltages.values()))
    assert v[1:][list(voltages), 0] / SCALE == pytest.approx(published, rel=1e-15, abs=1e-18)
    single = emulate.run([unit], [synapse], {"in": line}, TICKS + 1, np.float32)["0"]
    assert (single[0] == fired).all() and not (single[1][1:][list(voltages), 0] / SCALE == published).all()


def layered(*, loop=False, skip=False, v_reset=None, fire=">", bias=False, kind=BINARY, cell=None, back=1):
    """Two layers of LIF units on 6 lines, whose weights are int8 over a power of two: the machine's numbers exactly."""
    rng = np.random.default_rng(3)
    shapes = {"first": (6, 8), "second": (8, 5), "within": (8, 8), "across": (6, 5), "home": (5, 8)}
    arrays = {name: rng.integers(-100, 128, shape) / 64.0 for name, shape in shapes.items()}
    for array in arrays.values():
        array[0, 0] = 127 / 64
    arrays["bias"] = np.full(8, 0.25)
    unit = LIFCell(tau=2.0, theta=1.5, v_reset=v_reset, decay_input=False, fire=fire)
    nodes = [Node("frames", Frames((1, 2, 3), kind)), Node("a", cell or unit), Node("b", unit)]
    edges = []

    def product(name, source, kind, target, delay=0):
        weight = arrays[name]
        nodes.append(Node(name, Linear(), {"weight": name} | ({"bias": "bias"} if bias and name == "first" else {})))
        edges.append(Edge(source, f"{name}.x", kind, weight.shape[:1], delay))
        if target:
            edges.append(Edge(f"{name}.out", target, DENSE, weight.shape[1:]))

    def both(name, target, size):
        nodes.append(Node(name, Add()))
        edges.append(Edge(f"{name}.out", target, DENSE, (size,)))

    within, across, home = loop is True, skip, loop == "long"
    product("first", "frames.out", kind, "a.sum.a" if within or home else "a.x")
    product("second", "a.s", BINARY, "b.sum.a" if across else "b.x")
    if within or home:
        both("a.sum", "a.x", 8)
        product(*(("within", "a.s") if within else ("home", "b.s")), BINARY, "a.sum.b", back)
    if across:
        both("b.sum", "b.x", 5)
        product("across", "frames.out", kind, "b.sum.b")
    return EventGraph(tuple(nodes), tuple(edges), arrays, {"out": "b.s"})


def frames(steps=50):
    return (np.random.default_rng(5).random((1, steps, 1, 2, 3)) < 0.3).astype(np.float64)


@pytest.mark.parametrize("settings", [
    {}, {"loop": True}, {"v_reset": 0.0, "loop": True}, {"fire": ">="}, {"skip": True},
    {"cell": CubaLIFCell(beta=0.5, theta=1.5, v_reset=None)},
])  # fmt: skip
def test_a_network_of_whole_weights_spikes_as_its_graph_does(settings, tmp_path):
    """`skip`: spikes from outside reach both layers, by a spike list for each depth."""
    made = export(layered(**settings), "pyspinnaker2", tmp_path / "bundle", calibration=frames())
    report = verify(tmp_path / "bundle")
    assert report.ok and report.mismatches == 0 and report.compared == 52 * 13, report
    for spikes in made.manifest["spikes"].values():
        assert spikes["graph"] == spikes["emulator"] > 10 and spikes["differ"] == 0
    assert made.manifest["coverage"]["second"] == "projection" and made.manifest["coverage"]["b"] == "population"


@pytest.mark.parametrize(("settings", "said"), [
    ({"loop": "long"}, "cycles with a delay for each projection"),
    ({"v_reset": 0.5}, "v_reset 0.5"),
    ({"v_reset": 0.0, "cell": LIFCell(tau=2.0, theta=1.5, v_reset=None)}, "one reset"),
    ({"cell": CubaLIFCell(alpha=0.5, v_reset=None), "v_reset": 0.5}, "a synapse of its own"),
])  # fmt: skip
def test_what_the_machine_would_step_otherwise_is_refused(settings, said, tmp_path):
    with pytest.raises(UnsupportedError, match=said):
        export(layered(**settings), "pyspinnaker2", tmp_path / "bundle", calibration=frames())
    assert not (tmp_path / "bundle").exists()


def test_dense_values_are_no_spikes_and_the_layer_that_they_feed_is_named(tmp_path):
    made = export(layered(kind=DENSE), "pyspinnaker2", tmp_path / "bundle", calibration=frames())
    place = made.manifest["coverage"]
    assert place["a"] == (
        "outside: LIFCell, fed by products of other than binary spikes, its spikes are in the spike list"
    )
    assert (place["b"], place["first"]) == ("population", "outside: Linear")
    assert made.manifest["notes"][0].endswith("1 of 2 layers of LIF units")
    with pytest.raises(ConfigError, match="calibration"):
        export(layered(), "pyspinnaker2", tmp_path / "other")


def test_a_bias_acts_before_the_first_step_and_that_is_recorded(tmp_path):
    made = export(layered(bias=True), "pyspinnaker2", tmp_path / "bundle", calibration=frames())
    (early,) = [d for d in made.manifest["deviations"] if d["field"] == "bias"]
    assert early["node"] == "a" and early["bound"] == pytest.approx(0.25 / 1.5), "one tick of it, over theta"


def test_a_language_model_s_layers_are_inside_or_named(tmp_path):
    model = model_of()
    made = export(model, "pyspinnaker2", tmp_path / "bundle", calibration=TEXT)
    assert set(made.manifest["coverage"]) == {n.name for n in model.lower().nodes}
    inside = [name for name, place in made.manifest["coverage"].items() if place == "population"]
    assert inside == ["blocks.0.ffn.lif_h", "blocks.1.ffn.lif_h"] and verify(tmp_path / "bundle").ok
    with pytest.raises(UnsupportedError, match="a TernaryLIFCell"):
        export(model_of(ternary=True), "pyspinnaker2", tmp_path / "other", calibration=TEXT)


ONE = np.ones(1)
LIF = nir.LIF(tau=ONE, r=ONE, v_leak=0 * ONE, v_threshold=ONE, v_reset=0 * ONE)
CUBA = nir.CubaLIF(ONE, ONE, ONE, ONE, ONE, v_reset=0 * ONE)
WHOLE = nir.Linear(np.array([[3.0]]))
SOUND = {"in": nir.Input({"input": np.array([1])}), "w": WHOLE, "lif": LIF,
         "out": nir.Output({"output": np.array([1])})}  # fmt: skip
WIRES = [("in", "w"), ("w", "lif"), ("lif", "out")]
RULES = CONFIG | {"reset": "ZERO"}


def conv():
    return nir.Conv2d((1, 1), np.ones((1, 1, 1, 1)), 1, 0, 1, 1, np.zeros(1))


@pytest.mark.parametrize(("nodes", "edges", "config", "said"), [
    ({"t": nir.Threshold(ONE)}, [], {}, "Threshold is not known"),
    ({"g": nir.NIRGraph.from_list(nir.Linear(np.ones((1, 1))), LIF)}, [], {}, "a graph within the graph"),
    ({"w2": WHOLE}, [("w", "w2"), ("w2", "lif")], {}, "two products in a row"),
    ({}, [("w", "out")], {}, "feeds no neuron"),
    ({}, [("in", "lif")], {}, "spikes without a product"),
    ({}, [("lif", "lif")], {}, "spikes without a product"),
    ({"lif": nir.LIF(ONE, ONE, 0 * ONE, ONE, v_reset=ONE)}, [], {}, "v_reset is ignored"),
    ({"w": nir.Linear(np.array([[128.0]]))}, [], {}, "weights beyond 127"),
    ({"w": nir.Linear(np.array([[0.5]]))}, [], {}, "not whole"),
    ({"w": nir.Affine(3 * np.ones((1, 1)), ONE), "w2": nir.Affine(3 * np.ones((1, 1)), ONE)},
     [("lif", "w2"), ("w2", "lif")], {}, "only the last is taken"),
    ({"c": conv()}, [("in", "c"), ("c", "lif")], {"conn_delay": 1}, "conn_delay 0"),
    ({"c": conv(), "cuba": CUBA}, [("c", "cuba")], {}, "into a CubaLIF"),
    ({}, [], {"reset": "HALF"}, "reset is 'HALF'"),
    ({}, [], {"dt": None}, "dt is missing"),
    ({f"many{i}": nir.IF(np.ones(256), np.ones(256), np.zeros(256)) for i in range(148)}, [], {}, "149 elements"),
])  # fmt: skip
def test_each_rule_of_s2_nir_is_broken_once(nodes, edges, config, said):
    assert lint(SOUND, WIRES, RULES) == []
    config = {key: value for key, value in (RULES | config).items() if value is not None}
    (found,) = lint(SOUND | nodes, WIRES + edges, config)
    assert said in found


STUB = '''
"""As much of py-spinnaker2 as a script needs, unit by unit in Python's numbers."""
class Population:
    def __init__(self, size, neuron_model, params, name, record=()):
        assert neuron_model in ("spike_list", "lif_no_delay")
        self.size, self.model, self.params, self.name, self.record = size, neuron_model, params, name, record
    def get_spikes(self):
        assert "spikes" in self.record
        return self.spikes
class Projection:
    def __init__(self, pre, post, connections):
        assert all(-127 <= w <= 127 and d == 0 for _, _, w, d in connections)
        self.pre, self.post, self.connections = pre, post, connections
class Network:
    def __init__(self, name):
        self.populations, self.projections = [], []
    def add(self, *parts):
        for part in parts:
            (self.projections if isinstance(part, Projection) else self.populations).append(part)
class Brian2Backend:
    def run(self, net, timesteps):
        last, v = set(), {}
        for p in net.populations:
            p.spikes = {i: [] for i in range(p.size)}
        for t in range(timesteps):
            sums = {}
            for q in net.projections:
                for i, j, w, _ in q.connections:
                    if (q.pre.name, i) in last:
                        sums[q.post.name, j] = sums.get((q.post.name, j), 0) + w
            last = set()
            for p in net.populations:
                for i in range(p.size):
                    if p.model == "spike_list":
                        fired = t in p.params.get(i, ())
                    else:
                        key, theta = (p.name, i), float(p.params["threshold"][i])
                        h = float(p.params["alpha_decay"][i]) * v.get(key, 0.0) + sums.get(key, 0)
                        h += float(p.params["i_offset"][i])
                        fired = h > theta
                        v[key] = (h - theta if "subtraction" in p.params["reset"] else 0.0) if fired else h
                    if fired:
                        last.add((p.name, i))
                        p.spikes[i].append(t)
'''


def test_the_script_runs_with_a_stub_of_py_spinnaker2_and_finds_a_changed_weight(tmp_path):
    (tmp_path / "spinnaker2").mkdir()
    (tmp_path / "spinnaker2" / "__init__.py").write_text("")
    for name in ("snn", "brian2_sim"):
        (tmp_path / "spinnaker2" / f"{name}.py").write_text(STUB)
    (tmp_path / "spinnaker2" / "brian2_sim.py").write_text("from spinnaker2.snn import Brian2Backend\n")
    folder = tmp_path / "bundle"
    export(layered(loop=True, bias=True), "pyspinnaker2", folder, calibration=frames())
    command = [sys.executable, "-W", "error", folder / "run_s2.py"]
    told = {"capture_output": True, "text": True, "env": {"PYTHONPATH": str(tmp_path)}}
    done = subprocess.run(command, **told)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" 0 differ") == 2 and " 0 spikes expected" not in done.stdout
    with np.load(folder / "weights.npz") as file:
        weights = dict(file)
    weights["0"][1] = 127
    np.savez(folder / "weights.npz", **weights)
    done = subprocess.run(command, **told)
    assert done.returncode == 1 and "; first: unit " in done.stdout


def test_verify_names_what_was_changed(tmp_path):
    folder = tmp_path / "bundle"
    export(layered(loop=True), "pyspinnaker2", folder, calibration=frames())
    assert lint((net := nir.read(folder / "net.nir")).nodes, net.edges, RULES | {"reset": "SUBTRACT"}) == []
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    said = json.loads((folder / "conversion.json").read_text())

    def problem():
        reseal(folder)
        report = verify(folder)
        for path, data in whole.items():
            path.write_bytes(data)
        assert not report.ok
        return report.problem

    said["populations"]["a"]["threshold"][0] = 60.0
    (folder / "conversion.json").write_text(json.dumps(said))
    assert "units and ticks differ" in problem()
    net.nodes["b"].tau = net.nodes["b"].tau * 2
    nir.write(folder / "net.nir", net)
    assert "threshold of b differs" in problem()
    (folder / "weights.npz").write_bytes(b"PK")
    assert "files that fit together" in problem()
    (folder / "weights.npz").write_bytes(b"PK")
    assert "weights.npz" in verify(folder).problem, "not resealed: its hash is another"
    (folder / "weights.npz").write_bytes(whole[folder / "weights.npz"])
    (folder / "run_s2.py").write_text("print('0 spikes differ')")
    reseal(folder)
    assert verify(folder).notes[-1] == "not this version's, read before you run: run_s2.py"


def test_on_the_command_line_an_egru_is_refused_in_one_line(small_run, tmp_path, capsys):
    assert run(["export", str(small_run.folder), "--to", "pyspinnaker2", "--out", str(tmp_path / "x")]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(
        "rheobase: pyspinnaker2: expected LIF units fed by products of binary spikes, got no LIF"
    )
