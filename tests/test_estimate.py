"""Power and energy of an image: against the figures that its constants come from."""

import pytest

from rheobase.backends.exporters.spinnaker2.estimate import CHIP, LEVELS, UNKNOWN, estimate, show

MEASURED = {"0.5 V, 150 MHz": (0.2354, 0.4246), "0.8 V, 300 MHz": (0.5647, 1.2479)}
"""W of a chip with all elements asleep, and with CoreMark on all, arXiv 2607.24396"""


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_the_constants_give_back_what_was_measured(level):
    asleep, busy = MEASURED[level.name]
    second = {"elements": 152, "tick_us": 1e6, "ticks": 1}
    assert estimate(level, cycles=0, **second).watts == pytest.approx(asleep, rel=0.01)
    assert estimate(level, cycles=152e6 * level.mhz, **second).watts == pytest.approx(busy, rel=0.01)


def test_a_token_by_hand():
    found = estimate(LEVELS[1], elements=10, cycles=1_000_000, tick_us=500.0, ticks=4)
    assert found.seconds == pytest.approx(2e-3)
    assert found.chip == pytest.approx(75.2e-3 * 2e-3)
    assert found.asleep == pytest.approx(32.2e-3 * 2e-3)
    assert found.cycles == pytest.approx(15e-6)
    assert found.watts == pytest.approx(0.0752 + 0.0322 + 15e-6 / 2e-3)
    assert "65 %, 28 %, 7 %" in show([found])
    four = estimate(LEVELS[1], elements=10, cycles=1_000_000, tick_us=500.0, ticks=4, chips=4)
    assert four.joules == pytest.approx(found.joules + 3 * found.chip)


def test_every_constant_has_a_source_and_the_unknown_has_none():
    for quantity in (CHIP, *(q for level in LEVELS for q in (level.asleep, level.cycle))):
        assert "2607.24396" in quantity.source and "second-hand" in quantity.confidence
    assert any("network on chip" in line for line in UNKNOWN) and any("DRAM" in line for line in UNKNOWN)
