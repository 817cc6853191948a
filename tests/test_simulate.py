"""The simulators give the model's own events and outputs, and count what a brute force counts."""

import pickle
import time
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

from rheobase.backends import count, simulate
from rheobase.backends.simulators._executor import execute
from rheobase.backends.simulators.event import EventKernels
from rheobase.backends.simulators.torch import TorchKernels
from rheobase.backends.stream import Stream
from rheobase.backends.trace import Later
from rheobase.models import EGRULM, GRULM, LSTMLM, EGRULMConfig, GRULMConfig, LSTMLMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking import LIF
from rheobase.spiking.errors import ConfigError, GraphError, ShapeError, UnsupportedError
from rheobase.spiking.graph import (
    Edge,
    Embedding,
    EventGraph,
    Frames,
    LIFCell,
    Linear,
    Node,
    Op,
    Tokens,
)
from rheobase.spiking.ops.native import Gather, library
from rheobase.spiking.ops.native.egru import egru_sequence
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY

TEXT = "\n\n".join(topics[k] for k in sorted(topics)).encode()


def tokens(n, streams=1):
    return np.frombuffer(TEXT[5000 : 5000 + streams * n], np.uint8).astype(np.int64).reshape(streams, n)


def egru(**options):
    torch.manual_seed(1)
    settings = {"embedding": 40, "layers": (56, 40), "thr_mean": 0.2, **options}
    return EGRULM(EGRULMConfig(**settings)).double().eval()


def lstm(**options):
    torch.manual_seed(1)
    return LSTMLM(LSTMLMConfig(**{"embedding": 40, "layers": (56, 40), **options})).double().eval()


def gru(**options):
    torch.manual_seed(1)
    return GRULM(GRULMConfig(**{"embedding": 40, "layers": (56, 40), **options})).double().eval()


