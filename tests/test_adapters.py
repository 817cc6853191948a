"""Neurons of Norse and snnTorch as cells: what they compute, what they leave behind, lower to, cost and refuse."""

import copy
import gc
import pickle
import sys
import warnings
import weakref

import nir_nets
import numpy as np
import pytest
import torch
from torch import nn

from rheobase.backends import count, simulate
from rheobase.spiking import ATan, FastSigmoid, registry
from rheobase.spiking.adapters import make_neuron
from rheobase.spiking.errors import ConfigError, GraphError, RheobaseError, ShapeError, UnsupportedError
from rheobase.spiking.graph import (
    CubaLIFCell,
    Edge,
    Embedding,
    EventGraph,
    LIFCell,
    Linear,
    Node,
    TernaryLIFCell,
    Tokens,
)
from rheobase.spiking.neurons import LIF, LIFState
from rheobase.spiking.ops import lif
from rheobase.spiking.tally import BINARY, DENSE

ADAPTERS = "rheobase.spiking.adapters"
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.* is deprecated")
    pytest.importorskip("norse.torch")
snntorch = pytest.importorskip("snntorch")
EXAMPLES = [(name, i) for name in ("norse", "snntorch") for i in range(len(registry.get(ADAPTERS, name).examples()))]
V, D, T = 11, 6, 80


def example(name, i):
    return registry.get(ADAPTERS, name).examples()[i].double().eval()


