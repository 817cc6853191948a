"""Surrogates of every kind in the kernels in C: slopes that these compute, and slopes that are given."""

import dataclasses

import pytest
import torch
from test_kernels import SURROGATES, assert_close, needs_c
from torch.utils.checkpoint import checkpoint

from rheobase.spiking import EGRU, LIF, ATan, Surrogate, Triangle
from rheobase.spiking.ops import egru, lif


@needs_c
def test_a_surrogate_of_ones_own_may_call_anything_alpha():
    @dataclasses.dataclass(frozen=True)
    class PerUnit(Surrogate):
        alpha: torch.Tensor

        def slope(self, u):
            return torch.exp(-self.alpha * u.abs())

    x, gradients = torch.randn(2, 9, 5, requires_grad=True), []
    for kernels in ("native", "reference"):
        s, _ = lif(x, surrogate=PerUnit(torch.arange(1.0, 6)), kernels=kernels)
        gradients += torch.autograd.grad(s.sum(), x)
    assert torch.allclose(*gradients, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Given(Surrogate):
    """A slope by any function."""

    form: object

    def slope(self, u):
        return self.form(u)


@needs_c
@pytest.mark.parametrize(
    "form",
    [
        lambda u: u.abs() < 0.5,
        lambda u: (u.abs() < 0.5).double(),
        lambda u: (u.abs() < 0.5).long(),
        lambda u: torch.tensor(0.5),
        lambda u: 0.5,
        lambda u: torch.linspace(0, 1, u.shape[-1]),
    ],
    ids=["bool", "double", "long", "scalar", "number", "one a unit"],
)
def test_a_slope_of_another_type_or_shape_is_what_it_is_in_the_reference(form):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 3)
    parameters = torch.randn(3, 9), torch.randn(3, 9), torch.randn(9), torch.randn(9), torch.rand(3)
    for ternary in (False, True):
        wanted, got = (
            torch.autograd.grad(lif(leaf, ternary=ternary, surrogate=Given(form), kernels=kernels)[0].sum(), leaf)[0]
            for kernels in ("reference", "native")
            for leaf in [(2 * x).requires_grad_()]
        )
        assert wanted.abs().max() > 0
        assert_close(got, wanted, 2e-5)
    wanted, got = (
        torch.autograd.grad(egru(leaf, *parameters, surrogate=Given(form), kernels=kernels)[0].o.sum(), leaf)[0]
        for kernels in ("reference", "native")
        for leaf in [x.clone().requires_grad_()]
    )
    assert wanted.abs().max() > 0
    assert_close(got, wanted, 2e-5)


@needs_c
def test_a_known_surrogate_whose_settings_are_tensors_is_what_it_is_in_the_reference():
    torch.manual_seed(0)
    x, parameters = torch.randn(2, 9, 3), (torch.randn(3, 9), torch.randn(3, 9), torch.zeros(9), torch.zeros(9))
    for surrogate in (
        ATan(torch.tensor(2.0)),
        ATan(torch.tensor([1.0, 2.0, 3.0])),
        Triangle(torch.nn.Parameter(torch.tensor(0.7)), 1.0),
        Triangle(torch.tensor(0.7), torch.tensor([0.5, 1.0, 1.5])),
    ):
        for op in (
            lambda x, kernels, by=surrogate: lif(x, surrogate=by, kernels=kernels)[0],
            lambda x, kernels, by=surrogate: egru(x, *parameters, torch.rand(3), surrogate=by, kernels=kernels)[0].o,
        ):
            gradients = []
            for kernels in ("reference", "native"):
                torch.manual_seed(1)
                leaf = x.clone().requires_grad_()
                gradients += torch.autograd.grad(op(leaf, kernels).sum(), leaf)
            assert_close(gradients[1], gradients[0].detach(), 2e-5)


@needs_c
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_checkpoint_may_run_it_again(surrogate):
    torch.manual_seed(0)
    x, layers = torch.randn(2, 20, 8), (LIF(surrogate=surrogate, ternary=True), EGRU(8, 8, surrogate))
    for layer in layers:
        wanted, got = (
            torch.autograd.grad(way(layer, leaf)[0].sum(), leaf)[0]
            for way in (lambda layer, x: layer(x), lambda layer, x: checkpoint(layer, x, use_reentrant=False))
            for leaf in [x.clone().requires_grad_()]
        )
        assert torch.equal(got, wanted)
