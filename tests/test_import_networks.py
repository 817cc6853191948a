"""Networks of snnTorch and Norse as graphs, and the commands that import, run and export graphs."""

import io
import json

import nir
import numpy as np
import pytest
import torch
from nir_nets import FRAMES, X, net
from torch import nn
from torch.nn.utils import prune

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import open_artifact
from rheobase.backends.events import read_edge
from rheobase.backends.exporters.nir import rejoin
from rheobase.backends.importers.nir import import_file
from rheobase.backends.importers.torch import import_module, import_named
from rheobase.cli import run as command
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking import LIF
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import SumPool2d
from rheobase.spiking.graph.stored import load_graph, save_graph

pytest.importorskip("nir")

NETWORK = """
import snntorch
import torch
from torch import nn
torch.manual_seed(0)
late = nn.Sequential(nn.Linear(12, 16), snntorch.Leaky(0.75, init_hidden=True), nn.Dropout(0.5), nn.Linear(16, 8))
def zero():
    leaky = lambda: snntorch.Leaky(0.75, threshold=0.2, reset_mechanism="zero", init_hidden=True)
    return nn.Sequential(nn.Linear(12, 16), leaky(), nn.Linear(16, 8), leaky())
number = 3
def boom():
    raise RuntimeError("no")
def wants(width):
    return nn.Linear(width, 3)
"""


LOUD = """
import snntorch
from torch import nn
print("loading")
class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        print("making")
        self.layer, self.neuron = nn.Linear(4, 3), snntorch.Leaky(0.75, init_hidden=True)
    def forward(self, x):
        print("running")
        return self.neuron(self.layer(x))
"""


@pytest.fixture
def network(tmp_path):
    pytest.importorskip("snntorch")
    pytest.importorskip("nirtorch")
    (tmp_path / "network.py").write_text(NETWORK)
    return f"{tmp_path / 'network.py'}"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Leaky", "Leaky zero", "Lapicque", "Synaptic", "RLeaky"])
def test_a_snntorch_network_comes_in_with_its_own_spikes(kind):
    """Its default reset by subtraction, a step late, too: that is lost in a NIR file."""
    snntorch, _ = pytest.importorskip("snntorch"), pytest.importorskip("nirtorch")
    settings = {"beta": 0.75} | ({"reset_mechanism": "zero"} if "zero" in kind else {})
    settings |= {"alpha": 0.5} if kind == "Synaptic" else {}
    settings |= {"R": 2.0} if kind == "Lapicque" else {}
    settings |= {"reset_mechanism": "zero", "reset_delay": False, "linear_features": 16} if kind == "RLeaky" else {}

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 8)
            self.neuron = getattr(snntorch, kind.split()[0])(**settings)
            nn.init.normal_(self.first.weight, 0.2, 0.6)

        def forward(self, x, *state):
            s, *parts = self.neuron(self.first(x), *state)
            return self.last(s), (s, *parts) if kind == "RLeaky" else parts

    class Traced(Step):
        def forward(self, x):
            return self.last(self.neuron(self.first(x))[0])

    net, state, out = Step(), (), []
    for x in torch.from_numpy(X).unbind(1):
        y, state = net(x, *(state or [torch.zeros(1, 16)] * (1 + (kind in ("Synaptic", "RLeaky")))))
        out.append(y)
    traced = Traced()
    traced.load_state_dict(net.state_dict())
    graph = import_module(traced, input_kind="BINARY")
    ours = simulate(graph, FRAMES).outputs["output"]
    assert np.allclose(ours, torch.stack(out, 1).numpy(), atol=1e-5) and np.ptp(ours) > 0.1


def test_a_recurrent_synaptic_of_snntorch_is_refused():
    """Its reset in the step of the spike reads the spike of the step before (snnTorch 1.0.0)."""
    snntorch = pytest.importorskip("snntorch")
    with pytest.raises(UnsupportedError, match="got RSynaptic"):
        import_module(nn.Sequential(nn.Linear(12, 16), snntorch.RSynaptic(0.5, 0.75, linear_features=16)))


def test_a_constant_that_nirtorch_would_drop_is_refused():
    snntorch, _ = pytest.importorskip("snntorch"), pytest.importorskip("nirtorch")

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.neuron = nn.Linear(12, 16), snntorch.Leaky(0.9, init_hidden=True)

        def forward(self, x):
            return self.neuron(self.layer(x) + 0.1)

    with pytest.raises(UnsupportedError, match="sums of two layers' outputs"):
        import_module(Adds())


