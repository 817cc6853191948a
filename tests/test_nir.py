"""NIR out and in by ourselves: what is written, rejoined, recorded, refused; files from strangers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nir_nets import FRAMES, HIDDEN, STEPS, X, net

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import open_artifact, reseal
from rheobase.backends.exporters.nir import rejoin
from rheobase.backends.importers.nir import graph_of_nir, import_file
from rheobase.backends.nir_file import read_nir, read_nirdata
from rheobase.models import EGRULM, EGRULMConfig, Gesture, GestureConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking import _hdf5_program, hdf5
from rheobase.spiking.errors import ConfigError, FormatError, RheobaseError, UnsupportedError
from rheobase.spiking.graph import Conv2d, CubaLIFCell, Edge, EventGraph, Frames, LIFCell, Node
from rheobase.spiking.graph.stored import graph_table, load_graph, save_graph
from rheobase.spiking.tally import BINARY, DENSE

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")
TOKENS = np.arange(64)[None] * 7 % 60


def spikegpt(**settings):
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(vocabulary=60, embedding=24, depth=2, placement="spike_fed", **settings)).eval()
    model.wake(torch.from_numpy(TOKENS))
    return model.lower()


def gesture():
    torch.manual_seed(0)
    convolutions = ((4, 3, 1, 1), (6, 3, 2, 0))
    config = GestureConfig(size=(9, 9), convolutions=convolutions, pooled=1, neurons="lif", features=10, units=12)
    return Gesture(config).eval().lower()


GRAPHS = {
    "plain": lambda: (net(), {}),
    "recurrent": lambda: (net(recurrent=True), {"relay": True}),
    "folded in float64": lambda: (double(net(LIFCell(3.3, 0.7, 0.0, False, ">"))), {}),
    "gain in r": lambda: (net(LIFCell(3.0, 0.7, -0.2, True, ">=")), {"gain": "r"}),
    "cuba": lambda: (net(CubaLIFCell(0.5, 0.75, 0.3, 0.7)), {}),
    "no synapse": lambda: (net(CubaLIFCell(0.0, 0.75, 0.3, 0.7, -0.1)), {}),
    "no leak": lambda: (net(LIFCell(float("inf"), 2.0, 0.0, False, ">")), {}),
    "units of their own": lambda: (own_units(net()), {}),
    "spikegpt": lambda: (spikegpt(), {"calibration": TOKENS}),
    "gesture": lambda: (gesture(), {}),
}


def double(graph):
    return EventGraph(
        graph.nodes, graph.edges, {k: a + np.float64(1e-9) for k, a in graph.arrays.items()}, graph.outputs
    )


def own_units(graph):
    """One tau and one theta a unit in the first layer."""
    tau, theta = np.linspace(2, 5, HIDDEN, dtype=np.float32), np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32)
    nodes = [Node(n.name, n.op, {"tau": "tau", "theta": "theta"}) if n.name == "n1" else n for n in graph.nodes]
    return EventGraph(tuple(nodes), graph.edges, {**graph.arrays, "tau": tau, "theta": theta}, graph.outputs)


@pytest.mark.parametrize("which", GRAPHS)
def test_the_exported_directory_verifies_and_joins_again_to_the_same_graph(tmp_path, which):
    graph, options = GRAPHS[which]()
    made = export(graph, "nir", tmp_path / "net", **options)
    report = verify(tmp_path / "net")
    assert report.ok and report.compared > 1000 and report.mismatches == 0 == made.manifest["replay"]["mismatches"]
    again = rejoin(open_artifact(tmp_path / "net"))
    assert again.hash() == graph.hash() and again.arrays.keys() == graph.arrays.keys()


def test_what_nir_cannot_say_lies_beside_and_is_counted(tmp_path):
    graph = gesture()
    manifest = export(graph, "nir", tmp_path / "net").manifest
    inside = {n for n, where in manifest["coverage"].items() if where == "net.nir"}
    assert {"convolutions.0", "neurons.0", "features", "neurons.2"} <= inside
    assert not {"frames", "pools.0", "egru", "readout"} & inside
    weights = sum(graph.arrays[a].size for n in inside for a in graph.node(n).arrays.values())
    total = sum(a.size for a in graph.arrays.values())
    assert manifest["notes"] == [f"{100 * weights / total:.0f} % of weights in NIR ({weights:,} of {total:,})"]


def test_a_threshold_that_is_reached_is_written_as_one_that_is_passed_and_recorded(tmp_path):
    manifest = export(net(LIFCell(2.0, 1.0, 0.0, True, ">=")), "nir", tmp_path / "net").manifest
    assert [(d["node"], d["wanted"], d["bound"]) for d in manifest["deviations"]] == [
        (n, "v >= theta", 0) for n in ("n1", "n2")
    ]
    theta = read_nir(tmp_path / "net/net.nir").nodes["n1"].v_threshold
    assert theta.dtype == np.float32 and (np.nextafter(theta, np.float32(2)) == 1).all() and (theta < 1).all()


def test_the_file_says_what_nir_has_no_word_for(tmp_path):
    export(net(recurrent=True), "nir", tmp_path / "net", dt_s=1e-3)
    file = nir.read(tmp_path / "net/net.nir")
    assert file.metadata["dt"] == 1e-3 and file.metadata["integrator"] == "forward_euler"
    assert file.metadata["inputs"] == {"input": "BINARY"} and "v_reset" in file.metadata["reset"]
    assert {("n1", "wr"), ("wr", "n1")} <= set(file.edges) and (file.nodes["n1"].r == 1).all()
    assert np.allclose(file.nodes["n1"].tau, 4e-3) and np.array_equal(
        file.nodes["wr"].weight / 4, net(recurrent=True).arrays["wr"].T
    )
    export(net(), "nir", tmp_path / "r", gain="r")
    assert (nir.read(tmp_path / "r/net.nir").nodes["n1"].r == 4).all()


def test_the_legacy_form_has_no_v_reset(tmp_path):
    export(net(), "nir", tmp_path / "net", legacy=True)
    with h5py.File(tmp_path / "net/net.nir") as file:
        assert "v_reset" not in file["node/nodes/n1"] and "v_threshold" in file["node/nodes/n1"]
    assert verify(tmp_path / "net").ok
    with pytest.raises(UnsupportedError, match="v_reset = 0 in the legacy form"):
        export(net(LIFCell(2.0, 1.0, 0.1, True, ">")), "nir", tmp_path / "other", legacy=True)


def test_nir_itself_reads_our_events(tmp_path):
    """`.nirdata` by nir's own reader and grid: the spikes of the recorded run, and graded ones with their values."""
    graph = gesture()
    export(graph, "nir", tmp_path / "net")
    data, network = nir.read_data(tmp_path / "net/events.nirdata"), nir.read(tmp_path / "net/net.nir")
    assert data.nodes.keys() <= network.nodes.keys()
    graded = {n: node.observables["spikes"] for n, node in data.nodes.items() if n.startswith("input")}
    (pixels,) = [o for o in graded.values() if o.n_neurons == 81]
    assert isinstance(pixels, nir.ValuedEventData) and np.unique(pixels.value).size > 100
    again = read_nirdata(tmp_path / "net/events.nirdata")["neurons.0"]["spikes"]
    grid = again.to_time_gridded(1e-4).data
    fed = pixels.to_time_gridded(1e-4).data.astype(np.float32).reshape(1, 64, 1, 9, 9)
    assert np.array_equal(grid, simulate(graph, fed, record=["neurons.0.s"]).recorded["neurons.0.s"] > 0)