def drive(units, batch=3, steps=T, seed=0):
    return 1.5 * torch.randn(batch, steps, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Small(nn.Module):
    """Embedding, neuron, linear layer; the embedding drives the neuron, the layer reads its spikes."""

    def __init__(self, cell):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.neuron, self.head = nn.Embedding(V, D), cell, nn.Linear(D, 4, bias=False)
        nn.init.normal_(self.embedding.weight, 0.4, 1.2)
        self.double().eval()

    def forward(self, tokens):
        return self.head(self.neuron(self.embedding(tokens))[0])

    def lower(self):
        op = self.neuron.lower()
        arrays = {k: p.detach().numpy() for k, p in self.named_parameters()}
        roles = {r.rstrip("?") for r in op.roles}
        own = {n: f"neuron.{n}" for n, _ in self.neuron.named_parameters() if n in roles}
        nodes = (
            Node("tokens", Tokens(V)),
            Node("embedding", Embedding(), {"table": "embedding.weight"}),
            Node("neuron", op, own),
            Node("head", Linear(transposed=True), {"weight": "head.weight"}),
        )
        edges = (
            Edge("tokens.out", "embedding.token", BINARY, (V,)),
            Edge("embedding.out", "neuron.x", DENSE, (D,)),
            Edge("neuron.s", "head.x", op.outputs["s"], (D,)),
        )
        return EventGraph(nodes, edges, arrays, {"logits": "head.out"})


TOKENS = np.random.default_rng(0).integers(0, V, (3, T))
LOWERED = {
    "norse:LIF": {"v_th": 0.4, "v_reset": -0.2},
    "norse:LIFBox": {"tau_mem_inv": 300.0, "v_th": 0.4, "v_reset": -0.2, "v_leak": -0.2},
    "norse:LIFBox subtract": {"tau_mem_inv": 300.0, "v_th": 0.4, "reset_method": "reset_subtract"},
    "norse:IAF": {"v_reset": -0.3},
    **{f"snntorch:Leaky {r}": {"beta": 0.8, "reset_mechanism": r} for r in ("subtract", "zero", "none")},
    "snntorch:Leaky at once": {"beta": 0.8, "reset_mechanism": "zero", "reset_delay": False},
    "snntorch:Leaky no leak": {"beta": 1.0, "reset_mechanism": "zero"},
    "snntorch:Leaky learnt": {"beta": 0.8, "learn_beta": True, "learn_threshold": True},
    **{f"snntorch:Lapicque {r}": {"R": 2.0, "C": 1.5, "reset_mechanism": r} for r in ("subtract", "zero", "none")},
    **{
        f"snntorch:Synaptic {r}": {"alpha": 0.5, "beta": 0.6, "reset_mechanism": r}
        for r in ("subtract", "zero", "none")
    },
    "snntorch:Synaptic at once": {"alpha": 0.5, "beta": 0.6, "reset_mechanism": "zero", "reset_delay": False},
    "lif": {"tau": 3.0, "v_reset": -0.2, "theta": 0.7},
    "lif ternary": {"theta": 0.7, "ternary": True, "learn": ["theta"]},
    "lif learnt": {"tau": 3.0, "theta": 0.7, "learn": ["tau", "theta"], "fire": ">"},
}


def small(key):
    model = Small(make_neuron(key.split()[0], D, **LOWERED[key]))
    with torch.no_grad():
        for name in ("tau", "theta"):
            if isinstance(parameter := getattr(model.neuron, name, None), nn.Parameter):
                parameter.add_(torch.rand_like(parameter))  # no two units alike
    return model


@pytest.mark.parametrize("on", ["event", "torch"])
@pytest.mark.parametrize("key", LOWERED)
def test_the_graph_op_gives_the_neurons_own_spikes(key, on):
    model, tokens = small(key), torch.from_numpy(TOKENS)
    with torch.no_grad():
        s, _ = model.neuron(model.embedding(tokens))
        logits = model(tokens)
    trace = simulate(model.lower(), TOKENS, on=on)
    assert 0.02 < s.abs().mean() < 0.98
    assert np.array_equal(trace.events["neuron.s"].to_dense(), s.numpy())
    assert np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-12


@pytest.mark.parametrize("key", LOWERED)
def test_both_counters_agree_on_what_the_spikes_cost(key):
    """Equal in every field for LIF; the libraries' own steps take more additions, and but for Norse's LIF products."""
    model = small(key)
    watched, simulated = count(model, torch.from_numpy(TOKENS)), simulate(model.lower(), TOKENS).tally
    assert watched.uncounted == ()
    watched, simulated = watched.without_bytes(), simulated.without_bytes()
    assert watched.operators["head"] == simulated.operators["head"]
    for field in ("dense_macs", "macs", "acs", "rows", "events"):
        assert getattr(watched, field) == getattr(simulated, field)
    assert watched.state_updates == simulated.state_updates
    if key.startswith("lif"):
        assert watched == simulated
    elif key == "norse:LIF":
        assert watched.products == simulated.products and watched.adds > simulated.adds


@pytest.mark.parametrize(
    ("op", "products", "adds"),
    [
        (CubaLIFCell(), 2, 3),  # beta v + x; h - theta; h - s h
        (CubaLIFCell(v_reset=None), 2, 3),
        (CubaLIFCell(alpha=0.5, gain=0.3, v_reset=-0.1), 4, 5),  # alpha i + x too, and h - v_reset
        (CubaLIFCell(reset="next"), 2, 4),  # v - theta too
        (CubaLIFCell(reset="never"), 1, 2),
    ],
)
def test_a_cell_of_currents_by_hand(op, products, adds):
    """Each form of the equation takes what it says, a unit and step, and no more."""
    counts = simulate(nir_nets.net(op), nir_nets.FRAMES[:, :9]).tally.operators["n1"]
    steps = 9 * nir_nets.HIDDEN
    assert (counts.products, counts.adds) == (products * steps, adds * steps)


@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_what_snntorch_computes_beside_its_equations(kind):
    """A product of each spike with graded_spikes_factor; that a decay is clamped is the same for every token."""
    model = small(f"snntorch:{kind} subtract")
    watched, simulated = count(model, torch.from_numpy(TOKENS)), simulate(model.lower(), TOKENS).tally
    assert watched.products - simulated.products == TOKENS.size * D
    assert watched.comparisons == simulated.comparisons


@pytest.mark.parametrize(("name", "i"), EXAMPLES)
def test_every_example_is_counted(name, i):
    cell = example(name, i)
    tally = count(nn.Sequential(cell), drive(cell.units))
    s, state = cell(drive(cell.units))
    assert tally.uncounted == () and tally.events == int(s.sum()) > 0
    assert tally.state_updates == len(state) * s.numel() and tally.macs == 0


@pytest.mark.parametrize(("name", "i"), EXAMPLES)
def test_one_step_of_training_has_finite_gradients(name, i):
    cell = registry.get(ADAPTERS, name).examples()[i].train()
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(5, cell.units), cell, nn.Linear(cell.units, 2)])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    s, _ = cell(model[0](3 * torch.randn(4, 12, 5)))
    model[2](s).square().mean().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert s.dtype == torch.float32 and all(g is not None and g.isfinite().all() for g in gradients.values())
    assert gradients["0.weight"].abs().max() > 0
    before = [p.clone() for p in cell.parameters()]
    optimiser.step()
    cell.project_()
    assert all(not torch.equal(a, b) for a, b in zip(before, cell.parameters(), strict=True))
    assert cell(model[0](torch.randn(4, 12, 5)))[0].isfinite().all()


