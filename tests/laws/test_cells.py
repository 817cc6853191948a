"""The laws, for every neuron that there is a file for. 200 examples each; see conftest."""

import laws
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rheobase.spiking import registry
from rheobase.spiking.neurons import LIF

FOLDER = "rheobase.spiking.neurons"
NEURONS = registry.names(FOLDER)


@st.composite
def cases(draw, neuron, least=1):
    """A small instance in float64, an input [B, T, D] and an initial state."""
    seed = draw(st.integers(0, 2**31 - 1))
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(least, 7))
    torch.manual_seed(seed)
    cells = registry.get(FOLDER, neuron).examples()
    cell = cells[draw(st.integers(0, len(cells) - 1))].double()
    scale = draw(st.sampled_from([0.1, 1.0, 3.0]))
    x = scale * torch.randn(batch, steps, cell.input_size, dtype=torch.float64)
    rest = cell.initial_state(batch, dtype=torch.float64)
    state = type(rest)(*(s + 0.5 * torch.randn_like(s) for s in rest))
    return cell, x, state


def test_there_are_neurons_with_examples():
    assert {"egru", "lif"} <= set(NEURONS)
    assert all(registry.get(FOLDER, name).examples() for name in NEURONS)


@pytest.mark.parametrize("neuron", NEURONS)
def test_sequence_is_the_fold_of_step(neuron):
    @given(cases(neuron))
    def law(case):
        laws.sequence_is_the_fold_of_step(*case)

    law()


@pytest.mark.parametrize("neuron", NEURONS)
def test_any_cut_changes_nothing(neuron):
    @given(cases(neuron), st.integers(0, 7))
    def law(case, cut):
        laws.any_cut_changes_nothing(*case, min(cut, case[1].shape[1]))

    law()


@pytest.mark.parametrize("neuron", NEURONS)
def test_no_steps_change_nothing(neuron):
    @given(cases(neuron))
    def law(case):
        laws.no_steps_change_nothing(*case)

    law()


@pytest.mark.parametrize("neuron", NEURONS)
def test_gradients_reach_the_initial_state(neuron):
    @given(cases(neuron))
    def law(case):
        cell, x, state = case
        y, end = cell(x, state)
        laws.gradients_reach_the_initial_state(cell, x, state, [torch.randn_like(part) for part in (y, *end)])

    law()


@pytest.mark.parametrize("neuron", NEURONS)
def test_the_relaxed_form_has_the_gradients_it_claims(neuron):
    @given(cases(neuron))
    def law(case):
        cell, x, state = case
        if isinstance(cell, LIF):
            cell.detach_reset = False  # a detached reset is not a true gradient, by design
        laws.the_relaxed_form_has_the_gradients_it_claims(cell, x[:1, :3], type(state)(*(s[:1] for s in state)))

    law()


@pytest.mark.parametrize("neuron", NEURONS)
def test_from_rest_is_the_same_as_from_the_initial_state(neuron):
    @given(cases(neuron, least=0))
    def law(case):
        cell, x, _ = case
        y, end = cell(x)
        z, last = cell(x, cell.initial_state(x.shape[0], dtype=x.dtype))
        assert torch.equal(y, z) and all(torch.equal(a, b) for a, b in zip(end, last, strict=True))

    law()
