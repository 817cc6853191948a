"""Sparse events: a round trip with dense arrays, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rheobase.spiking import Events
from rheobase.spiking.errors import ShapeError

SHAPES = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4))
DENSE = SHAPES.flatmap(lambda shape: arrays.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.0, 1.0, -0.5])))


@given(DENSE)
def test_round_trip(dense):
    events = Events.from_dense(dense, dt_s=1e-3)
    assert np.array_equal(events.to_dense(), dense) and len(events) == np.count_nonzero(dense)
    keys = list(zip(events.step, events.stream, events.unit, strict=True))
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert dense.size == 0 or events.rate == len(events) / dense.size


@given(DENSE, st.randoms(use_true_random=False))
def test_any_order_can_be_sorted(dense, random):
    events = Events.from_dense(dense)
    order = list(range(len(events)))
    random.shuffle(order)
    fields = [a[order] for a in (events.stream, events.step, events.unit, events.value)]
    assert np.array_equal(Events.from_unsorted(*fields, *dense.shape).to_dense(), dense)


def test_tensors_are_taken():
    x = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]], requires_grad=True)
    assert np.array_equal(Events.from_dense(x).to_dense(), x.detach().numpy())


@pytest.mark.parametrize(
    ("stream", "step", "unit", "value", "message"),
    [
        ([0], [0], [3], [1.0], r"Events.unit: expected 0 to 2, got 3 to 3"),
        ([0], [-1], [0], [1.0], r"Events.step: expected 0 to 4, got -1"),
        ([2], [0], [0], [1.0], r"Events.stream: expected 0 to 1"),
        ([0], [1.5], [0], [1.0], r"Events.step: expected whole numbers, got 1.5"),
        ([0], [np.nan], [0], [1.0], r"Events.step: expected whole numbers, got nan"),
        ([0], [0], [0], [0.0], "leave silent units out"),
        ([0, 0], [0], [0], [1.0], "arrays of one length"),
        ([0, 0], [1, 0], [0, 0], [1.0, 1.0], "use Events.from_unsorted"),
        ([0, 0], [1, 1], [0, 0], [1.0, 1.0], "two of one unit"),
    ],
)
def test_wrong_events_are_refused(stream, step, unit, value, message):
    with pytest.raises(ShapeError, match=message):
        Events(*(np.array(a) for a in (stream, step, unit, value)), 2, 5, 3)


def test_two_events_of_a_unit_at_a_step_are_refused_in_any_order():
    with pytest.raises(ShapeError, match="one event a unit a step"):
        Events.from_unsorted([0, 0, 0], [1, 0, 1], [2, 0, 2], [1.0, 1.0, -0.5], 1, 2, 3)


def test_the_duration_of_a_step_is_kept():
    assert Events.from_dense(np.ones((1, 2, 1)), dt_s=1e-3).dt_s == 1e-3
    assert Events.from_unsorted([0], [0], [0], [1.0], 1, 1, 1, dt_s=2e-3).dt_s == 2e-3


def test_dense_of_another_rank_is_refused():
    with pytest.raises(ShapeError, match="add the missing axis"):
        Events.from_dense(np.zeros((3, 2)))


def test_any_integers_and_lists_are_taken():
    at = [np.array(a, np.uint64) for a in ([0, 0], [2**52, 2**52], [0, 1])]
    assert len(Events(*at, [1.0, 2.0], 1, 2**53, 2)) == 2
    assert Events.from_dense(torch.ones(1, 1, 1, dtype=torch.bfloat16)).value.dtype == np.float32
    with pytest.raises(ShapeError, match="flat arrays"):
        Events(*(np.zeros((1, 1), int) for _ in range(3)), np.ones((1, 1)), 1, 1, 1)