@pytest.mark.parametrize(("name", "i"), EXAMPLES)
def test_copies_are_the_same_neuron_and_another_size_is_refused(name, i):
    cell, x = example(name, i), drive(example(name, i).units)
    s, state = cell(x)
    assert s.dtype == torch.float64 and all(part.dtype == torch.float64 for part in state)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        t, end = other(x)
        assert torch.equal(s, t) and all(torch.equal(a, b) for a, b in zip(state, end, strict=True))
    assert pickle.loads(pickle.dumps(state)) is not state
    with pytest.raises(ShapeError, match="start a new state"):
        cell(x[:2], state)
    with pytest.raises(ShapeError, match="start a new state"):
        cell(torch.cat([x, x], 2))


def leaky(**settings):
    return make_neuron("snntorch:Leaky", 3, beta=0.9, threshold=0.6, **settings)


def test_snntorch_leaves_nothing_behind():
    instances = list(snntorch.SpikingNeuron.instances)
    cell = leaky(learn_beta=True)
    assert snntorch.SpikingNeuron.instances == instances
    s, state = cell(drive(3).float().requires_grad_())
    held = [t for t in [*vars(cell.neuron).values(), *cell.neuron.buffers()] if isinstance(t, torch.Tensor)]
    assert state.mem.requires_grad and not any(t.requires_grad or t.numel() > 1 for t in held)
    assert list(cell.state_dict()) == ["neuron.beta"]
    gone = [weakref.ref(cell), weakref.ref(cell.neuron)]
    del cell
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_norse_keeps_its_defaults():
    from norse.torch.functional.iaf import IAFParameters

    make_neuron("norse:IAF", 3)(drive(3).requires_grad_())[0].sum().backward()
    assert not IAFParameters().v_reset.requires_grad


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
def test_snntorch_is_run_as_it_is(reset, delay):
    """Spikes, membranes and gradients of snnTorch's own module with its own surrogate, in float32."""
    theirs = snntorch.Leaky(0.9, threshold=0.6, reset_mechanism=reset, reset_delay=delay)
    ours = leaky(reset_mechanism=reset, reset_delay=delay).float()
    x = [drive(3).float().requires_grad_() for _ in range(2)]
    mem, spikes = torch.zeros(3, 3), []
    for part in x[0].unbind(1):
        s, mem = theirs(part, mem)
        spikes.append(s)
    s, state = ours(x[1])
    assert torch.equal(torch.stack(spikes, 1), s) and torch.equal(mem, state.mem) and s.sum() > 20
    weights = torch.randn(s.shape)
    gradients = [
        torch.autograd.grad((weights * a).sum() + b.sum(), c)[0]
        for a, b, c in ((torch.stack(spikes, 1), mem, x[0]), (s, state.mem, x[1]))
    ]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


