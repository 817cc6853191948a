"""A graph refuses what does not fit together, and says what it holds."""

from dataclasses import replace

import numpy as np
import pytest
from test_simulate import egru

from rheobase.backends import simulate
from rheobase.spiking.errors import GraphError
from rheobase.spiking.graph import (
    Add,
    Conv2d,
    Edge,
    EGRUCell,
    EventGraph,
    Frames,
    GRUCell,
    Linear,
    LSTMCell,
    MaxPool2d,
    Node,
)
from rheobase.spiking.tally import DENSE, GRADED


def test_a_graph_refuses_what_is_wrong_with_it():
    graph = egru().lower()
    wrong_kind = tuple(Edge(e.source, e.target, DENSE, e.shape, e.delay) for e in graph.edges)
    cases = {
        "same kind": (graph.nodes, wrong_kind, graph.arrays, graph.outputs),
        "one edge into each": (graph.nodes, graph.edges[:-1], graph.arrays, graph.outputs),
        "a delay in every cycle": (
            graph.nodes,
            tuple(Edge(e.source, e.target, e.kind, e.shape) for e in graph.edges),
            graph.arrays,
            graph.outputs,
        ),
        "ports that exist": (
            graph.nodes,
            (*graph.edges, Edge("layers.0.y", "layers.1.b", GRADED, (56,))),
            graph.arrays,
            graph.outputs,
        ),
        r"arrays \('weight', .* got \(\)": (
            tuple(replace(n, arrays={}) if n.name == "layers.0.kernel" else n for n in graph.nodes),
            *(graph.edges, graph.arrays, graph.outputs),
        ),
        "in the table": (graph.nodes, graph.edges, {}, graph.outputs),
        "one node a name": (graph.nodes + graph.nodes[:1], graph.edges, graph.arrays, graph.outputs),
        "names without /": (
            tuple(replace(n, name="a/b") if n.name == "decoder" else n for n in graph.nodes),
            *(graph.edges, graph.arrays, graph.outputs),
        ),
        "a node's output": (graph.nodes, graph.edges, graph.arrays, {"logits": "decoder.in"}),
        "shape": (graph.nodes, graph.edges, {**graph.arrays, "layers.0.thr": np.zeros(3)}, graph.outputs),
        "token lines": (
            graph.nodes,
            graph.edges,
            {**graph.arrays, "embedding.weight": np.zeros((9, 40))},
            graph.outputs,
        ),
    }
    for message, parts in cases.items():
        with pytest.raises(GraphError, match=message):
            EventGraph(*parts)


def test_a_graph_may_be_deeper_than_pythons_stack():
    n = 1500
    nodes = Node("x", Frames((1, 1, 1), DENSE)), *(Node(f"l{i}", Linear(), {"weight": "w"}) for i in range(n))
    edges = Edge("x.out", "l0.x", DENSE, (1,)), *(Edge(f"l{i}.out", f"l{i + 1}.x", DENSE, (1,)) for i in range(n - 1))
    graph = EventGraph(nodes, edges, {"w": np.ones((1, 1))}, {"out": f"l{n - 1}.out"})
    assert graph.order() == [["x"], *([f"l{i}"] for i in range(n))]


def test_a_graph_of_two_inputs_is_refused():
    nodes = Node("x", Frames((2, 1, 1), DENSE)), Node("y", Frames((2, 1, 1), DENSE)), Node("sum", Add())
    edges = Edge("x.out", "sum.a", DENSE, (2,)), Edge("y.out", "sum.b", DENSE, (2,))
    graph = EventGraph(nodes, edges, {}, {"out": "sum.out"})
    with pytest.raises(GraphError, match="a graph of one input, got x, y"):
        simulate(graph, np.zeros((1, 3, 2, 1, 1)))


def test_gates_side_by_side_of_unequal_width_are_no_cell():
    for cell, gates in ((LSTMCell(), 4), (GRUCell(), 3), (EGRUCell(), 3)):
        with pytest.raises(GraphError, match="a"):
            cell.shapes("cell", {port: (6 * gates + 1,) for port in cell.inputs}, {"thr": np.zeros(6)})


def test_an_image_or_a_kernel_of_no_pixels_is_refused():
    convolution = {"size": (3, 3), "stride": 1, "padding": 0}
    pooling = {"size": (3, 3), "kernel": 1, "stride": 1}
    for op, given in ((Conv2d, convolution), (MaxPool2d, pooling)):
        for field in given:
            wrong = (0, 3) if field == "size" else -1 if field == "padding" else 0
            with pytest.raises(GraphError, match=f"c: {'height' if field == 'size' else field}: expected at least"):
                op(**{**given, field: wrong}).shapes("c", {"x": (9,)}, {"weight": np.ones((1, 1, 1, 1))})


def test_the_hash_names_the_content():
    graph = egru().lower()
    changed = {**graph.arrays, "layers.0.thr": graph.arrays["layers.0.thr"] + 1e-12}
    assert graph.hash() == egru().lower().hash()
    assert graph.hash() != EventGraph(graph.nodes, graph.edges, changed, graph.outputs).hash()


def test_tied_weights_are_in_the_table_once():
    graph = egru().lower()
    assert graph.node("embedding").arrays["table"] == graph.node("decoder").arrays["weight"] == "embedding.weight"
