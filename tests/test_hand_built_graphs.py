"""Graphs that no model lowers to: a backend computes them right, or refuses them in one line."""

from dataclasses import replace

import numpy as np
import pytest

from rheobase.backends import export, simulate, verify
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.importers.nir import import_file
from rheobase.backends.simulators._executor import execute
from rheobase.backends.simulators._gpu import GPUKernels
from rheobase.backends.stream import Stream
from rheobase.spiking.errors import GraphError, UnsupportedError
from rheobase.spiking.graph import (
    Add,
    CubaLIFCell,
    Edge,
    EGRUCell,
    Embedding,
    EventGraph,
    Frames,
    LayerNorm,
    LIFCell,
    Linear,
    Node,
    Relu,
    Sigmoid,
    Spike,
    Tokens,
    WKVCell,
)
from rheobase.spiking.ops.native import library
from rheobase.spiking.tally import BINARY, DENSE

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(5, 4))
TOKENS = RNG.integers(0, 5, (1, 40))
needs_c = pytest.mark.skipif(library() is None, reason="no C library")


def graph_of(*parts, output, table=TABLE, ahead=(), **arrays):
    """Tokens "x" and their embedding "e", and parts (name, op, its arrays, port -> source or (source, delay)).

    ahead  shapes of what is read before it is made
    """
    ops = {"x": Tokens(len(table)), "e": Embedding()} | {name: op for name, op, *_ in parts}
    own = {"e": {"table": "table"}} | {name: roles for name, _, roles, _ in parts}
    nodes, edges = tuple(Node(name, op, own.get(name, {})) for name, op in ops.items()), []
    arrays = {"table": table, **arrays}
    shapes = {"x.out": (len(table),), "e.out": table.shape[1:], **dict(ahead)}
    wired = [("e", ops["e"], {}, {"token": "x.out"}), *parts]
    for name, op, _, inputs in wired:
        for port, source in inputs.items():
            source, delay = (source, 0) if isinstance(source, str) else source
            sender, _, out = source.rpartition(".")
            edges.append(Edge(source, f"{name}.{port}", ops[sender].outputs[out], shapes[source], delay))
        given = {port: e.shape for e in edges for port in inputs if e.target == f"{name}.{port}"}
        made = op.shapes(name, given, {role: arrays[array] for role, array in own.get(name, {}).items()})
        shapes |= {f"{name}.{out}": shape for out, shape in made.items()}
    outputs = {"logits": output} if isinstance(output, str) else output
    return EventGraph(nodes, tuple(edges), arrays, outputs)


def square(name):
    return {name: RNG.normal(size=(4, 4))}


HEAD = {"head": RNG.normal(size=(4, 5))}


@pytest.mark.parametrize(
    "part",
    [
        ("n", Relu(), {}, {"x": "x.out"}),
        ("n", Linear(), {"weight": "w"}, {"x": "x.out"}),
        ("n", Embedding(), {"table": "table"}, {"token": ("x.out", 1)}),
        ("n", Embedding(), {"table": "square"}, {"token": "s.out"}),
    ],
)
def test_token_ids_are_read_by_embeddings_alone_and_at_once(part):
    """All else would take an id for the value of one line, in silence."""
    spikes = ("s", Spike(), {}, {"x": "e.out"})
    with pytest.raises(GraphError, match="edge .* -> n.* expected token ids into an embedding"):
        graph_of(spikes, part, output="n.out", w=np.ones((5, 3)), **square("square"))


@pytest.mark.parametrize("on", ["event", "torch"])
def test_half_precision_is_simulated_in_float32(on):
    lif, back = ("n", LIFCell(), {}, {"x": "sum.out"}), ("back", Linear(), {"weight": "w"}, {"x": ("n.s", 1)})
    graph = graph_of(("sum", Add(), {}, {"a": "e.out", "b": "e.out"}), lif, back, output="back.out", **square("w"))
    half = {name: array.astype(np.float16) for name, array in graph.arrays.items()}
    whole = {name: array.astype(np.float32) for name, array in half.items()}
    got, wanted = (
        simulate(EventGraph(graph.nodes, graph.edges, arrays, graph.outputs), TOKENS, on=on) for arrays in (half, whole)
    )
    assert got.outputs["logits"].dtype == np.float32 and np.array_equal(got.outputs["logits"], wanted.outputs["logits"])


