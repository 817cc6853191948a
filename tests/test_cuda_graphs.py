"""`cuda_graphed` on a CPU: torch's own `make_graphed_callables`, over graphs that record operators and run them again
into the same memory, as a GPU's do."""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rheobase.backends import count
from rheobase.spiking import EGRU, LIF, EGRUState, cuda_graphed
from rheobase.spiking.cuda_graphs import CudaGraphed
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError


class Graph(TorchDispatchMode):
    """What runs while it is on, to be run again."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        made = operator(*args, **(kwargs or {}))
        self.tape.append((operator, args, kwargs or {}, made))
        return made

    def replay(self):
        with torch.no_grad():
            for operator, args, kwargs, made in self.tape:
                for old, new in zip(tree_leaves(made), tree_leaves(operator(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    monkeypatch.setenv("RHEOBASE_KERNELS", "reference")  # the C form looks at what fires, and so waits
    record(monkeypatch)


def record(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda.graphs, "graph_pool_handle", lambda: None)


class Stack(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layers = nn.ModuleList([EGRU(3, 5, thr_mean=0.1, **options), EGRU(5, 4, thr_mean=0.1, **options)])

    def initial_state(self, batch):
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def forward(self, x, states):
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer(x, state)
            after.append(state)
        return x, tuple(after)


def detached(state):
    return torch.utils._pytree.tree_map(torch.detach, state)


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2, "dropconnect": 0.3}], ids=str)
def test_it_is_the_module(options):
    """Through an optimiser's steps, gradients that add up, and segments that carry their state; numbers drawn alike."""
    torch.manual_seed(0)
    module, x = Stack(**options).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    run, runs = CudaGraphed(module, x.requires_grad_(), module.initial_state(2)), []
    start = [p.detach().clone() for p in module.parameters()]
    for way in (run, module):
        with torch.no_grad():
            for p, old in zip(module.parameters(), start, strict=True):
                p.copy_(old)
        module.zero_grad()
        optimiser, state, seen = torch.optim.SGD(module.parameters(), lr=0.1), module.initial_state(2), []
        for step in range(6):
            torch.manual_seed(step)
            x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
            y, state = way(x, state)
            (y.square().sum() + state[1].c.sum()).backward()
            seen += [y, *tree_leaves(state), x.grad]
            state = detached(state)
            if step % 2:  # every second one: what lies in .grad is added to
                optimiser.step()
                optimiser.zero_grad()
        runs.append([t.detach() for t in (*seen, *module.parameters())])
    assert any(t.count_nonzero() for t in runs[0])
    for a, b in zip(*runs, strict=True):
        assert torch.allclose(a, b, atol=1e-14, rtol=0)


def layer_and_run(**options):
    torch.manual_seed(0)
    layer, x = EGRU(3, 4, **options), torch.randn(2, 5, 3)
    return layer, x, CudaGraphed(layer, x)


def test_it_is_captured_on_the_device_of_its_tensors(monkeypatch):
    """And torch 2.11's word about its own two streams, for warming up and for capturing, is not passed on."""
    current, make = [], torch.cuda.make_graphed_callables

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.remove(tensor)

    def captured(*args, **options):
        assert current == [x] and torch.cuda.graph.default_capture_stream is None
        warnings.warn("The AccumulateGrad node's stream does not match the stream of the node", stacklevel=1)
        return make(*args, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", captured)
    torch.cuda.graph.default_capture_stream = "of another device"
    layer, x = EGRU(3, 4), torch.randn(2, 5, 3)
    CudaGraphed(layer, x)
    assert torch.cuda.graph.default_capture_stream == "of another device" and not current


def test_from_rest_and_under_no_grad():
    layer, x, run = layer_and_run()
    y, state = run(x)
    assert isinstance(state, EGRUState) and torch.equal(y, layer(x)[0])
    with torch.no_grad():
        again, _ = run(x, state)
    assert not again.requires_grad and torch.equal(again, layer(x, state)[0])


@pytest.mark.parametrize("layer", [LIF(3), LIF(3, learn=("tau",)), EGRU(3, 4).bfloat16()], ids=str)
def test_the_state_that_comes_back_goes_in(layer):
    """A membrane is float32 where the input is bfloat16."""
    x = torch.randn(2, 5, 3).bfloat16()
    run, state, wanted = CudaGraphed(layer, x), None, None
    for _ in range(3):
        y, state = run(x, state if state is None else detached(state))
        expected, wanted = layer(x, wanted)
        assert torch.equal(y, expected) and all(map(torch.equal, state, wanted))


def test_what_was_given_stays():
    _, x, run = layer_and_run()
    y, _ = run(x)
    kept = y.detach().clone()
    run(x + 1)
    assert torch.equal(y, kept)


def test_one_backward_pass_of_the_last_forward_pass():
    _, x, run = layer_and_run()
    first, _ = run(x)
    second, _ = run(x)
    with pytest.raises(UnsupportedError, match="expected the backward pass of the last call, once, got another"):
        first.sum().backward()
    second.sum().backward(retain_graph=True)
    with pytest.raises(UnsupportedError, match="expected the backward pass of the last call, once, got another"):
        second.sum().backward()


def test_another_input_is_refused():
    layer, x, run = layer_and_run()
    with pytest.raises(ShapeError, match=r"x: expected \(2, 5, 3\) torch.float32 on cpu, got \(2, 4, 3\)"):
        run(x[:, :4])
    with pytest.raises(ShapeError, match="x: expected .* got .* torch.float64"):
        run(x.double())
    with pytest.raises(ShapeError, match="state: expected a state of the example's parts, got tuple"):
        run(x, (torch.zeros(2, 4),) * 3)
    with pytest.raises(ConfigError, match="a tensor that needs no gradient, as the example, got one that does"):
        run(x.clone().requires_grad_())
    with pytest.raises(ConfigError, match="expected training True, autocast None, got training False, autocast None"):
        layer.eval()
        run(x)


def test_a_counter_sees_the_module():
    layer, x, run = layer_and_run()
    through = nn.Module()
    through.layer, through.forward = layer, run.__call__
    assert count(through, x).total == count(layer, x).total and count(layer, x).macs


def test_what_cannot_be_captured_says_why():
    layer, x = EGRU(3, 4), torch.randn(2, 5, 3)
    with pytest.raises(UnsupportedError, match="x on a CUDA device, got x on cpu; call the module itself"):
        cuda_graphed(layer, x)
    with pytest.raises(ConfigError, match="expected tensors, got int"):
        CudaGraphed(layer, x, (1, 2, 3))
    waits = Stack()
    waits.register_forward_hook(lambda module, given, made: print(made[0].sum().item()))
    with pytest.raises(UnsupportedError, match="holds, got operation not permitted when stream is capturing; call"):
        CudaGraphed(waits, x, waits.initial_state(2))
