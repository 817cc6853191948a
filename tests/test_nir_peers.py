"""Files of ours in the readers of other libraries, and files of theirs here: the same spikes over 1,000 steps.

What a library gets wrong is asserted as well, so that a version that mends it fails here and docs/exchange.md follows.
"""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from nir_nets import CUBA, FRAMES, HIDDEN, INPUTS, LIF, ODD, OUTPUTS, STEPS, X, net
from torch import nn

from rheobase.backends import export, simulate
from rheobase.backends.exporters.nir.fragments import wire
from rheobase.backends.exporters.nir.writer import build
from rheobase.backends.importers.nir import graph_of_nir, import_file
from rheobase.spiking.errors import FormatError
from rheobase.spiking.graph import LIFCell

nir, nirtorch = pytest.importorskip("nir"), pytest.importorskip("nirtorch")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated")
    norse = pytest.importorskip("norse.torch")
snntorch = pytest.importorskip("snntorch")
from norse.torch.functional.iaf import IAFParameters  # noqa: E402
from snntorch import utils as snn_utils  # noqa: E402
from snntorch.export_nir import export_to_nir as snntorch_writes  # noqa: E402
from snntorch.import_nir import import_from_nir as snntorch_reads  # noqa: E402

DT = 1e-4
GRAPHS = {
    "plain": (LIF, False),
    "recurrent": (LIF, True),
    "odd tau": (ODD, True),
    "cuba": (CUBA, False),
    "cuba recurrent": (CUBA, True),
}


def spikingjelly():
    """SpikingJelly's exchange of NIR: it needs packages that it does not require."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("spikingjelly")
        pytest.importorskip("loguru")
        from spikingjelly.activation_based import nir_exchange
    return nir_exchange


class Euler(nn.Module):
    """A LIF of NIR for nirtorch, which has none of its own."""

    def __init__(self, node):
        super().__init__()
        for name in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
            self.register_buffer(name, torch.as_tensor(np.asarray(getattr(node, name))))

    def forward(self, x, state=None):
        v = self.v_leak + torch.zeros_like(x) if state is None else state
        v = v + DT / self.tau * (self.v_leak - v + self.r * x)
        z = v > self.v_threshold
        return z.to(x.dtype), torch.where(z, self.v_reset, v)


def affine(node):
    """nirtorch's own map of Affine leaves the bias at its random start."""
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


@contextlib.contextmanager
def as_they_are():
    """Norse and snnTorch call what nirtorch deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"nirtorch\.\w+ is being deprecated")
        yield


@pytest.fixture(scope="module", autouse=True)
def norse_s_defaults():
    """As they were before Norse's modules, which make the default that all share ask for a gradient."""
    yield
    IAFParameters().v_reset.requires_grad_(False)


def norse_reads(graph):
    with as_they_are():
        return norse.from_nir(graph, dt=DT)


def norse_writes(module, path, **options):
    with as_they_are():
        nir.write(path, norse.to_nir(module, torch.from_numpy(X[:, 0]), **options))


READERS = {
    "snntorch": snntorch_reads,
    "norse": norse_reads,
    "spikingjelly": lambda graph: spikingjelly().import_from_nir(graph, dt=DT),
    "nirtorch": lambda graph: nirtorch.nir_to_torch(graph, {nir.LIF: Euler, nir.Affine: affine}),
}


@torch.no_grad()
def spikes_of(reader, path, reads=None):
    """[1, T, n] of a reader, one step a call."""
    with contextlib.redirect_stdout(io.StringIO()):
        module, state, out = (reads or READERS[reader])(nir.read(path)), None, []
        for x in torch.from_numpy(X).unbind(1):
            s, state = module(x, state)
            out.append((s[0] if isinstance(s, tuple) else s).numpy())
    return np.stack(out, 1)


def exported(tmp_path, graph, **options):
    export(graph, "nir", tmp_path / "net", **options)
    return tmp_path / "net" / "net.nir"


FORMS = [
    ("plain", "weights", False),
    ("plain", "r", False),
    ("recurrent", "weights", False),
    ("recurrent", "weights", True),
    ("recurrent", "r", True),
    ("odd tau", "weights", True),
    ("cuba", "weights", False),
    ("cuba recurrent", "weights", True),
]
CASES = [(r, *form) for form in FORMS for r in READERS if r != "nirtorch" or "cuba" not in form[0]]


