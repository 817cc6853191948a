"""Each surrogate's slope is the derivative of its relaxed form, and its spike is exactly the step."""

import inspect
from dataclasses import FrozenInstanceError

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
        laws.the_slope_is_the_derivative_of_the_relaxed_form(surrogate, u)

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_the_relaxed_form_never_falls(kind):
    @given(instances(kind), values())
    def law(surrogate, u):
        laws.the_relaxed_form_never_falls(surrogate, u)

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_the_spike_is_the_step_and_its_gradient_the_slope(kind):
    @given(instances(kind), values())
    def law(surrogate, u):
        u = torch.cat([u, torch.zeros(1, dtype=torch.float64)])
        laws.the_spike_is_the_step_and_its_gradient_the_slope(surrogate, u)

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates_are_values(kind):
    assert kind() == kind() and len({kind(), kind(), Relaxed(kind())}) == 2
    for name in kind.__dataclass_fields__:
        other = kind(**{name: 1.25})
        assert other != kind() and len({other, kind(**{name: 1.25})}) == 1
    with pytest.raises(FrozenInstanceError):
        kind().anything = 1.0
    with pytest.raises(ConfigError, match="name the firing rule"):
        kind().spike(torch.zeros(1), "=>")


def test_surrogates_are_told_apart_by_their_numbers():
    assert Triangle(3.6, 3.6) == Triangle(3.6, 3.6) != Triangle(3.6, 1.0)


@pytest.mark.parametrize("settings", [{"gamma": -1.0}, {"eps": 0.0}, {"eps": float("nan")}, {"gamma": float("inf")}])
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match="expected a finite number (above|of at least) 0"):
        Triangle(**settings)