SAME = {
    "norse:LIFBox": ({"tau_mem_inv": 250.0, "v_th": 0.3}, {"tau": 4.0, "theta": 0.3, "surrogate": FastSigmoid(1.0)}),
    "snntorch:Leaky": (
        {"beta": 0.75, "threshold": 0.6, "reset_mechanism": "zero", "reset_delay": False},
        {"tau": 4.0, "theta": 0.6, "decay_input": False, "surrogate": ATan()},
    ),
    "snntorch:Leaky late": (
        {"beta": 0.75, "threshold": 0.6, "reset_mechanism": "zero"},
        {"tau": 4.0, "theta": 0.6, "decay_input": False, "detach_reset": True},
    ),
}


@pytest.mark.parametrize("key", SAME)
def test_a_neuron_that_both_can_express_has_our_spikes_and_our_gradients(key):
    theirs, ours = SAME[key]
    x = drive(3).requires_grad_()
    s = make_neuron(key.split()[0], 3, **theirs)(x)[0]
    t = LIF(3, fire=">", **ours)(x)[0]
    assert torch.equal(s, t) and 0.05 < s.mean() < 0.95
    weights = torch.randn_like(s)
    a, b = (torch.autograd.grad((weights * out).sum(), x)[0] for out in (s, t))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "kind", "message"),
    [
        ("lfi", {}, ConfigError, "did you mean 'lif'"),
        ("lif", {"thete": 1.0}, ConfigError, "did you mean 'theta'"),
        ("lif", {"tau": "two"}, ConfigError, "lif.tau: expected float"),
        ("egru", {}, ConfigError, "without matrices"),
        ("nors:LIF", {}, ConfigError, "did you mean 'norse'"),
        ("norse:LIFBocks", {}, ConfigError, "did you mean 'LIFBox'"),
        ("norse:LIFBox", {"v_thr": 1.0}, ConfigError, "did you mean 'v_th'"),
        ("norse:LIFBox", {"alpha": 10.0}, ConfigError, "a setting with an effect"),
        ("norse:IAF", {"dt": 0.01}, ConfigError, "a setting with an effect"),
        ("norse:LIFBox", {"reset_method": "reset_subtract", "v_reset": 0.1}, ConfigError, "resets by subtraction"),
        ("norse:LIF", {"method": "heaviside"}, ConfigError, "one of"),
        ("norse:LIFBox", {"tau_mem_inv": 0.0}, ConfigError, "tau_mem_inv: expected a number above 0, got 0.0"),
        ("norse:LIFBox", {"dt": 0.0}, ConfigError, "dt: expected a number above 0"),
        ("norse:LIF", {"tau_syn_inv": -1.0}, ConfigError, "from 0 to 1 / dt"),
        ("norse:LIF", {"dt": 0.01}, ConfigError, "tau_syn_inv: .* got 200.0 at dt = 0.01"),
        ("norse:LIFEx", {"delta_T": 0.0}, ConfigError, "delta_T: expected a number above 0"),
        ("norse:IAF", {"v_th": float("nan")}, ConfigError, "v_th: expected a finite number, got nan"),
        ("norse:IAF", {"alpha": 0.0, "method": "circ"}, ConfigError, "alpha: expected a number above 0"),
        ("norse:LI", {}, UnsupportedError, "never fires"),
        ("norse:LIFRecurrent", {}, UnsupportedError, "holds matrices"),
        ("norse:LIFRefrac", {}, UnsupportedError, "nested state"),
        ("norse:Izhikevich", {}, UnsupportedError, "come with a state"),
        ("snntorch:Leeky", {}, ConfigError, "did you mean 'Leaky'"),
        ("snntorch:RLeaky", {}, UnsupportedError, "recurrent weights"),
        ("snntorch:Alpha", {}, UnsupportedError, "no gradient"),
        ("snntorch:Leaky", {}, ConfigError, "the setting 'beta'"),
        ("snntorch:Leaky", {"beta": 1.5}, ConfigError, "from 0 to 1"),
        ("snntorch:Leaky", {"beta": 0.9, "bta": 1.0}, ConfigError, "did you mean 'beta'"),
        ("snntorch:Leaky", {"beta": 0.9, "init_hidden": True}, ConfigError, "explicit state"),
        ("snntorch:Leaky", {"beta": 0.9, "threshold": 0.0}, ConfigError, "at least 0.001"),
        ("snntorch:Leaky", {"beta": 0.9, "reset_mechanism": "zeros"}, ConfigError, "did you mean 'zero'"),
        ("snntorch:Lapicque", {"beta": 0.9, "learn_beta": True}, ConfigError, "with an effect"),
        ("snntorch:Lapicque", {"R": 1.0}, ConfigError, "two of beta, R and C"),
        ("snntorch:Lapicque", {"R": 0.0, "C": 1.0}, ConfigError, "more than 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, settings, kind, message):
    with pytest.raises(RheobaseError, match=message) as caught:
        make_neuron(name, 3, **settings)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("norse:LIFBox", {"v_leak": 0.5}, "v_leak = 0.5"),
        ("norse:LIF", {"v_leak": 0.5}, "v_leak = 0.5"),
        ("norse:LSNN", {}, "equations of no graph op"),
        ("snntorch:Leaky", {"beta": 0.9, "reset_delay": False}, "beyond 2 threshold"),
    ],
)
def test_what_no_graph_op_computes_does_not_lower(name, settings, message):
    with pytest.raises(UnsupportedError, match=message):
        make_neuron(name, 3, **settings).lower()


