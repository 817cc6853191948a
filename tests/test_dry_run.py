"""A dry run: its arithmetic by hand, and what it says beside a training and an export."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rheobase import dry_run
from rheobase.backends.exporters.spinnaker2 import elements
from rheobase.cli import run as command
from rheobase.models.training.data import each_once
from rheobase.models.training.run import RunConfig
from rheobase.quickstart import calibration
from rheobase.spiking.config import to_toml

TABLE = {
    "model": {"name": "egru_lm", "embedding": 32, "layers": [48, 32], "thr_mean": 0.1},
    "train": {"steps": 100, "batch": 8, "context": 16, "warmup": 5, "threads": 1}
    | {"evaluate_every": 50, "checkpoint_every": 25, "evaluate_batch": 4},
    "data": {"valid": 0.05},
}


def test_the_parts_of_a_step_by_hand():
    steps, update, look, save = 24, 0.1, 0.5, 0.25
    ends = [7.0]
    for step in range(1, steps):
        extra = 5.0 * (step == 10) + 3.0 * (step < 3)  # a pause of the machine, and a slow start
        ends.append(ends[-1] + update + look * (step % 6 == 0) + save * (step % 8 == 0) + extra)
    found = dry_run._gaps(ends, steps)
    assert found == {
        "update_s": pytest.approx(update),
        "evaluation_s": pytest.approx(look),
        "checkpoint_s": pytest.approx(save),
        "updates": 24 - 1 - 2 - 1 - 3 - 2,  # gaps, less the start, the pause, evaluations and checkpoints
    }


@pytest.mark.parametrize(("n", "batch", "context"), [(1000, 4, 8), (50, 64, 7), (2, 1, 5), (1025, 4, 16)])
def test_an_evaluation_is_as_long_as_said(n, batch, context):
    assert dry_run._length(n, batch) == sum(x.shape[1] for x, _ in each_once(np.arange(n), batch, context))


def test_a_short_validation_part_is_the_part_that_is_counted():
    config, whole = (kind.from_table(TABLE) for kind in (dry_run.Short, RunConfig))
    corpus, full = config.corpus(), whole.corpus()
    lengths = [dry_run._length(len(c.splits.valid), 4) for c in (corpus, full)]
    assert lengths[0] == dry_run.CUTS * 16 < lengths[1]
    assert dry_run._evaluated(config, full) == pytest.approx(lengths[0] / lengths[1])
    assert np.array_equal(corpus.splits.valid, full.splits.valid[: len(corpus.splits.valid)])
    assert all(np.array_equal(corpus.splits.parts[p], full.splits.parts[p]) for p in ("train", "test"))


def test_elements_are_those_of_the_export(small_run, small_image_once):
    files = json.loads((small_image_once / "partition.json").read_text())["pes"]
    assert elements(small_run.model().lower(), calibration(small_run)[:1]) == len(files)


def highest_memory(out: Path, *arguments) -> int:
    """VmHWM of a training in `out`, by the kernel, until it has its metrics: torch's libraries take more to unload."""
    process = subprocess.Popen([sys.executable, "-m", "rheobase", *map(str, arguments)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if not (out / "metrics.json").exists():
            peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
        time.sleep(0.01)
    assert process.returncode == 0
    return peak


def test_a_dry_run_says_what_the_training_then_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config, out = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(to_toml(TABLE))
    arguments = ["train", str(config), "--out", str(out)]
    before = sorted(os.listdir(tmp_path))
    assert command([*arguments, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(os.listdir(tmp_path)) == before
    assert said["peak_bytes"] == pytest.approx(highest_memory(out, *arguments), rel=0.15)
    metrics = json.loads((out / "metrics.json").read_text())
    assert said["parameters"] == metrics["parameters"] and said["tokens"] == 8 * 16
    assert list(said["seconds"]) == ["start", "100 updates", "3 evaluations", "4 checkpoints"]
    assert said["hours"] == pytest.approx(sum(said["seconds"].values()) / 3600)
    assert said["tokens_per_s"] == pytest.approx(8 * 16 / said["update_s"])
    assert said["elements"] == 2


def test_a_model_that_is_not_exported_is_said_with_the_reason(tmp_path, capsys):
    table = TABLE | {"model": {"name": "lstm_lm", "embedding": 16, "layers": [16]}}
    (tmp_path / "config.toml").write_text(to_toml(table))
    assert command(["train", str(tmp_path / "config.toml"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "spinnaker2  not exported: " in text and "LSTM" in text and text.endswith("no run was written\n")


def test_what_a_training_would_refuse_a_dry_run_does(tmp_path, capsys):
    (tmp_path / "config.toml").write_text(to_toml(TABLE | {"data": {"text": str(tmp_path / "none.txt")}}))
    lines = []
    for more in ([], ["--dry-run"]):
        assert command(["train", str(tmp_path / "config.toml"), "--out", str(tmp_path / "run"), *more]) == 1
        lines.append(capsys.readouterr().err)
    assert lines[0] == lines[1] and "expected a text file, got no file" in lines[0]