def test_the_sigmoid_of_what_is_far_below_zero_is_small_and_not_zero():
    far = np.linspace(-700, 40, 20).reshape(5, 4)
    got = simulate(graph_of(("n", Sigmoid(), {}, {"x": "e.out"}), output="n.out", table=far), TOKENS, on="event")
    assert np.allclose(got.outputs["logits"], 1 / (1 + np.exp(-far[TOKENS])), rtol=1e-15, atol=0)


def chain(*parts, source="e.out", output="h.out", delay=0, **arrays):
    head = ("h", Linear(), {"weight": "head"}, {"x": (source, delay)})
    return graph_of(*parts, head, output=output, **HEAD, **arrays)


NORM = {"weight": "one", "bias": "one"}
LATE = {
    "product": lambda: chain(("p", Linear(), {"weight": "w"}, {"x": ("e.out", 1)}), source="p.out", **square("w")),
    "norm": lambda: chain(("p", LayerNorm(), NORM, {"x": ("e.out", 1)}), source="p.out", one=np.ones(4)),
    "head": lambda: chain(("n", LIFCell(theta=0.2), {}, {"x": "e.out"}), source="n.s", delay=1),
}


@pytest.mark.parametrize("which", LATE)
def test_what_elements_would_read_a_step_early_is_refused(tmp_path, which):
    graph = LATE[which]()
    integer, _ = quantise(graph, TOKENS)
    with pytest.raises(UnsupportedError, match="expected products and norms of this token's values"):
        export(graph, "spinnaker2", tmp_path / "x", calibration=TOKENS)
    with pytest.raises(UnsupportedError, match="expected products and norms of this token's values"):
        simulate(integer, TOKENS, on="firmware")


def test_a_cell_s_value_that_is_read_late_begins_where_the_cell_begins(tmp_path):
    """Elements keep it in a register of its own."""
    cell = ("n", LIFCell(tau=4.0, theta=1.0, v_reset=-0.5), {}, {"x": "e.out"})
    late = ("late", Spike(), {}, {"x": ("n.v", 1)})
    graph = chain(cell, late, source="late.out", table=TABLE * 0.01)
    export(graph, "spinnaker2", tmp_path / "x", calibration=TOKENS)
    report = verify(tmp_path / "x")
    assert report.ok, report.problem


def test_a_section_that_sends_nothing_verifies(tmp_path):
    dead = ("dead", Linear(), {"weight": "w"}, {"x": "n.s"})
    graph = chain(("n", LIFCell(theta=0.2), {}, {"x": "e.out"}), dead, source="n.s", **square("w"))
    export(graph, "spinnaker2", tmp_path / "x", calibration=TOKENS)
    report = verify(tmp_path / "x")
    assert report.ok, report.problem


def egru(*, late=0, head="n.y", output="h.out", product=True):
    """One layer of 2 units, whose cell reads its product so many steps late, or the embedding in its place."""
    table, weights = RNG.normal(size=(5, 6)), {"w": RNG.normal(size=(6, 6)), "r": RNG.normal(size=(2, 6))}
    parts = [("a", Linear(), {"weight": "w"}, {"x": "e.out"})] if product else []
    return graph_of(
        *parts,
        ("q", Linear(), {"weight": "r"}, {"x": ("n.y", 1)}),
        ("n", EGRUCell(), {"thr": "thr"}, {"a": ("a.out" if product else "e.out", late), "q": "q.out"}),
        ("h", Linear(), {"weight": "head"}, {"x": head}),
        output=output,
        table=table,
        ahead={"n.y": (2,)},
        thr=np.full(2, 0.1),
        head=RNG.normal(size=(2, 5)),
        **weights,
    )


