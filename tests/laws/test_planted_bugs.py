"""A law that cannot fail proves nothing: one planted bug a law, and the law catches it."""

from dataclasses import dataclass

import laws
import pytest
import torch

from rheobase.spiking import LIF, ATan, LIFState, Surrogate

X = torch.tensor([[[0.9, 2.5], [1.9, 0.1], [0.2, 1.7], [2.1, 1.3]]], dtype=torch.float64)
STATE = LIFState(torch.tensor([[0.4, -0.2]], dtype=torch.float64))


class ForwardForgetsTheLastReset(LIF):
    def forward(self, x, state=None):
        s, _ = super().forward(x, state)
        _, before = super().forward(x[:, :-1], state)
        return s, LIFState(before.v + (x[:, -1] - before.v) / self.tau)


class StateIsDroppedAtTheCut(LIF):
    def forward(self, x, state=None):
        y, end = super().forward(x, state)
        return y, LIFState(end.v * 0)


class EmptySequenceResetsTheState(LIF):
    def forward(self, x, state=None):
        y, end = super().forward(x, state)
        return y, end if x.shape[1] else LIFState(end.v * 0)


class EmptySequenceRaises(LIF):
    def forward(self, x, state=None):
        return super().forward(torch.stack(list(x.unbind(1)), 1), state)


class StartsElsewhere(LIF):
    def forward(self, x, state=None):
        return super().forward(x, LIFState(x[:, 0] * 0 + 1.5) if state is None else state)


class InitialStateIsDetached(LIF):
    def forward(self, x, state=None):
        return super().forward(x, LIFState(state.v.detach()))


@dataclass(frozen=True)
class WrongSlope(ATan):
    def slope(self, u):
        return 1.01 * super().slope(u)


@dataclass(frozen=True)
class Falling(ATan):
    def relaxed(self, u):
        return -super().relaxed(u)


@dataclass(frozen=True)
class AlwaysStrict(ATan):
    def spike(self, u, fire=">"):
        return super().spike(u, ">")


@dataclass(frozen=True)
class SpikeWithoutGradient(ATan):
    def spike(self, u, fire=">"):
        return super().spike(u, fire).detach() + 0 * u


class _Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        return torch.sigmoid(u)

    @staticmethod
    def backward(ctx, gradient):
        return 0.3 * gradient


@dataclass(frozen=True)
class WrongBackward(Surrogate):
    def relaxed(self, u):
        return _Wrong.apply(u)


def double(kind, **options):
    return kind(2, **options).double()


def test_the_laws_hold_for_the_sound_neuron():
    weights = [torch.ones_like(X), torch.ones_like(STATE.v)]
    laws.sequence_is_the_fold_of_step(double(LIF), X, STATE)
    laws.any_cut_changes_nothing(double(LIF), X, STATE, 2)
    laws.no_steps_change_nothing(double(LIF), X, STATE)
    laws.a_row_of_a_batch_is_the_same_alone(double(LIF), X, STATE)
    laws.a_state_is_of_the_type_that_is_asked_for(LIF(2))
    laws.from_rest_is_from_the_initial_state(double(LIF), X)
    laws.gradients_reach_the_initial_state(double(LIF), X, STATE, weights)
    laws.the_relaxed_form_has_the_gradients_it_claims(double(LIF), X, STATE)
    laws.the_slope_is_the_derivative_of_the_relaxed_form(ATan(), X)
    laws.the_relaxed_form_never_falls(ATan(), X.flatten())
    laws.the_spike_is_the_step_and_its_gradient_the_slope(ATan(), X * 0)


def test_fold():
    with pytest.raises(AssertionError):
        laws.sequence_is_the_fold_of_step(double(ForwardForgetsTheLastReset), X, STATE)


def test_cut():
    with pytest.raises(AssertionError):
        laws.any_cut_changes_nothing(double(StateIsDroppedAtTheCut), X, STATE, 1)


def test_no_steps():
    with pytest.raises(AssertionError):
        laws.no_steps_change_nothing(double(EmptySequenceResetsTheState), X, STATE)
    with pytest.raises(RuntimeError, match="non-empty TensorList"):
        laws.no_steps_change_nothing(double(EmptySequenceRaises), X, STATE)


class RowsSeeEachOther(LIF):
    def step(self, x, state):
        return super().step(x - 0.3 * x.mean(0, keepdim=True), state)

    def forward(self, x, state=None):
        return super().forward(x - 0.3 * x.mean(0, keepdim=True), state)


def test_rows():
    with pytest.raises(AssertionError):
        laws.a_row_of_a_batch_is_the_same_alone(
            double(RowsSeeEachOther), torch.cat([X, -X]), LIFState(STATE.v.repeat(2, 1))
        )


class OneTypeOfState(LIF):
    def initial_state(self, batch, **like):
        return super().initial_state(batch, dtype=torch.float64)


def test_type():
    with pytest.raises(AssertionError):
        laws.a_state_is_of_the_type_that_is_asked_for(OneTypeOfState(2))


def test_from_rest():
    with pytest.raises(AssertionError):
        laws.from_rest_is_from_the_initial_state(double(StartsElsewhere), X)


def test_initial_state():
    with pytest.raises(AssertionError):
        weights = [torch.ones_like(X), torch.ones_like(STATE.v)]
        laws.gradients_reach_the_initial_state(double(InitialStateIsDetached), X, STATE, weights)


def test_relaxed_form():
    with pytest.raises(AssertionError):
        cell = double(LIF, surrogate=WrongBackward())
        laws.the_relaxed_form_has_the_gradients_it_claims(cell, X, STATE)


def test_slope():
    with pytest.raises(AssertionError):
        laws.the_slope_is_the_derivative_of_the_relaxed_form(WrongSlope(), X)


def test_monotone():
    with pytest.raises(AssertionError):
        laws.the_relaxed_form_never_falls(Falling(), X.flatten())


@pytest.mark.parametrize("surrogate", [AlwaysStrict(), SpikeWithoutGradient()])
def test_spike(surrogate):
    with pytest.raises(AssertionError):
        laws.the_spike_is_the_step_and_its_gradient_the_slope(surrogate, X * 0)