def _twice(net, x, mem):
    return net.first(net.middle(net.first(x))), mem


def _of_a_membrane(net, x, mem):
    s, mem = net.last(net.layer(x), mem)
    return net.layer(s + mem), mem


def _of_another(net, x, mem):
    _, mem = net.last(net.layer(x), mem)
    s, _ = net.other(net.layer(x), mem)
    return s, mem


def _membrane_first(net, x, mem):
    s, mem = net.last(net.layer(x), mem)
    return mem, s


def _two_outputs(net, x, mem):
    s, mem = net.last(net.layer(x), mem)
    return net.layer(s), net.middle(s), mem


def _of_what_comes_in(net, x, mem):
    return net.first(net.layer(x) + mem)


def _begins_anew(net, x, mem):
    return net.last(net.layer(x), net.last.init_leaky())


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_twice, "each neuron once a step, got first twice"),
        (_of_a_membrane, "layers that read spikes .* got add of"),
        (_of_another, "their own state .* got other of"),
        (_membrane_first, "one output, got getitem_1 .a state., getitem"),
        (_two_outputs, "one output, got layer_1, middle, getitem_1 .a state."),
        (_of_what_comes_in, "layers that read spikes .* got add of mem"),
        (_begins_anew, "got last.mem; let forward take it, None at first"),
    ],
)
def test_what_nirtorch_would_take_for_something_else_is_refused(forward, message):
    """It gave graphs of other spikes without a word: states read as spikes or dropped, a neuron's two calls as two
    neurons, two outputs as their sum."""
    snntorch, _ = pytest.importorskip("snntorch"), pytest.importorskip("nirtorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.middle, self.first = (
                nn.Linear(6, 6),
                nn.Linear(6, 6),
                snntorch.Leaky(0.5, init_hidden=True),
            )
            self.last, self.other = snntorch.Leaky(0.5), snntorch.Leaky(0.5)

        def forward(self, x, mem=None):
            return forward(self, x, mem)

    with pytest.raises(UnsupportedError, match=message):
        import_module(Net())


@pytest.mark.parametrize("library", ["snntorch", "norse"])
def test_a_neuron_that_no_graph_op_computes_is_named(library):
    module = pytest.importorskip({"norse": "norse.torch"}.get(library, library))
    pytest.importorskip("nirtorch")
    neuron = module.LIFAdExCell() if library == "norse" else module.SLSTM(6, 6, init_hidden=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.neuron = nn.Linear(6, 6), neuron

        def forward(self, x, state=None):
            return self.neuron(self.layer(x), state)

    with pytest.raises(UnsupportedError, match="norse:LIFAdEx: expected|snntorch:SLSTM: expected"):
        import_module(Net() if library == "norse" else nn.Sequential(nn.Linear(6, 6), neuron))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("lte", ConfigError, "did you mean 'late'"),
        ("number", ConfigError, "a torch module, got int"),
        ("boom", ConfigError, "a function of no arguments that makes a network, got RuntimeError: no; mend it"),
        ("wants", ConfigError, "a function of no arguments that makes a network, got TypeError: "),
    ],
)
def test_a_name_that_is_no_network_is_one_line(network, name, kind, message):
    with pytest.raises(kind, match=message):
        import_named(f"{network}:{name}")


def test_a_file_that_does_not_run_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="broken.py: expected a Python file that runs, got ZeroDivisionError"):
        import_named(f"{tmp_path / 'broken.py'}:net")


def _pruned(layer):
    prune.identity(layer, "weight")


def _hooked(layer):
    layer.register_forward_hook(lambda module, given, out: 2 * out)


@pytest.mark.parametrize("change", [_pruned, _hooked])
def test_a_module_with_hooks_is_refused(change):
    """What they compute is not in the weights."""
    snntorch = pytest.importorskip("snntorch")
    made = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.75, init_hidden=True))
    change(made[0])
    with pytest.raises(UnsupportedError, match="expected modules without hooks, got Linear with some at 0; take them"):
        import_module(made)


def test_a_module_with_a_forward_of_its_own_is_refused():
    snntorch = pytest.importorskip("snntorch")
    made = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.75, init_hidden=True))
    made[0].forward = lambda x: 5 * torch.nn.functional.linear(x, made[0].weight)
    with pytest.raises(UnsupportedError, match="expected modules with the forward of their class, got Linear"):
        import_module(made)