TIED = [
    ("p", Linear(), {"weight": "w"}, {"x": "e.out"}),
    ("q", Linear(transposed=True), {"weight": "w"}, {"x": "p.out"}),
]
WKV = ("n", WKVCell(), {"time_decay": "one", "time_first": "one"}, {"k": "e.out", "v": "e.out"})
OWN = ("n", LIFCell(), {}, {"x": ("n.s", 1)})
REFUSED = {
    "a WKV's sums": (lambda: chain(WKV, source="n.p", one=np.ones(4)), "n.p: expected a signal in integers"),
    "a format that is not known yet": (
        lambda: chain(OWN, source="n.s", ahead={"n.s": (4,)}),
        "n.s: expected a signal in",
    ),
    "a trace": (lambda: egru(head="n.trace"), "trace"),
    "one weight in two orientations": (
        lambda: chain(*TIED, source="q.out", **square("w")),
        "p: expected a shared weight that is read one way",
    ),
    "no layer": (lambda: chain(), "expected layers between the tokens and the head"),
    "two outputs": (lambda: egru(output={"logits": "h.out", "more": "n.y"}), "expected a graph of one output"),
    "a late input of an EGRU": (lambda: egru(late=1), "n: expected a layer fed by the one before"),
    "no product before an EGRU": (lambda: egru(product=False), "n.a: expected a product, got e.out"),
    "a threshold beyond its input's format": (
        lambda: chain(
            ("g", Sigmoid(), {}, {"x": "e.out"}), ("n", LIFCell(theta=2.0), {}, {"x": "g.out"}), source="n.s"
        ),
        "n: expected a threshold and a membrane below 2, got 2",
    ),
    "no linear head of an EGRU": (lambda: egru(output="n.y"), "expected an embedding, EGRU layers and one head"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_spinnaker2_does_not_run_is_refused_in_one_line(tmp_path, which):
    make, message = REFUSED[which]
    with pytest.raises(UnsupportedError, match=message):
        export(make(), "spinnaker2", tmp_path / "x", calibration=TOKENS)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("to", ["spinnaker2", "onnx"])
def test_an_embedding_that_is_an_output_keeps_its_values(tmp_path, to):
    """Where nothing but spikes reads it, its signs are enough."""
    spikes, head = ("s", Spike(), {}, {"x": "e.out"}), ("h", Linear(), {"weight": "head"}, {"x": "s.out"})
    graph = graph_of(spikes, head, output={"logits": "h.out", "e": "e.out"}, **HEAD)
    if to == "spinnaker2":
        integer, _ = quantise(graph, TOKENS)
        got = simulate(integer, TOKENS, on="integer").outputs["e"] * 2.0 ** -integer.node("e").op.out_frac
        assert np.abs(got - simulate(graph, TOKENS).outputs["e"]).max() < 0.02
    else:
        made = export(graph, "onnx", tmp_path / "x", calibration=TOKENS)
        assert made.manifest["relative_error"]["e.out"] < 0.02


@pytest.mark.parametrize("name", ["a[0]", "a*", "{a,b}"])
def test_a_name_is_recorded_whatever_a_pattern_would_make_of_it(name):
    other = ("a1", Relu(), {}, {"x": "e.out"})
    graph = graph_of((name, Relu(), {}, {"x": "e.out"}), other, output="a1.out")
    assert list(simulate(graph, TOKENS, record=[f"{name}.out"]).recorded) == [f"{name}.out"]


@pytest.mark.parametrize("name", ["input", "output"])
def test_nir_s_ports_take_no_node_s_name(tmp_path, name):
    graph = lines(LIFCell(fire=">"))
    renamed = {"n": name, "n.s": f"{name}.s", "n.x": f"{name}.x"}
    nodes = tuple(replace(n, name=renamed.get(n.name, n.name)) for n in graph.nodes)
    edges = tuple(replace(e, target=renamed.get(e.target, e.target)) for e in graph.edges)
    graph = EventGraph(nodes, edges, graph.arrays, {"s": f"{name}.s"})
    export(graph, "nir", tmp_path / "x")
    assert verify(tmp_path / "x").ok
    frames = RNG.integers(0, 2, (1, 9, 3, 1, 1))
    (got,) = simulate(import_file(tmp_path / "x/net.nir"), frames).outputs.values()
    assert np.array_equal(got, simulate(graph, frames).outputs["s"]) and got.any()


def test_a_graph_of_which_onnx_would_write_no_file_is_refused(tmp_path):
    """All that reads its one product is in the product's own fragment, and nothing reads that."""
    dead = ("p", Linear(), {"weight": "w"}, {"x": "e.out"}), ("r", Relu(), {}, {"x": "p.out"})
    graph = graph_of(*dead, output={}, **square("w"))
    with pytest.raises(UnsupportedError, match="onnx: expected dense nodes that something reads"):
        export(graph, "onnx", tmp_path / "x", calibration=TOKENS)


@needs_c
@pytest.mark.parametrize("tables", [True, False])
def test_a_quantised_stream_holds_within_int16_what_the_specification_holds(tables):
    table = np.array([[0.1, 0.1], [3.0, 3.0]])
    product, head = ("p", Linear(), {"weight": "w"}, {"x": "e.out"}), ("h", Linear(), {"weight": "w"}, {"x": "p.out"})
    integer, _ = quantise(graph_of(product, head, output="h.out", table=table, w=np.eye(2)), np.zeros((1, 3), int))
    tokens = np.array([0, 1])
    wanted = simulate(integer, tokens[None], on="integer", record=["p.out"])
    assert wanted.recorded["p.out"].max() == 32767
    assert np.array_equal(Stream(integer, tables=tables)(tokens), wanted.outputs["logits"][0])


@needs_c
def test_a_quantised_stream_spikes():
    graph = graph_of(("s", Spike(), {}, {"x": ("e.out", 1)}), output="s.out")
    integer, _ = quantise(graph, TOKENS)
    wanted = simulate(integer, TOKENS, on="integer").outputs["logits"][0]
    assert np.array_equal(Stream(integer)(TOKENS[0]), wanted) and 0 < wanted.mean() < 1
    sigmoid = ("g", Sigmoid(), {}, {"x": "e.out"}), ("s", Spike(), {}, {"x": ("g.out", 1)})
    with pytest.raises(UnsupportedError, match='simulate on="integer"'):
        Stream(quantise(graph_of(*sigmoid, output="s.out"), TOKENS)[0], tables=False)


@needs_c
def test_a_stream_is_as_exact_as_the_widest_of_its_arrays():
    decays = {"first": RNG.normal(size=4), "decay": RNG.normal(size=4).astype(np.float32)}
    cell = ("n", WKVCell(), {"time_decay": "decay", "time_first": "first"}, {"k": "e.out", "v": "e.out"})
    graph = graph_of(cell, output="n.y", **decays)
    wanted = simulate(graph, TOKENS).outputs["logits"][0]
    assert np.abs(Stream(graph, tables=False)(TOKENS[0]) - wanted).max() < 1e-12


def test_a_gpus_ways_count_no_step_of_neurons_in_a_loop():
    graph = graph_of(
        ("sum", Add(), {}, {"a": "e.out", "b": ("back.out", 0)}),
        ("n", LIFCell(), {}, {"x": "sum.out"}),
        ("back", Linear(), {"weight": "w"}, {"x": ("n.s", 1)}),
        ("h", Linear(), {"weight": "head"}, {"x": "n.s"}),
        output="h.out",
        ahead={"back.out": (4,)},
        **square("w"),
        **HEAD,
    )
    nothing = execute(graph, TOKENS[:, :0], None, GPUKernels("cpu"))
    assert nothing.tally == simulate(graph, TOKENS[:, :0]).tally


def lines(cell, *, twice=False):
    """Frames, a product, and units that read it, or read it twice."""
    nodes = Node("x", Frames((3, 1, 1), BINARY)), Node("p", Linear(), {"weight": "w"}), Node("n", cell)
    edges = [Edge("x.out", "p.x", BINARY, (3,)), Edge("sum.out" if twice else "p.out", "n.x", DENSE, (4,))]
    edges += [Edge("p.out", f"sum.{port}", DENSE, (4,)) for port in "ab" if twice]
    return EventGraph((*nodes, *[Node("sum", Add())][: int(twice)]), tuple(edges), {"w": np.ones((3, 4))}, {"s": "n.s"})


def test_what_nir_and_pyspinnaker2_have_no_word_for_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="n: expected a synapse that decays"):
        export(lines(CubaLIFCell(alpha=1.0)), "nir", tmp_path / "x")
    frames = np.ones((1, 5, 3, 1, 1))
    with pytest.raises(UnsupportedError, match="n: fed twice by one product"):
        export(lines(LIFCell(), twice=True), "pyspinnaker2", tmp_path / "x", calibration=frames)
