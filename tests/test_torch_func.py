"""Neurons inside torch.func's transforms and torch.jit.trace: the reference runs, and gives what C gives outside."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from rheobase.spiking import EGRU, LIF, registry
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.ops import egru, lif, wkv
from rheobase.spiking.ops.native import library

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
TANGENT = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
"""torch compiles its own rules by what it itself calls deprecated"""


class Net(nn.Module):
    """Neurons among layers of torch, with a WKV that reads them."""

    def __init__(self):
        super().__init__()
        self.into, self.lif, self.egru = nn.Linear(4, 6), LIF(6, learn=("tau", "theta")), EGRU(6, 4, thr_mean=0.1)
        self.decay, self.first = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = self.egru(self.lif(3 * self.into(x))[0] + x.mean())[0]
        return wkv(self.decay, self.first, y, x)[0]


def make(seed=0):
    torch.manual_seed(seed)
    return Net().double()


def close(a, b):
    assert a.shape == b.shape and a.abs().max() > 0 and torch.allclose(a, b, atol=1e-12, rtol=1e-9)


def test_gradients_of_each_sample_are_those_of_one_at_a_time():
    net = make()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    each = vmap(grad(lambda p, x: functional_call(net, p, (x[None],)).square().sum()), (None, 0))(parameters, X)
    for i, x in enumerate(X):
        alone = torch.autograd.grad(net(x[None]).square().sum(), list(net.parameters()))
        for name, wanted in zip(parameters, alone, strict=True):
            assert torch.allclose(each[name][i], wanted, atol=1e-12, rtol=1e-9), name
    assert all(g.abs().max() > 0 for g in each.values())


@pytest.mark.parametrize("name", ["spikegpt", "egru_lm"])
def test_gradients_of_each_text_are_those_of_one_at_a_time(name):
    torch.manual_seed(0)
    module, tokens = registry.get("rheobase.models", name), torch.randint(256, (3, 6))
    sizes = {"spikegpt": {"embedding": 8, "depth": 1}, "egru_lm": {"embedding": 8, "layers": (8,)}}[name]
    model = module.Model(module.Config(**sizes)).double().eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = vmap(grad(lambda p, t: functional_call(model, p, (t[None],))[0].square().sum()), (None, 0))
    for i, found in enumerate(zip(*each(parameters, tokens).values(), strict=True)):
        alone = torch.autograd.grad(model(tokens[i : i + 1])[0].square().sum(), list(model.parameters()))
        for got, wanted in zip(found, alone, strict=True):
            assert torch.allclose(got, wanted, atol=1e-12, rtol=1e-9)
    assert model.to("meta")(tokens.to("meta"))[0].shape == (3, 6, 256)


def test_an_ensemble_runs_at_once():
    nets = [make(seed) for seed in range(3)]
    stacked = {n: torch.stack([net.get_parameter(n).detach() for net in nets]) for n, _ in nets[0].named_parameters()}
    outputs = vmap(lambda p: functional_call(nets[0], p, (X,)))(stacked)
    for net, output in zip(nets, outputs, strict=True):
        close(output, net(X))


@forward_mode
def test_derivatives_both_ways_agree():
    net = make()
    wanted = torch.autograd.functional.jacobian(net, X)
    close(jacrev(net)(X), wanted)
    close(jacfwd(net)(X), wanted)
    close(jvp(net, (X,), (TANGENT,))[1], (wanted * TANGENT).sum((-1, -2, -3)))


@forward_mode
def test_second_derivatives_are_the_references(monkeypatch):
    cell = make().lif

    def energy(x):
        return cell(x)[1].v.square().sum()

    x = 3 * torch.randn(1, 3, 6, dtype=torch.double)
    found = hessian(energy)(x)
    monkeypatch.setenv("RHEOBASE_KERNELS", "reference")
    close(found, torch.autograd.functional.hessian(energy, x))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_by_jit_computes_the_same():
    """EGRU in C took the traced sizes for addresses, which ended the process."""
    net = make().eval()
    with torch.no_grad():
        traced = torch.jit.trace(copy.deepcopy(net), (X,), check_trace=False)
    close(traced(X + TANGENT), net(X + TANGENT))


def calls():
    d, matrix, bias = (torch.ones(shape, dtype=torch.double) for shape in (4, (4, 12), 12))
    weights = matrix, matrix, bias, bias, d
    surrogate = EGRU(1, 1).surrogate
    return {
        "lif": lambda x, **form: lif(x, **form)[0],
        "wkv": lambda x, **form: wkv(d, d, x, x, **form)[0],
        "egru": lambda x, **form: egru(x, *weights, surrogate=surrogate, **form)[0].y,
    }


@pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")
@pytest.mark.parametrize("op", ["lif", "wkv", "egru"])
def test_what_c_cannot_do_is_one_line(op, monkeypatch):
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    run = calls()[op]
    with pytest.raises(UnsupportedError, match="expected a call outside torch.func's transforms, got one inside"):
        vmap(lambda x: run(x[None], kernels="native"))(X)
    x = X.clone().requires_grad_()
    y = run(x)
    weights = torch.ones(2, *y.shape).double()
    message = "kernels in C: expected one gradient of the outputs, got a batch by vmap; set .*RHEOBASE_KERNELS=ref"
    with pytest.raises(UnsupportedError, match=message):
        torch.autograd.grad(y, x, weights, is_grads_batched=True, retain_graph=True)
    with pytest.raises(UnsupportedError, match=message):
        vmap(lambda w: torch.autograd.grad(y, x, w, retain_graph=True)[0])(weights)