def test_settings_that_no_graph_op_has_are_refused():
    snntorch = pytest.importorskip("snntorch")
    for setting in ({"state_quant": torch.round}, {"graded_spikes_factor": 2.0}):
        made = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.75, init_hidden=True, **setting))
        with pytest.raises(UnsupportedError, match="a state that is not quantised, got others; leave"):
            import_module(made)


@pytest.mark.parametrize("forward", [torch.sigmoid, lambda over: (over >= 0).float(), lambda over: 2.0 * (over > 0)])
def test_a_neuron_that_fires_by_a_rule_of_its_own_is_refused(forward):
    """It was imported as one that fires above its threshold."""
    snntorch = pytest.importorskip("snntorch")
    made = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.75, spike_grad=forward, init_hidden=True))
    with pytest.raises(UnsupportedError, match="Leaky spike_grad: expected spikes of 0 and 1 above the threshold, got"):
        import_module(made)


def test_a_threshold_that_is_no_number_is_named():
    snntorch = pytest.importorskip("snntorch")
    made = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.75, threshold=float("nan"), init_hidden=True))
    with pytest.raises(UnsupportedError, match="threshold: expected one value for all units, got nan"):
        import_module(made)


def test_weights_that_numpy_has_no_type_for_are_named():
    snntorch = pytest.importorskip("snntorch")
    made = nn.Sequential(nn.Linear(3, 2), snntorch.Leaky(0.75, init_hidden=True)).bfloat16()
    with pytest.raises(UnsupportedError, match=r"network: 0.weight: .*got torch.bfloat16; call .float\(\)"):
        import_module(made)


