"""The whole quickstart, with what it must reach. Minutes: run it with pytest -m slow."""

import pytest

from rheobase.quickstart import quickstart


@pytest.mark.slow
def test_quickstart_reaches_its_figures(tmp_path):
    table = quickstart(tmp_path / "q", say=lambda line: None)
    egru, lstm = table["test"]["egru"], table["test"]["lstm"]
    assert table["seconds"] < 240
    assert egru["bits_per_byte"] < 2.05 and lstm["bits_per_byte"] < 1.95
    assert table["gap"] <= 1.10 and max(egru["rates"]) <= 0.30
    integer = table["integer"]
    assert integer["tokens"] == 10_000
    assert integer["bits_per_byte"] < 1.01 * integer["float_bits_per_byte"]
    assert table["verified"]["ok"] and table["verified"]["mismatches"] == 0
