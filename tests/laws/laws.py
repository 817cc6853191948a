"""What every neuron promises, as functions that fail with an AssertionError where a neuron breaks its word."""

import torch
from torch.func import functional_call

from rheobase.spiking.surrogates import Relaxed


def same(cell, a, b):
    """Equal to the last bit for elementwise neurons; with matrix products the same events, values within 1e-12."""
    assert a.shape == b.shape
    if cell.elementwise:
        assert torch.equal(a, b)
    else:
        assert torch.equal(a != 0, b != 0)
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def same_state(cell, a, b):
    assert type(a) is type(b)
    for x, y in zip(a, b, strict=True):
        same(cell, x, y)


def fold(cell, x, state):
    """The sequence as a fold of `step`."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = cell.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def sequence_is_the_fold_of_step(cell, x, state):
    y, end = cell(x, state)
    z, last = fold(cell, x, state)
    same(cell, y, z)
    same_state(cell, end, last)


def any_cut_changes_nothing(cell, x, state, cut):
    y, end = cell(x, state)
    first, middle = cell(x[:, :cut], state)
    second, last = cell(x[:, cut:], middle)
    same(cell, y, torch.cat([first, second], 1))
    same_state(cell, end, last)


def no_steps_change_nothing(cell, x, state):
    y, end = cell(x[:, :0], state)
    assert y.shape[:2] == (x.shape[0], 0) and y.shape[2:] == cell(x[:, :1], state)[0].shape[2:]
    assert all(torch.equal(a, b) for a, b in zip(state, end, strict=True))


def a_row_of_a_batch_is_the_same_alone(cell, x, state):
    y, end = cell(x, state)
    for b in range(len(x)):
        z, last = cell(x[b : b + 1], type(state)(*(s[b : b + 1] for s in state)))
        same(cell, y[b : b + 1], z)
        same_state(cell, type(end)(*(s[b : b + 1] for s in end)), last)


def a_state_is_of_the_type_that_is_asked_for(cell):
    for dtype in (torch.float32, torch.float64):
        assert all(s.dtype == dtype or not s.is_floating_point() for s in cell.initial_state(2, dtype=dtype))


def from_rest_is_from_the_initial_state(cell, x):
    y, end = cell(x)
    z, last = cell(x, cell.initial_state(x.shape[0], dtype=x.dtype))
    assert torch.equal(y, z) and all(torch.equal(a, b) for a, b in zip(end, last, strict=True))


def gradients_reach_the_initial_state(cell, x, state, weights):
    """The same through `forward` as through the fold, for a random functional of outputs and last state."""

    def gradients(run):
        start = type(state)(*(s.clone().requires_grad_(s.is_floating_point()) for s in state))
        y, end = run(cell, x, start)
        loss = sum((w * part).sum() for w, part in zip(weights, (y, *end), strict=True))
        start = [s for s in start if s.requires_grad]
        return torch.autograd.grad(loss, start, allow_unused=True) if loss.requires_grad else [None] * len(start)

    through_forward = gradients(lambda c, x, s: c(x, s))
    for a, b in zip(through_forward, gradients(fold), strict=True):
        assert a is not None and b is not None
        assert a.isfinite().all() and torch.allclose(a, b, atol=1e-10, rtol=1e-10)
    assert any(g.abs().max() > 0 for g in through_forward)


def the_relaxed_form_has_the_gradients_it_claims(cell, x, state):
    """gradcheck in float64 of inputs, initial state and parameters, with the step function relaxed."""
    cell.surrogate = Relaxed(cell.surrogate)
    names = [n for n, _ in cell.named_parameters()]

    def run(x, *rest):
        start = type(state)(*rest[: len(state)])
        y, end = functional_call(cell, dict(zip(names, rest[len(state) :], strict=True)), (x, start))
        return (y, *end)

    inputs = [x, *state, *cell.parameters()]
    inputs = [i.detach().clone().requires_grad_() for i in inputs]
    assert torch.autograd.gradcheck(run, inputs, raise_exception=False)


def the_slope_is_the_derivative_of_the_relaxed_form(surrogate, u):
    u = u.clone().requires_grad_()
    (slope,) = torch.autograd.grad(surrogate.relaxed(u).sum(), u)
    assert torch.allclose(slope, surrogate.slope(u.detach()), atol=1e-12, rtol=1e-10)


def the_relaxed_form_never_falls(surrogate, u):
    assert (surrogate.relaxed(u.sort().values).diff() >= -1e-12).all()


def the_spike_is_the_step_and_its_gradient_the_slope(surrogate, u):
    u = u.clone().requires_grad_()
    for fire, step in ((">", u > 0), (">=", u >= 0)):
        s = surrogate.spike(u, fire)
        assert torch.equal(s, step.to(u.dtype))
        (gradient,) = torch.autograd.grad(s.sum(), u)
        assert torch.equal(gradient, surrogate.slope(u.detach()))