def changed(graph, name, op):
    nodes = tuple(Node(n.name, op, n.arrays) if n.name == name else n for n in graph.nodes)
    return EventGraph(nodes, graph.edges, graph.arrays, graph.outputs)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (LIFCell(2.0, 1.0, None, True, ">"), "n1: expected a reset to a value, .* got a reset by subtraction"),
        (CubaLIFCell(0.5, 0.75, reset="next"), "n1: .* got a reset 'next'"),
        (CubaLIFCell(0.5, 0.75, reset="never"), "n1: .* got a reset 'never'"),
        (CubaLIFCell(0.0, 1.0, v_reset=0.1), "n1: .* begin at v_reset, got v = 0 at rest and v_reset = 0.1"),
        (CubaLIFCell(0.5, 1.0), "n1: .* got a synapse of its own"),
    ],
)
def test_a_reset_that_nir_would_turn_into_another_is_refused(tmp_path, op, message):
    with pytest.raises(UnsupportedError, match=message):
        export(changed(net(), "n1", op), "nir", tmp_path / "net")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    """NaN never fires, so that a replay of silence would agree."""
    graph = net()
    name = next(n.arrays["weight"] for n in graph.nodes if "weight" in n.arrays)
    arrays = graph.arrays | {name: np.full_like(graph.arrays[name], value)}
    with pytest.raises(UnsupportedError, match=f"{name}: expected finite numbers"):
        export(EventGraph(graph.nodes, graph.edges, arrays, graph.outputs), "nir", tmp_path / "net")


