"""What every exporter takes of a graph's numbers, and what it refuses."""

import math

import numpy as np
import pytest
from test_sanafe import FIRST, INPUTS, Builder, frames

from rheobase.backends import export
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import LIFCell

EXPORTERS = {"nir": "net.nir", "pyspinnaker2": "weights.npz", "sanafe": "network.yaml"}
"""each with the file that holds the numbers"""


@pytest.fixture(params=EXPORTERS)
def exporter(request):
    if request.param == "nir":
        pytest.importorskip("nir")
    return request.param


def graph(tau: float, learnt: bool):
    """A cell without a leak, of a time constant for all of its units or of one each."""
    built, settings = Builder(), {"theta": 1.51, "decay_input": False, "fire": ">"}
    cell = LIFCell(**settings) if learnt else LIFCell(tau=tau, **settings)
    built.layer("one", cell, "frames.out", INPUTS, FIRST, ("tau",) if learnt else ())
    built.arrays |= {"one.tau": np.full(FIRST, tau)} if learnt else {}
    return built.graph("one.s")


def test_units_without_a_leak_are_written_alike(exporter, tmp_path):
    made = [
        export(graph(math.inf, learnt), exporter, tmp_path / str(learnt), calibration=frames(30), allow_lossy=True)
        for learnt in (False, True)
    ]
    one, each = (a.read(EXPORTERS[exporter]) for a in made)
    assert one == each


@pytest.mark.parametrize("tau", [math.nan, -math.inf])
def test_a_time_constant_that_is_no_number_is_refused(exporter, tau, tmp_path):
    with pytest.raises(UnsupportedError, match="one.tau: expected finite numbers"):
        export(graph(tau, True), exporter, tmp_path / "x", calibration=frames(30))
    assert not (tmp_path / "x").exists()
