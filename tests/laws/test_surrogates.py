"""Each surrogate's slope is the derivative of its relaxed form, and its spike is exactly the step."""

import inspect

import laws
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rheobase.spiking import surrogates
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.surrogates import Relaxed, Surrogate, Triangle

KINDS = [
    kind
    for _, kind in inspect.getmembers(surrogates, inspect.isclass)
    if issubclass(kind, Surrogate) and kind not in (Surrogate, Relaxed)
]


def instances(kind):
    number = st.floats(0.1, 20.0)
    return st.builds(kind, **{name: number for name in kind.__dataclass_fields__})


def values():
    return st.lists(st.floats(-3, 3), min_size=1, max_size=20).map(lambda v: torch.tensor(v, dtype=torch.float64))


def test_all_five_are_there():
    assert {k.__name__ for k in KINDS} == {"ATan", "Triangle", "Sigmoid", "FastSigmoid", "StraightThrough"}


@pytest.mark.parametrize("kind", KINDS)
def test_slope(kind):
    @given(instances(kind), values())
    def law(surrogate, u):
        if kind is Triangle:  # has kinks, where no derivative exists
            edges = torch.tensor([0.0, 1.0], dtype=torch.float64)
            u = u[((surrogate.eps * u.abs())[:, None] - edges).abs().min(1).values > 1e-6]
        if kind is surrogates.FastSigmoid:
            u = u[u.abs() > 1e-9]
        laws.the_slope_is_the_derivative_of_the_relaxed_form(surrogate, u)
        ordered = surrogate.relaxed(u.sort().values)
        assert (ordered.diff() >= -1e-12).all()

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_the_spike_is_the_step_and_its_gradient_the_slope(kind):
    @given(instances(kind), values())
    def law(surrogate, u):
        u = torch.cat([u, torch.zeros(1, dtype=torch.float64)]).requires_grad_()
        for fire, step in ((">", u > 0), (">=", u >= 0)):
            s = surrogate.spike(u, fire)
            assert torch.equal(s, step.to(u.dtype))
            (gradient,) = torch.autograd.grad(s.sum(), u)
            assert torch.equal(gradient, surrogate.slope(u.detach()))

    law()


def test_surrogates_are_values():
    assert Triangle(3.6, 3.6) == Triangle(3.6, 3.6) and len({Triangle(), Triangle(), Triangle(1.0)}) == 2
    with pytest.raises(AttributeError):
        Triangle().gamma = 1.0
    with pytest.raises(ConfigError, match="name the firing rule"):
        Triangle().spike(torch.zeros(1), "=>")