def test_a_kernel_whose_image_nir_would_get_wrong_is_refused(tmp_path):
    nodes = (
        Node("x", Frames((1, 4, 6), BINARY)),
        Node("c", Conv2d((4, 6)), {"weight": "w"}),
        Node("n", LIFCell(fire=">")),
    )
    for kernel, units in (((1, 3), 16), ((3, 3), 8)):
        edges = Edge("x.out", "c.x", BINARY, (24,)), Edge("c.out", "n.x", DENSE, (units,))
        graph = EventGraph(nodes, edges, {"w": np.ones((1, 1, *kernel), np.float32)}, {"s": "n.s"})
        if kernel == (3, 3):
            export(graph, "nir", tmp_path / "net")
        else:
            with pytest.raises(UnsupportedError, match="c: expected a square kernel"):
                export(graph, "nir", tmp_path / "net")


def test_a_graph_without_lif_units_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="nir: expected LIF units .* got EGRUCell"):
        export(EGRULM(EGRULMConfig(vocabulary=20)), "nir", tmp_path / "net")


def test_a_bias_in_a_recurrence_is_cut_out_since_readers_differ_on_its_first_step(tmp_path):
    graph = net(recurrent=True)
    nodes = [Node(n.name, n.op, {**n.arrays, "bias": "b1"}) if n.name == "wr" else n for n in graph.nodes]
    graph = EventGraph(tuple(nodes), graph.edges, graph.arrays, graph.outputs)
    export(graph, "nir", tmp_path / "net")
    edges = nir.read(tmp_path / "net/net.nir").edges
    assert ("n1", "wr") not in edges and ("input.n1.s.before", "wr") in edges
    assert verify(tmp_path / "net").ok and rejoin(open_artifact(tmp_path / "net")).hash() == graph.hash()


def test_a_changed_weight_is_noticed(tmp_path):
    export(net(), "nir", tmp_path / "net")
    path = tmp_path / "net/net.nir"
    with h5py.File(path, "a") as file:
        file["node/nodes/l1/weight"][3, 4] += 1
    assert not verify(tmp_path / "net").ok
    reseal(tmp_path / "net")
    assert "expected a graph of hash" in verify(tmp_path / "net").problem


def test_a_stored_graph_is_the_same_graph(tmp_path):
    for i, graph in enumerate((net(recurrent=True), gesture(), spikegpt())):
        save_graph(tmp_path / str(i), graph)
        assert load_graph(tmp_path / str(i)).hash() == graph.hash()
    with pytest.raises(FormatError, match="does not exist yet"):
        save_graph(tmp_path / "0", net())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("nodes"),
        lambda t: t.update(format="other/1"),
        lambda t: t["nodes"][0].update(op="Sytem"),
        lambda t: t["nodes"][2].update(op="EGRUCell", fields={}),
        lambda t: t["nodes"][2]["fields"].update(tau="four"),
        lambda t: t["nodes"][2]["fields"].update(tau=5.0),
        lambda t: t["edges"].pop(),
        lambda t: t["edges"][0].__setitem__(4, [1]),
        lambda t: t.update(nodes=7),
    ],
)
def test_a_damaged_stored_graph_is_one_line(tmp_path, spoil):
    save_graph(tmp_path / "g", net())
    table = json.loads((tmp_path / "g/graph.json").read_text())
    spoil(table)
    (tmp_path / "g/graph.json").write_text(json.dumps(table))
    with pytest.raises(FormatError) as caught:
        load_graph(tmp_path / "g")
    assert "\n" not in str(caught.value)