def test_what_a_program_prints_is_no_part_of_the_answer(tmp_path, network, capsys):
    (tmp_path / "loud.py").write_text(LOUD)
    assert command(["import", f"{tmp_path / 'loud.py'}:Loud", "--out", str(tmp_path / "graph"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["ok"] and all(word in shown.err for word in ("loading", "making", "running"))


def test_layers_without_a_graph_op_are_named():
    pytest.importorskip("nirtorch")
    with pytest.raises(UnsupportedError, match="got Bilinear|got .*BatchNorm1d"):
        import_module(nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16)))


def test_neurons_of_ours_are_named_with_what_gives_their_graph():
    model = EGRULM(EGRULMConfig(embedding=8, layers=(8,)))
    for network, got in ((nn.Sequential(nn.Linear(12, 16), LIF()), "LIF at 1"), (model, "EGRU at layers.0")):
        message = f"nets.py:A: expected neurons of snnTorch or Norse, got rheobase's {got}; a model's own lower"
        with pytest.raises(UnsupportedError, match=message):
            import_module(network, "nets.py:A")


def test_the_commands_from_a_network_to_its_events(tmp_path, network, capsys):
    graph, out = tmp_path / "graph", tmp_path / "net"

    def ask(*words):
        assert command([str(w) for w in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "2 LIFCell" in ask("import", f"{network}:zero", "--out", graph, "--input-kind", "BINARY")
    np.save(tmp_path / "x.npy", X)
    assert "1,000 steps of" in ask("simulate", graph, "--input", tmp_path / "x.npy")
    assert "noise" in ask("simulate", graph, "--on", "torch", "--tokens", 20)
    recorded = "--input", tmp_path / "x.npy", "--record", "*.s", "--out", tmp_path / "trace.h5"
    ask("simulate", graph, *recorded)
    assert "(1, 1000, 16)" in ask("inspect", tmp_path / "trace.h5")
    assert json.loads(ask("count", graph, "--input", tmp_path / "x.npy", "--target", "loihi1", "--json"))["tally"]
    assert "100 % of weights in NIR" in ask("export", graph, "--to", "nir", "--out", out, "--relay")
    assert "joined again to graph" in ask("verify", out) and "net.nir" in ask("inspect", out)
    ask("import", out, "--out", tmp_path / "again")
    assert load_graph(tmp_path / "again").hash() == load_graph(graph).hash()
    ask("import", out / "net.nir", "--out", tmp_path / "of_file")
    same = [simulate(load_graph(p), FRAMES).outputs["output"] for p in (graph, tmp_path / "of_file")]
    assert np.array_equal(*same) and same[0].sum() > 20
    assert "LIFCell" in ask("inspect", graph)
    for to in ("pyspinnaker2", "onnx"):
        ask("export", graph, "--to", to, "--out", tmp_path / to, "--input", tmp_path / "x.npy")
        assert "0 mismatches" in ask("verify", tmp_path / to)


def test_the_step_of_a_file_stays_its_step(tmp_path, capsys):
    """In the graph that is stored, in the file that is written from it, and in the events of a run."""
    ones = np.ones(2)
    neuron = nir.LIF(tau=4e-3 * ones, r=ones, v_leak=0 * ones, v_threshold=0.4 * ones, v_reset=0 * ones)
    nodes = {"input": nir.Input(np.array([2])), "w": nir.Linear(2 * np.eye(2)), "n": neuron}
    nodes["output"] = nir.Output(np.array([2]))
    path = [("input", "w"), ("w", "n"), ("n", "output")]
    nir.write(str(tmp_path / "a.nir"), nir.NIRGraph(nodes, path, metadata={"dt": 1e-3}))
    graph, out, edge = tmp_path / "graph", tmp_path / "net", tmp_path / "n.raw"
    for words in (
        ("import", tmp_path / "a.nir", "--out", graph, "--input-kind", "BINARY"),
        ("export", graph, "--to", "nir", "--out", out),
        ("simulate", graph, "--tokens", 50, "--record", "n.s", "--out", edge),
    ):
        assert command([str(w) for w in words]) == 0, capsys.readouterr().err
    again = nir.read(str(out / "net.nir"))
    assert load_graph(graph).dt_s == again.metadata["dt"] == 1e-3
    assert [n.tau for n in again.nodes.values() if isinstance(n, nir.LIF)][0] == pytest.approx(4e-3 * ones)
    assert read_edge(edge).dt_s == 1e-3 and len(read_edge(edge))
    assert command(["export", str(graph), "--to", "nir", "--out", str(tmp_path / "b"), "--dt", "1e-4"]) == 0
    assert nir.read(str(tmp_path / "b/net.nir")).metadata["dt"] == 1e-4


def test_frames_of_booleans_are_events_and_no_steps_are_refused(tmp_path, network, capsys):
    graph = tmp_path / "graph"
    assert command(["import", f"{network}:zero", "--out", str(graph), "--input-kind", "BINARY"]) == 0
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "b.npy", X.astype(bool))
    np.save(tmp_path / "none.npy", X[:, :0])
    capsys.readouterr()
    seen = []
    for name in ("x", "b", "none"):
        assert command(["simulate", str(graph), "--input", str(tmp_path / f"{name}.npy")]) == 0
        seen.append(capsys.readouterr().out.splitlines()[1:])
    assert seen[0] == seen[1] and "% active" in seen[0][0] and seen[2][0].endswith(": 0 events")
    assert command(["export", str(graph), "--to", "nir", "--out", "n", "--input", str(tmp_path / "none.npy")]) == 1
    assert "calibration: expected at least one step, got (1, 0" in capsys.readouterr().err


def test_the_commands_refuse_options_without_effect(tmp_path, network, capsys):
    save_graph(tmp_path / "graph", net())
    for words, message in (
        (["import", f"{network}:zero", "--out", "g", "--dt", "1"], "got --dt"),
        (["import", network, "--out", "g", "--shape", "1", "2", "2"], "expected FILE.py:NAME"),
        (["import", tmp_path / "graph", "--out", "g"], "HDF5|a NIR file"),
        (["export", tmp_path / "graph", "--to", "spinnaker2", "--out", "g", "--relay"], "got 'relay'"),
        (["simulate", tmp_path / "graph", "--on", "integer"], "event or torch for a stored graph"),
        (["simulate", tmp_path / "graph", "--input", network], "an array"),
        (["count", tmp_path / "graph", "--measure"], "expected a run"),
    ):
        assert command([str(w) for w in words]) == 1
        line = capsys.readouterr().err
        assert any(m in line for m in message.split("|")) and line.count("\n") == 1, line


def test_an_array_of_objects_is_not_read(tmp_path, capsys):
    save_graph(tmp_path / "graph", net())
    buffer = io.BytesIO()
    np.save(buffer, np.array([[print]], object), allow_pickle=True)
    (tmp_path / "x.npy").write_bytes(buffer.getvalue())
    assert command(["simulate", str(tmp_path / "graph"), "--input", str(tmp_path / "x.npy")]) == 1
    assert "Object arrays cannot be loaded" in capsys.readouterr().err


def _pooled() -> nn.Sequential:
    snntorch = pytest.importorskip("snntorch")
    pytest.importorskip("nirtorch")
    torch.manual_seed(0)

    def leaky():
        return snntorch.Leaky(0.8, threshold=0.3, reset_mechanism="zero", init_hidden=True)

    first = nn.Conv2d(2, 4, 3, padding=1), leaky(), nn.AvgPool2d(2)
    second = nn.Conv2d(4, 3, 3), leaky(), nn.AvgPool2d(3, padding=1)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(3, 5), leaky())


IMAGES = (torch.rand(1, 60, 2, 10, 10, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def test_means_over_images_come_in_go_out_and_come_back(tmp_path):
    net = _pooled()
    with torch.no_grad():
        wanted = torch.stack([net(x) for x in IMAGES.unbind(1)], 1).numpy()
    graph = import_module(net, input_kind="BINARY", shape=(2, 10, 10))
    assert sum(isinstance(n.op, SumPool2d) and n.op.mean for n in graph.nodes) == 2 and wanted.sum() > 50
    for i, options in enumerate(({}, {"relay": True}, {"gain": "r"})):
        out = tmp_path / str(i)
        export(graph, "nir", out, calibration=IMAGES.numpy(), **options)
        assert verify(out).ok
        for again in (graph, rejoin(open_artifact(out)), import_file(out / "net.nir")):
            for on in ("event", "torch"):
                assert np.array_equal(simulate(again, IMAGES.numpy(), on=on).outputs["output"], wanted)


def test_sums_over_images_are_read_whoever_wrote_them(tmp_path):
    export(import_module(_pooled(), input_kind="BINARY", shape=(2, 10, 10)), "nir", tmp_path / "net")
    net = nir.read(str(tmp_path / "net/net.nir"))
    means = {pool: net.nodes[pool] for pool in ("_2", "_5")}
    for pool, mean in means.items():
        net.nodes[pool] = nir.SumPool2d(mean.kernel_size, mean.stride, mean.padding)
    sums = import_file_of(tmp_path / "sums.nir", net)
    for pool, reader in (("_2", "_3"), ("_5", "_7")):  # a sum is a mean whose reader weighs more
        net.nodes[pool] = means[pool]
        net.nodes[reader].weight = net.nodes[reader].weight * np.float32(means[pool].kernel_size.prod())
    graphs = sums, import_file_of(tmp_path / "means.nir", net)
    sent, wanted = (simulate(graph, IMAGES.numpy()).outputs["output"] for graph in graphs)
    assert wanted.any() and np.array_equal(sent, wanted)
    net.nodes["_2"].kernel_size = np.array([2, 3])
    with pytest.raises(UnsupportedError, match="a square kernel, one stride and one padding, got kernel .2 3."):
        import_file_of(tmp_path / "odd.nir", net)


def import_file_of(path, net):
    nir.write(str(path), net)
    return import_file(path, dt_s=1e-4)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, divisor_override=3)], ids=str)
def test_means_of_another_kind_are_refused(pool):
    pytest.importorskip("nirtorch")
    net = nn.Sequential(nn.Conv2d(2, 3, 3), pool, nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(UnsupportedError, match="a mean over the whole kernel"):
        import_module(net, shape=(2, 10, 10))


def test_a_file_of_spikingjelly_with_a_mean_has_its_spikes(tmp_path):
    jelly = pytest.importorskip("spikingjelly.activation_based", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    assert jelly
    torch.manual_seed(0)
    lif = [neuron.LIFNode(tau=2.0, v_threshold=0.1, v_reset=0.0) for _ in range(2)]
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1), lif[0], layer.AvgPool2d(2), layer.Flatten(), layer.Linear(100, 5), lif[1]
    )
    graph = import_file_of(tmp_path / "net.nir", export_to_nir(net, IMAGES[:, 0], dt=1e-4))
    functional.reset_net(net)
    with torch.no_grad():
        wanted = torch.stack([net(x) for x in IMAGES.unbind(1)], 1).numpy()
    assert wanted.any() and np.array_equal(simulate(graph, IMAGES.numpy()).outputs["output"], wanted)