@pytest.mark.parametrize(("reader", "which", "gain", "relay"), CASES)
def test_a_reader_gives_our_spikes_in_its_supported_forms(tmp_path, reader, which, gain, relay):
    """r = 1 with the gain in the weights, and a relay in each recurrence: all of them. The others: docs/exchange.md."""
    op, recurrent = GRAPHS[which]
    graph = net(op, recurrent=recurrent)
    ours = simulate(graph, FRAMES).outputs["out"]
    theirs = spikes_of(reader, exported(tmp_path, graph, gain=gain, relay=relay))
    assert 0.02 < ours.mean() < 0.9 and theirs.shape == ours.shape == (1, STEPS, OUTPUTS)
    ignores_r = reader == "norse" and gain == "r" and op is not CUBA
    misreads_cycles = reader == "snntorch" and recurrent and not relay
    differ = int((theirs != ours).sum())
    assert differ > 100 if ignores_r or misreads_cycles else differ == 0


@pytest.mark.parametrize("reader", READERS)
def test_a_threshold_that_is_reached_fires_there_too(tmp_path, reader):
    """Weights of quarters and tau = 2 put the membrane on the threshold again and again."""
    at, above = (net(LIFCell(2.0, 1.0, 0.0, False, fire), recurrent=True, step=0.25) for fire in (">=", ">"))
    ours = simulate(at, FRAMES).outputs["out"]
    assert (ours != simulate(above, FRAMES).outputs["out"]).sum() > 100
    assert np.array_equal(spikes_of(reader, exported(tmp_path, at, relay=True)), ours)


def test_nirtorchs_own_affine_has_no_bias(tmp_path):
    path = exported(tmp_path, net())
    torch.manual_seed(0)
    theirs = spikes_of("nirtorch", path, lambda g: nirtorch.nir_to_torch(g, {nir.LIF: Euler}))
    assert (theirs != simulate(net(), FRAMES).outputs["out"]).sum() > 100


def test_norse_resets_to_0_whatever_the_file_says(tmp_path):
    graph = net(LIFCell(4.0, 0.3, -0.5, decay_input=True, fire=">"))
    ours, path = simulate(graph, FRAMES).outputs["out"], exported(tmp_path, graph)
    assert (spikes_of("norse", path) != ours).sum() > 20
    assert np.array_equal(spikes_of("spikingjelly", path), ours)


def test_snntorch_refuses_units_that_do_not_leak(tmp_path):
    path = exported(tmp_path, net(LIFCell(float("inf"), 2.0, 0.0, decay_input=False, fire=">")))
    with pytest.raises(AssertionError, match="r != 1 not supported"):
        spikes_of("snntorch", path)
    graph = import_file(path)
    assert np.array_equal(simulate(graph, FRAMES).outputs["output"], spikes_of("norse", path))
    assert np.array_equal(simulate(graph, FRAMES).outputs["output"], spikes_of("spikingjelly", path))


def with_weights(module):
    generator = torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        if p.ndim == 2 or "bias" in name:
            p.data = torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 2 else 0.1) + 0.1 * (p.ndim == 2)
    return module


@torch.no_grad()
def run(module, state=False):
    """[1, T, n] of a network of theirs, one step a call, its state in and out or hidden."""
    out, carried = [], None
    for x in torch.from_numpy(X).unbind(1):
        s = module(x, carried) if state else module(x)
        s, carried = s if state else (s[0] if isinstance(s, tuple) else s, None)
        out.append(s.numpy())
    return np.stack(out, 1)


def differing(graph, theirs):
    (ours,) = simulate(graph, FRAMES).outputs.values()
    assert ours.shape == theirs.shape and 0.01 < theirs.mean() < 0.9
    return int((ours != theirs).sum())


def snntorch_net(kind, **settings):
    """snnTorch writes one number a layer as a scalar, which its own type check refuses: one a unit here."""
    module = getattr(snntorch, kind)

    def layer(n, **more):
        units = {k: torch.full((n,), v) for k, v in settings.items() if isinstance(v, float)}
        rest = {k: v for k, v in settings.items() if k not in units}
        wide = {"linear_features": n} if kind.startswith("R") else {}
        return module(**units, **rest, **wide, threshold=torch.ones(n), init_hidden=True, **more)

    first, last = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS, bias=False)
    return with_weights(nn.Sequential(first, layer(HIDDEN), last, layer(OUTPUTS, output=True)))


SNNTORCH = {
    "Leaky": {"beta": 0.75, "reset_mechanism": "zero", "reset_delay": False},
    "Leaky late": {"beta": 0.75, "reset_mechanism": "zero"},
    "Synaptic": {"alpha": 0.5, "beta": 0.75, "reset_mechanism": "zero", "reset_delay": False},
    "RLeaky": {"beta": 0.75, "reset_mechanism": "zero", "reset_delay": False},
}


def written_by_snntorch(module, tmp_path):
    with as_they_are():
        graph = snntorch_writes(module, torch.from_numpy(X[:, 0]), ignore_dims=[0])
    nir.write(tmp_path / "net.nir", graph)
    snn_utils.reset(module)
    return tmp_path / "net.nir"