def test_an_op_of_a_backend_is_not_stored():
    class Own(LIFCell):
        pass

    with pytest.raises(UnsupportedError, match="n1: expected an op of spiking.graph, got Own"):
        graph_table(changed(net(), "n1", Own()))


def lif(n, tau=4e-4, r=1.0, leak=0.0, theta=1.0, reset=0.0):
    return nir.LIF(*(np.broadcast_to(np.float32(v), n).copy() for v in (tau, r, leak, theta, reset)))


def small(*nodes, **metadata):
    inside = {f"{i}": node for i, node in enumerate(nodes)}
    names = ["in", *inside, "out"]
    ends = {"in": nir.Input(np.array([12])), "out": nir.Output(np.array([16]))}
    return nir.NIRGraph(ends | inside, list(zip(names[:-1], names[1:], strict=True)), metadata, type_check=False)


def full(*values):
    return (np.full(16, v, np.float32) for v in values)


W = nir.Linear(np.random.default_rng(0).normal(0.1, 0.5, (16, 12)).astype(np.float32))


@torch.no_grad()
@pytest.mark.parametrize(
    "node",
    [
        lambda: lif(16, r=2.5),
        lambda: lif(16, leak=0.3, reset=-0.2, theta=0.5),
        lambda: lif(16, leak=0.3, reset=0.3, theta=0.5, tau=np.linspace(2e-4, 5e-4, 16)),
        lambda: lif(1, theta=0.4),
        lambda: nir.IF(*full(3e3, 1.0, 0.0)),
        lambda: nir.IF(*full(5e3, 1.0, 0.5)),
        lambda: nir.IF(*full(1e4, 1.0, 0.5)),
        lambda: nir.CubaLIF(*full(2e-4, 4e-4, 3.0, 0.1, 0.9, -0.2), w_in=np.full(16, 1.5, np.float32)),
    ],
)
def test_any_lif_of_nir_steps_as_its_equations_say(node):
    """Against the interpreter of `verify`, which shares with the importer where a cycle closes, and no more."""
    from rheobase.backends.exporters.nir.interpreter import run_nir

    theirs = small(W, node())
    (ours,) = simulate(graph_of_nir(theirs, "net", dt_s=1e-4), FRAMES).outputs.values()
    expected = run_nir(theirs, {"in": X.swapaxes(0, 1)}, dt_s=1e-4)["out"].swapaxes(0, 1)
    assert 0.02 < expected.mean() < 0.9 and np.array_equal(ours, expected)