@pytest.mark.parametrize("library", ["norse", "snntorch"])
def test_an_absent_library_is_one_line_with_the_command(library, monkeypatch):
    for module in [m for m in sys.modules if m == library or m.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Absent(library), *sys.meta_path])
    with pytest.raises(UnsupportedError, match=f'{library}: .* pip install "{library}>='):
        make_neuron(f"{library}:LIF", 3)


class Absent:
    """A finder for which a library is not there."""

    def __init__(self, library):
        self.library = library

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.library)


def test_a_learnt_lif_takes_one_value_a_unit_into_the_graph():
    model = small("lif learnt")
    assert model.neuron.lower() == LIFCell(v_reset=0.0, fire=">")
    graph = model.lower()
    assert graph.hash() != small("lif").lower().hash()
    with pytest.raises(GraphError, match="neuron: theta"):
        EventGraph(graph.nodes, graph.edges, {**graph.arrays, "neuron.theta": np.ones(D + 1)}, graph.outputs)
    x = torch.ones(1, 1, 3)
    for wrong, make in {
        "CubaLIFCell reset": lambda: CubaLIFCell(reset="later"),
        "LIFCell fire": lambda: LIFCell(fire="=>"),
        "LIFCell theta": lambda: TernaryLIFCell(theta=0.0),
        "lif theta": lambda: lif(torch.ones(1, 1, 1), theta=0.0, ternary=True),
        r"lif tau, theta: expected a number, or shape \(3,\), got \(2,\)": lambda: lif(x, tau=torch.ones(2)),
    }.items():
        with pytest.raises(RheobaseError, match=wrong):
            make()


def test_a_graph_starts_a_lif_at_its_reset():
    cell = make_neuron("lif", D, v_reset=-0.2)
    assert torch.equal(cell.initial_state(1).v, torch.full((1, D), -0.2)) and isinstance(
        cell.initial_state(1), LIFState
    )
    assert Small(cell).lower().state_fill()["neuron.v"] == -0.2
