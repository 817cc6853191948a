"""Damaged files through every reader: they load, or one line says why not, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("nir", "onnx", "onnxruntime", "tokenizers"):
    pytest.importorskip(needed)

HERE = Path(__file__).parent
IN_HDF5 = {"recordings-shd", "nir", "nir-data", "trace", "events.h5", "events.nirdata", "power-trace"}
IN_HDF5 |= {"artifact-nir", "artifact-pyspinnaker2"}
"""those that start a process a case, of which a quick test takes few"""


def fuzz(folder, count, readers):
    command = [sys.executable, HERE / "fuzz_readers.py", folder, "0", str(count), "--reader", *sorted(readers)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    at = (folder / "at").read_text() if (folder / "at").exists() else "no case"
    assert done.returncode == 0, f"{at}: {done.stderr[-3000:]}"
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("quick", "slow"), [(20, 2), pytest.param(5000, 500, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_reader_reads_or_says_why_not(tmp_path, quick, slow):
    from reader_seeds import READERS

    for readers, count in ((READERS.keys() - IN_HDF5, quick), (IN_HDF5, slow)):
        found = fuzz(tmp_path, count, readers)
        assert found.keys() == readers | {"peak_mb"}
        refused = {name: count - found[name].get("read", 0) for name in readers}
        assert all(refused.values()) or count < 50, "damage that no reader notices"