def test_leaky_integrators_give_their_membrane():
    graph = graph_of_nir(small(W, nir.LI(*full(4e-4, 4.0, 0.0))), "net", dt_s=1e-4)
    (v,) = simulate(graph, FRAMES).outputs.values()
    expected, total = [], 0
    for x in X[0] @ W.weight.T:
        expected.append(total := 0.75 * total + x)
    assert v.shape == (1, STEPS, 16) and np.allclose(v[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "options", "kind", "message"),
    [
        (lambda: small(W, lif(16)), {}, ConfigError, "1 dt: expected the duration of a step .* give --dt"),
        (lambda: small(W, lif(16)), {"dt_s": 1e-2}, FormatError, "1.tau: expected at least one step, got 0.04 steps"),
        (lambda: small(W, lif(16, r=np.arange(1, 17))), {"dt_s": 1e-4}, UnsupportedError, "1.tau|1.r: .* 16 values"),
        (lambda: small(W, lif(15)), {"dt_s": 1e-4}, FormatError, "expected parameters for"),
        (lambda: small(W, lif(16, theta=np.nan)), {"dt_s": 1e-4}, FormatError, "finite parameters"),
        (lambda: small(W, nir.Threshold(np.ones(16))), {"dt_s": 1e-4}, UnsupportedError, "1: .* got Threshold"),
        (lambda: small(W, nir.Delay(np.ones(16))), {"dt_s": 1e-4}, UnsupportedError, "1: .* got Delay"),
        (lambda: small(W, lif(16), dt=1e-4), {"written_by": "nrse"}, ConfigError, "did you mean 'norse'"),
        (lambda: small(W, lif(16), dt=1e-4), {"input_kind": "SPIKES"}, ConfigError, "input kind: expected one of"),
    ],
)
def test_what_a_file_cannot_be_is_refused_in_one_line(made, options, kind, message):
    with pytest.raises(RheobaseError, match=message) as caught:
        graph_of_nir(made(), "net.nir", **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def spoiled(path, how):
    with h5py.File(path, "a") as file:
        how(file)


HOSTILE = {
    "a link to another file": lambda f: f["node/nodes"].__setitem__("n3", h5py.ExternalLink("/etc/passwd", "/")),
    "a soft link": lambda f: f["node/nodes"].__setitem__("n3", h5py.SoftLink("/node")),
    "a group inside itself": lambda f: f["node/nodes"].__setitem__("n3", f["node"]),
    "numbers that are not there": lambda f: f.create_dataset("node/nodes/huge", (1 << 40,), "f8", chunks=(1 << 20,)),
    "another type": lambda f: (
        f["node/nodes/n1"].__delitem__("type"),
        f["node/nodes/n1"].__setitem__("type", "System"),
    ),
    "an edge from nowhere": lambda f: f["node/edges"].__setitem__((0, 0), b"nowhere"),
    "no nodes": lambda f: f["node"].__delitem__("nodes"),
    "no weight": lambda f: f["node/nodes/l1"].__delitem__("weight"),
    "a field too many": lambda f: f["node/nodes/l1"].__setitem__("more", 1),
    "compound data": lambda f: f["node"].create_dataset("c", data=np.zeros(2, [("a", "f4"), ("b", "i4")])),
}


@pytest.mark.parametrize("which", HOSTILE)
def test_a_file_from_a_stranger_is_refused_in_one_line(tmp_path, which):
    export(net(), "nir", tmp_path / "net")
    path = tmp_path / "net/net.nir"
    spoiled(path, HOSTILE[which])
    with pytest.raises(FormatError, match="net.nir") as caught:
        import_file(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(monkeypatch, tmp_path):
    """On some of them HDF5 2.0 turns in circles."""
    monkeypatch.setattr(hdf5, "SECONDS", 1)
    export(net(), "nir", tmp_path / "net")
    path, rng = tmp_path / "net/net.nir", np.random.default_rng(0)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:5000], *(_flipped(whole, rng) for _ in range(4))):
        path.write_bytes(data)
        try:
            import_file(path)
        except RheobaseError as error:
            assert "\n" not in str(error)


def _flipped(data, rng):
    data = bytearray(data)
    for at in rng.integers(0, 4000, 20):
        data[at] ^= 1 << rng.integers(8)
    return bytes(data)


def test_a_file_on_which_hdf5_turns_in_circles_is_given_up(monkeypatch, tmp_path):
    source = (
        Path(_hdf5_program.__file__).read_text().replace("waiting, count =", "while True: pass\n    waiting, count =")
    )
    (tmp_path / "circles.py").write_text(source)
    export(net(), "nir", tmp_path / "net")
    monkeypatch.setattr(_hdf5_program, "__file__", str(tmp_path / "circles.py"))
    monkeypatch.setattr(hdf5, "SECONDS", 1)
    with pytest.raises(FormatError, match="net.nir: expected HDF5 that is read in 1 s, got status -24 of the reader"):
        read_nir(tmp_path / "net/net.nir")
