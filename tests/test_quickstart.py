"""The whole quickstart, with what it must reach. Minutes: run it with pytest -m slow."""

import pytest

from rheobase.backends import verify
from rheobase.backends.exporters.spinnaker2 import firmware
from rheobase.quickstart import quickstart


@pytest.mark.slow
def test_quickstart_reaches_its_figures(tmp_path):
    """And every one of its processing elements computes the same in QEMU, for the 256 tokens of its trace."""
    table = quickstart(tmp_path / "q", say=lambda line: None)
    egru, lstm = table["test"]["egru"], table["test"]["lstm"]
    assert table["seconds"] < 240
    assert egru["bits_per_byte"] < 2.05 and lstm["bits_per_byte"] < 1.95
    assert table["gap"] <= 1.10 and max(egru["rates"]) <= 0.30
    integer = table["integer"]
    assert integer["tokens"] == 10_000
    assert integer["bits_per_byte"] < 1.01 * integer["float_bits_per_byte"]
    assert table["verified"]["ok"] and table["verified"]["mismatches"] == 0
    if firmware.missing():
        pytest.skip(f"{firmware.missing()} is not installed: all but the emulation passed")
    for emulation in ("qemu", "qemu-together"):
        report = verify(tmp_path / "q" / "spinnaker2", emulation=emulation)
        (note,) = (n for n in report.notes if "in QEMU" in n)
        assert report.ok and " 0 differ" in note, report
        print(note)