MODELS = {
    "egru": egru,
    "egru zoneout": lambda: egru(zoneout=0.2),
    "egru projection": lambda: egru(layers=(56, 48), projection=True),
    "lstm": lstm,
    "lstm projection": lambda: lstm(layers=(32, 48), projection=True),
    "gru": gru,
    "gru projection": lambda: gru(layers=(32, 48), projection=True),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@torch.no_grad()
def run(model, x):
    return model.run(torch.from_numpy(x))


@pytest.mark.parametrize("on", ["event", "torch"])
def test_events_and_logits_are_the_models_over_a_thousand_tokens(model, on):
    x = tokens(1000)
    logits, state, layers = run(model, x)
    trace = simulate(model.lower(), x, on=on)
    assert np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-9
    for i, layer in enumerate(layers):
        if layer is None:
            continue
        events = trace.events[f"layers.{i}.y"].to_dense()
        assert np.array_equal(events != 0, layer.o.numpy() != 0)
        assert np.abs(events - layer.y.numpy()).max() < 1e-9
        assert np.abs(trace.state[f"layers.{i}.c"] - state[i].c.numpy()).max() < 1e-9


def test_autocast_around_it_changes_no_number():
    for graph in (egru().float().lower(), SpikeGPT(SpikeGPTConfig(embedding=32, depth=1)).lower()):
        plain = simulate(graph, tokens(30), on="torch").outputs["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(simulate(graph, tokens(30), on="torch").outputs["logits"], plain)


def test_what_is_made_later_is_a_table_like_another():
    made, broken = [], [True]

    def one():
        made.append(1)
        return np.ones(2)

    def other():
        if broken:
            raise MemoryError
        return np.zeros(2)

    table = Later({"one": one, "other": other})
    assert list(table) == ["one", "other"] and len(table) == 2 and not made
    assert table["one"] is table["one"] and made == [1]
    with pytest.raises(KeyError):
        table["another"]
    with pytest.raises(MemoryError):
        table["other"]
    broken.clear()
    assert not table["other"].any(), "what raised is tried again"
    copied = pickle.loads(pickle.dumps(table))
    assert type(copied) is dict and list(copied) == list(table) and copied["one"].all() and made == [1]


@pytest.mark.parametrize("on", ["event", "torch"])
def test_what_reads_a_cell_a_step_late_begins_with_the_state_before(on):
    rng = np.random.default_rng(0)
    nodes = (Node("tokens", Tokens(9)), Node("embedding", Embedding(), {"table": "t"}), Node("lif", LIFCell(theta=0.2)))
    edges = (
        Edge("tokens.out", "embedding.token", BINARY, (9,)),
        Edge("embedding.out", "lif.x", DENSE, (5,)),
        Edge("lif.s", "product.x", BINARY, (5,), delay=1),
    )
    arrays = {"t": rng.normal(size=(9, 5)), "w": rng.normal(size=(5, 5))}
    product = Node("product", Linear(transposed=False), {"weight": "w"})
    graph = EventGraph((*nodes, product), edges, arrays, {"y": "product.out"})
    x, more = rng.integers(0, 9, (6, 7)), rng.integers(0, 9, (6, 3))
    first = simulate(graph, x, on=on, record=["lif.{s,v}"])
    second = simulate(graph, more, first.state, on=on, record=["lif.{s,v}"])
    sent = np.concatenate([np.zeros((6, 1, 5)), first.recorded["lif.s"], second.recorded["lif.s"]], 1)
    assert first.recorded["lif.s"][:, -1].any()
    got = np.concatenate([first.outputs["y"], second.outputs["y"]], 1)
    assert np.abs(got - sent[:, :-1] @ arrays["w"]).max() < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("zoneout", [0.0, 0.2])
def test_c_runs_an_egru_layer_as_numpy_steps_it(monkeypatch, dtype, tolerance, zoneout):
    if library() is None:
        pytest.skip("no C library")
    graph, record = egru(zoneout=zoneout).to(dtype).lower(), ["layers.*"]
    x, more = tokens(1000 if dtype == torch.float64 else 100), tokens(70, 3)
    whole = [simulate(graph, part, record=record) for part in (x, more, more[:, :0])]
    calls = []
    monkeypatch.setattr(EventKernels, "sequence", lambda *_: calls.append(1))
    for part, by_c in zip((x, more, more[:, :0]), whole, strict=True):
        by_step = simulate(graph, part, record=record)
        assert by_c.recorded.keys() == by_step.recorded.keys() and by_c.state.keys() == by_step.state.keys()
        for got, wanted in ((by_c.recorded, by_step.recorded), (by_c.state, by_step.state)):
            for name in wanted:
                assert got[name].shape == wanted[name].shape and got[name].dtype == wanted[name].dtype
                assert np.abs(got[name] - wanted[name]).max(initial=0) < tolerance
        if dtype == torch.float64 and part.size:
            assert by_c.tally == by_step.tally
            for name, events in by_step.events.items():
                assert np.array_equal(by_c.events[name].to_dense() != 0, events.to_dense() != 0)
    assert len(calls) == 6


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_c_layer_saturates_as_sigmoid_and_tanh_do(dtype):
    if library() is None:
        pytest.skip("no C library")
    far = np.array([-1e30, -800, -100, -30, -1, -1e-3, 0, 1e-3, 1, 30, 100, 800, 1e30, np.nan], dtype)
    units, tiny = far.size, np.finfo(dtype).eps
    zeros, thr = np.zeros((1, units), dtype), np.full(units, 2, dtype)
    silent = Gather(np.zeros((units, 3 * units), dtype))
    for gates, wanted in (
        ((far, 0 * far, 0 * far), 1 / (1 + np.exp(-far.astype(np.float64).clip(-700)))),
        ((far * 0 - 1e30, 0 * far, far), np.tanh(far.astype(np.float64))),
    ):
        a = np.nan_to_num(np.concatenate(gates), nan=np.nan)[None, None].astype(dtype)
        run = egru_sequence(a, silent, thr, (zeros, zeros + 1, zeros), zoneout=0.0, decay=0.9)
        assert np.allclose(run.c[1, 0], wanted, rtol=0, atol=2 * tiny, equal_nan=True)
        assert (run.rows, run.events) == (0, 0)


@torch.no_grad()
def spike_fed(**options):
    torch.manual_seed(1)
    settings = {"embedding": 16, "depth": 2, "placement": "spike_fed", "theta": 0.1, **options}
    return SpikeGPT(SpikeGPTConfig(**settings)).double().eval()


@pytest.mark.parametrize(
    "model, record",
    [
        (lambda: egru(zoneout=0.2), "*"),
        (egru, "decoder.out"),
        (spike_fed, "*"),
        (spike_fed, "head.out"),
        (lambda: spike_fed(ternary=True, learn=("tau", "theta")), "*.{s,y}"),
        (lambda: spike_fed(graded=True), "*.{s,v,y}"),
    ],
)
def test_ops_run_cells_as_torch_steps_them(monkeypatch, model, record):
    graph, x = model().lower(), tokens(60, 3)
    start = simulate(graph, tokens(7, 3)).state
    parts = x, x[:, :1], x[:, :0]
    whole = [simulate(graph, part, start, on="torch", record=[record]) for part in parts]
    steps = []
    monkeypatch.setattr(TorchKernels, "sequence", lambda *_: steps.append(1))
    for part, by_op in zip(parts, whole, strict=True):
        by_step = simulate(graph, part, start, on="torch", record=[record])
        assert by_op.tally == by_step.tally == simulate(graph, part, start).tally
        for got, wanted in ((by_op.recorded, by_step.recorded), (by_op.state, by_step.state)):
            assert got.keys() == wanted.keys()
            for name in wanted:
                assert got[name].shape == wanted[name].shape and got[name].dtype == wanted[name].dtype
                assert np.abs(got[name] - wanted[name]).max(initial=0) < 1e-12, name
        for name, events in by_step.events.items():
            assert np.array_equal(by_op.events[name].to_dense() != 0, events.to_dense() != 0)
    assert steps and any(len(events) for events in whole[0].events.values())


def test_a_cell_whose_product_reads_something_else_goes_step_by_step():
    """The layer in C is for a layer's own y, a step late; a product of c gives what the dense simulator gives."""
    graph, x = egru(layers=(40,)).lower(), tokens(50)
    edges = tuple(Edge("layers.0.c", e.target, DENSE, e.shape, 1) if e.delay else e for e in graph.edges)
    changed = EventGraph(graph.nodes, edges, graph.arrays, graph.outputs)
    logits = simulate(changed, x).outputs["logits"]
    assert np.abs(logits - simulate(changed, x, on="torch").outputs["logits"]).max() < 1e-9
    assert np.abs(logits - simulate(graph, x).outputs["logits"]).max() > 1e-6


class OneLayer(torch.nn.Module):
    """Embedding, LIF, linear layer, and LIF that its bias drives too; and the same by hand as a graph."""

    def __init__(self, **options):
        super().__init__()
        self.emb, self.lif, self.out = torch.nn.Embedding(7, 5), LIF(5, **options), torch.nn.Linear(5, 3)
        self.last = LIF(3)
        torch.nn.init.zeros_(self.out.bias)

    def forward(self, tokens):
        logits = self.out(self.lif(self.emb(tokens))[0])
        self.last(logits)
        return logits

    def lower(self):
        nodes = (
            Node("tokens", Tokens(7)),
            Node("emb", Embedding(), {"table": "emb.weight"}),
            Node("lif", self.lif.lower()),
            Node("out", Linear(transposed=True), {"weight": "out.weight", "bias": "out.bias"}),
            Node("last", self.last.lower()),
        )
        edges = (
            Edge("tokens.out", "emb.token", BINARY, (7,)),
            Edge("emb.out", "lif.x", DENSE, (5,)),
            Edge("lif.s", "out.x", TERNARY if self.lif.ternary else BINARY, (5,)),
            Edge("out.out", "last.x", DENSE, (3,)),
        )
        arrays = {name: p.detach().numpy() for name, p in self.named_parameters()}
        return EventGraph(nodes, edges, arrays, {"logits": "out.out"})


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("fire", [">", ">="])
@pytest.mark.parametrize("v_reset", [0.1, None])
def test_lif_nodes_give_the_layers_spikes_and_both_counts(ternary, fire, v_reset):
    torch.manual_seed(0)
    model = OneLayer(ternary=ternary, fire=fire, v_reset=v_reset, tau=3.0, theta=0.4).double()
    x = torch.randint(7, (2, 50))
    with torch.no_grad():
        spikes, logits = model.lif(model.emb(x))[0], model(x)
    tally = count(model, x)
    for on in ("event", "torch"):
        trace = simulate(model.lower(), x.numpy(), on=on)
        assert tally.uncounted == () and tally.without_bytes() == trace.tally.without_bytes()
        assert np.array_equal(trace.events["lif.s"].to_dense(), spikes.numpy())
        assert np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-12
    assert set(spikes.unique().tolist()) == ({-1, 0, 1} if ternary else {0, 1})
    assert tally.operators["lif"].comparisons == 2 * 50 * 5 * (2 if ternary else 1)
    assert tally.operators["out"].acs == 3 * int((spikes != 0).sum()) and tally.operators["out"].macs == 0
    assert (spikes == 0).all(-1).any() and tally.operators["last"].event_updates == 2 * 50 * 3, "its bias may be zeros"


def test_rows_gathered_are_events_delivered(model):
    graph = model.lower()
    trace = simulate(graph, tokens(300, 2))
    for edge in graph.edges:
        if edge.kind != GRADED:
            continue
        events = trace.events[edge.source]
        late = (events.step == events.n_steps - 1).sum() if edge.delay else 0
        assert trace.tally.operators[edge.target_node].rows == len(events) - late


def test_a_cut_and_a_carried_state_change_nothing(model):
    graph, x = model.lower(), tokens(120, 2)
    whole = simulate(graph, x, record=["*.out"])
    first = simulate(graph, x[:, :50])
    second = simulate(graph, x[:, 50:], first.state)
    assert np.array_equal(second.outputs["logits"], whole.outputs["logits"][:, 50:])
    assert first.tally + second.tally == whole.tally
    assert simulate(graph, x[:, :0], first.state).state.keys() == first.state.keys()


def test_both_counters_agree_in_all_but_bytes(model):
    x = tokens(100, 2)
    for precise in (model, model.float()):
        by_dispatch = count(precise, torch.from_numpy(x)).without_bytes()
        by_graph = simulate(precise.lower(), x).tally.without_bytes()
        assert by_dispatch.uncounted == () and by_dispatch.total == by_graph.total
        if not isinstance(precise, GRULM):  # torch adds one of its biases outside the product
            assert by_dispatch == by_graph


def test_the_dense_simulator_counts_what_the_event_simulator_does(model):
    graph, x = model.lower(), tokens(90, 2)
    first, second = (simulate(graph, x, on=on) for on in ("event", "torch"))
    assert first.tally == second.tally and first.tally.macs > 0
    carried = [simulate(graph, x[:, ::2], first.state, on=on).tally for on in ("event", "torch")]
    assert carried[0] == carried[1] != first.tally
    assert simulate(graph, x[:, :0], on="torch").tally == simulate(graph, x[:, :0]).tally


def test_the_tally_is_a_brute_force_count_of_the_models_tensors():
    model, x = egru(), tokens(64, 2)
    _, _, layers = run(model, x)
    tally = simulate(model.lower(), x).tally
    n = x.size
    for i, (width, units) in enumerate(((40, 56), (56, 40))):
        y = layers[i].y
        before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
        operand = n * 40 if i == 0 else int((layers[i - 1].y != 0).sum())
        kernel, recurrent = (tally.operators[f"layers.{i}.{k}"] for k in ("kernel", "recurrent_kernel"))
        assert (kernel.dense_macs, kernel.macs) == (n * width * 3 * units, operand * 3 * units)
        assert recurrent.dense_macs == n * units * 3 * units
        assert recurrent.macs == int((before != 0).sum()) * 3 * units
        assert recurrent.weight_bytes == (int((before != 0).sum()) + n) * 3 * units * 8
        cell = tally.operators[f"layers.{i}"]
        assert cell.events == int((y != 0).sum())
        assert (cell.comparisons, cell.state_updates, cell.products) == (n * units, 2 * n * units, 7 * n * units)
        assert cell.transcendentals == {"sigmoid": 2 * n * units, "tanh": n * units}
    head = tally.operators["decoder"]
    assert (head.dense_macs, head.macs) == (n * 40 * 256, int((layers[1].y != 0).sum()) * 256)
    assert tally.operators["embedding"].rows == n and tally.operators["embedding"].dense_macs == 0
    assert tally.tokens == n


def test_five_percent_activity_takes_less_than_a_third_of_the_time():
    """The work is proportional to events: a ratio of the least processor times, 0.17 to 0.21 where it was measured."""
    units = 1536
    model = egru(embedding=units, layers=(units, units))
    x = tokens(60)

    def seconds(active):
        graph = model.lower()
        thr = np.full(units, 3.0)
        thr[: int(active * units)] = -3.0
        arrays = {**graph.arrays, "layers.0.thr": thr, "layers.1.thr": thr}
        graph = EventGraph(graph.nodes, graph.edges, arrays, graph.outputs)
        times = []
        for _ in range(5):
            began = time.process_time()
            trace = simulate(graph, x)
            times.append(time.process_time() - began)
        assert abs(trace.events["layers.1.y"].rate - active) < 0.01
        return min(times)

    assert seconds(0.05) < 0.3 * seconds(1.0)


def test_probes_keep_what_is_asked_for():
    graph, x = egru().lower(), tokens(30)
    recorded = simulate(graph, x, record=["layers.*.{c,y}"]).recorded
    assert sorted(recorded) == ["layers.0.c", "layers.0.y", "layers.1.c", "layers.1.y"]
    dense = simulate(graph, x, on="torch", record=["layers.1.c"]).recorded["layers.1.c"]
    assert np.abs(recorded["layers.1.c"] - dense).max() < 1e-9
    with pytest.raises(ConfigError, match="did you mean"):
        simulate(graph, x, record=["layers.0.cc"])


@pytest.mark.parametrize("on", ["event", "torch"])
def test_arrays_of_any_type_are_numbers(on):
    """Whole weights of whole type, mixed types and turned arrays give what the same numbers in doubles do."""
    rng = np.random.default_rng(0)
    weight, theta, x = rng.integers(-3, 4, (4, 3)), np.array([1.0, 2.0, 1.5]), rng.standard_normal((2, 9, 4, 1, 1))
    nodes = (Node("x", Frames((4, 1, 1), DENSE)), Node("l", Linear(), {"weight": "w"}))
    nodes += (Node("n", LIFCell(), {"theta": "t"}),)
    edges = Edge("x.out", "l.x", DENSE, (4,)), Edge("l.out", "n.x", DENSE, (3,))

    def run(weight, theta, x=x):
        graph = EventGraph(nodes, edges, {"w": weight, "t": theta}, {"s": "n.s", "a": "l.out"})
        return simulate(graph, x, on=on).outputs

    wanted = run(weight.astype(float), theta)
    assert wanted["s"].sum() > 5
    turned = np.asfortranarray(weight[:, ::-1].astype(float))[:, ::-1]
    for w, t in (
        (weight, theta),
        (weight.astype(np.int8), theta.astype(np.float32)),
        (turned, theta.astype(np.float32)),
    ):
        got = run(w, t)
        assert np.array_equal(got["s"], wanted["s"]) and np.allclose(got["a"], wanted["a"], atol=1e-5)
    assert np.array_equal(run(weight, theta, x[:, ::-1][:, ::-1])["s"], wanted["s"])


@pytest.mark.parametrize(("make", "read"), [(lstm, 4), (gru, 3)])
def test_the_bytes_of_a_gated_cell_by_hand(make, read):
    """It reads both pre-activations and writes what it sends; its state is read and written."""
    cell = simulate(make().lower(), tokens(30, 2)).tally.operators["layers.0"]
    assert cell.activation_bytes == 60 * 56 * (2 * read + 1) * 8 and cell.state_bytes == 60 * 56 * 2 * 8


class Doubled(Op):
    inputs, outputs = ("x",), {"out": DENSE}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


def graph_with(op):
    nodes = Node("f", Frames((1, 1, 3), DENSE)), Node("mine", op)
    return EventGraph(nodes, [Edge("f.out", "mine.x", DENSE, (3,))], {}, {"out": "mine.out"})


def test_an_op_of_ones_own_is_named_where_it_is_not_counted():
    class Mine(EventKernels):
        def doubled(self, node, inputs):
            return {"out": 2 * inputs["x"]}

    trace = execute(graph_with(Doubled()), np.ones((1, 2, 1, 1, 3)), None, Mine())
    assert (trace.outputs["out"] == 2).all() and trace.tally.uncounted == ("Doubled",)


class Doubling(LIFCell):
    pass


def test_an_op_made_of_lifs_runs_by_its_own_kernel():
    """By Stream it ran as a LIF, and in torch as one that the count then did not know."""

    class Event(EventKernels):
        def doubling(self, node, inputs, state):
            return {"s": np.ones_like(inputs["x"]), "v": state["v"] + 2}

    class Torch(TorchKernels):
        def doubling(self, node, inputs, state):
            return {"s": torch.ones_like(inputs["x"]), "v": state["v"] + 2}

    own = Node("embedding", Embedding(), {"table": "e"}), Node("mine", Doubling(theta=9.0))
    edges = [Edge("tokens.out", "embedding.token", BINARY, (4,)), Edge("embedding.out", "mine.x", DENSE, (3,))]
    arrays = {"e": np.ones((4, 3), np.float32)}
    graph = EventGraph([Node("tokens", Tokens(4)), *own], edges, arrays, {"out": "mine.s"})
    for kernels in Event(), Torch():
        trace = execute(graph, np.zeros((1, 2), int), None, kernels)
        assert (trace.outputs["out"] == 1).all() and (trace.state["mine.v"] == 4).all()
    if library() is not None:
        with pytest.raises(UnsupportedError, match="mine: expected an op that Stream has .*, got Doubling"):
            Stream(graph)


@pytest.mark.parametrize("name", ["Sigmoid", "Shift", "Tally", "Table"])
def test_an_op_of_ones_own_by_a_name_that_is_taken_is_refused(name):
    own = type(name, (Doubled,), {})
    for on in ("event", "torch"):
        with pytest.raises(UnsupportedError, match=f"mine: expected an op of .*, got .*{name}, a name that is taken"):
            simulate(graph_with(own()), np.ones((1, 2, 1, 1, 3)), on=on)


def test_a_state_of_another_size_is_refused():
    graph = egru().lower()
    state = simulate(graph, tokens(5, 2)).state
    with pytest.raises(ShapeError, match="as many streams"):
        simulate(graph, tokens(5, 1), state)
    with pytest.raises(ShapeError, match="a Trace.state"):
        simulate(graph, tokens(5, 1), run(egru(), tokens(5, 1))[1])
    with pytest.raises(GraphError, match="expected an EventGraph, got EGRULM; give what the model's lower"):
        simulate(egru(), tokens(5, 1))
    with pytest.raises(UnsupportedError, match="integer: embedding: expected an op of integers, .*quantise"):
        simulate(graph, tokens(5, 1), on="integer")
    for wrong in (-1, 256):
        with pytest.raises(ShapeError, match=f"ids from 0 to 255, got {wrong}"):
            simulate(graph, np.array([[0, wrong, 5]]))


@pytest.mark.parametrize(("on", "options"), [("event", "no options"), ("torch", "device"), ("integer", "no options")])
def test_an_option_that_a_simulator_lacks(on, options):
    graph = EGRULM(EGRULMConfig(embedding=4, layers=(4,))).lower()
    remedy = "did you mean 'device'" if on == "torch" else "leave it out"
    with pytest.raises(ConfigError, match=f"simulate: expected on='{on}' with {options}, got devise; {remedy}"):
        simulate(graph, torch.zeros(1, 2, dtype=torch.int64), on=on, devise="cpu")