@pytest.mark.parametrize("which", SNNTORCH)
def test_what_snntorch_writes_gives_its_spikes(tmp_path, which):
    module = snntorch_net(which.split()[0], **SNNTORCH[which])
    path = written_by_snntorch(module, tmp_path)
    assert differing(import_file(path, dt_s=DT), run(module)) == 0


def test_snntorch_writes_a_reset_by_subtraction_as_one_to_zero(tmp_path):
    module = snntorch_net("Leaky", beta=0.75)
    path = written_by_snntorch(module, tmp_path)
    assert module[1].reset_mechanism == "subtract" and not nir.read(path).nodes["1"].v_reset.any()
    assert differing(import_file(path, dt_s=DT), run(module)) > 100


def of_norse(kind, n):
    """Norse's writer wants a tensor in every field."""
    parameters, cell, settings = {
        "LIFBox": (norse.LIFBoxParameters, norse.LIFBoxCell, {"tau_mem_inv": 250.0, "v_th": 0.3}),
        "LIF": (norse.LIFParameters, norse.LIFCell, {"v_th": 0.3}),
        "IAF": (IAFParameters, norse.IAFCell, {"v_th": 2.0}),
    }[kind]
    defaults = parameters()._asdict()
    fields = {k: torch.as_tensor(v).detach().item() for k, v in defaults.items() if k[:2] in ("v_", "ta")} | settings
    return cell(parameters(**{k: torch.full((n,), v) for k, v in fields.items()}))


@pytest.mark.parametrize("kind", ["LIFBox", "LIF", "IAF"])
def test_what_norse_writes_gives_its_spikes_once_it_is_mended(tmp_path, kind):
    first, last = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS, bias=False)
    module = norse.SequentialState(first, of_norse(kind, HIDDEN), last, of_norse(kind, OUTPUTS))
    theirs = run(with_weights(module), state=True)
    norse_writes(module, tmp_path / "net.nir")
    assert differing(import_file(tmp_path / "net.nir", dt_s=1e-3, written_by="norse"), theirs) == 0
    if kind == "IAF":  # r = 1: 1 / dt too little
        assert differing(import_file(tmp_path / "net.nir", dt_s=1e-3), theirs) > 100
        return
    with pytest.raises(FormatError, match="0.0[0-9]* steps of 0.001 s; .* --written-by norse"):
        import_file(tmp_path / "net.nir", dt_s=1e-3)
    norse_writes(module, tmp_path / "net.nir", dt=1.0)
    once = differing(import_file(tmp_path / "net.nir", dt_s=1e-3), theirs)
    assert once == 0 if kind == "LIFBox" else once > 100  # w_in is left out of CubaLIF


@pytest.mark.parametrize("kind", ["LIF", "LIF to -0.1", "IF", "CUBALIF"])
def test_what_spikingjelly_writes_gives_its_spikes(tmp_path, kind):
    exchange = spikingjelly()
    from spikingjelly.activation_based import functional, layer, neuron

    make = {
        "LIF": lambda: neuron.LIFNode(4.0, decay_input=False),
        "LIF to -0.1": lambda: neuron.LIFNode(4.0, v_threshold=0.3, v_reset=-0.1),
        "IF": lambda: neuron.IFNode(3.0),
        "CUBALIF": lambda: neuron.CUBALIFNode(0.5, 0.75, v_threshold=2.0, v_reset=0.0),
    }[kind]
    module = nn.Sequential(layer.Linear(INPUTS, HIDDEN), make(), layer.Linear(HIDDEN, OUTPUTS, bias=False), make())
    exchange.export_to_nir(with_weights(module), torch.from_numpy(X[:, 0]), save_path=tmp_path / "net.nir", dt=DT)
    functional.reset_net(module)
    assert differing(import_file(tmp_path / "net.nir", dt_s=DT), run(module)) == 0


@pytest.mark.parametrize("which", GRAPHS)
def test_a_nirtorch_sub_graph_is_the_flat_cycle(which):
    """The recurrent neuron as a sub-graph, as snnTorch writes RLeaky."""
    op, recurrent = GRAPHS[which]
    graph = net(op, recurrent=True)
    flat = build(graph, wire(graph), dt_s=DT, gain="weights", relay=False, metadata={"dt": DT}).nir
    inside = {"lif": flat.nodes["n1"], "w_rec": flat.nodes["wr"]}
    inside |= {"input": nir.Input(np.array([HIDDEN])), "output": nir.Output(np.array([HIDDEN]))}
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    nodes = {k: v for k, v in flat.nodes.items() if k not in ("n1", "wr")}
    nodes["n1"] = nir.NIRGraph(inside, edges)
    outer = nir.NIRGraph(nodes, [e for e in flat.edges if "wr" not in e], metadata={"dt": DT})
    assert differing(graph_of_nir(outer, "net"), simulate(graph, FRAMES).outputs["out"]) == 0
