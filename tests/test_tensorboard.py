"""Scalars for TensorBoard: read back by TensorBoard's own reader, beside log.jsonl."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rheobase.cli import run as command
from rheobase.models.training import loop
from rheobase.models.training.run import Run
from rheobase.models.training.tensorboard import scalars
from rheobase.spiking.config import to_toml

TABLE = {
    "model": {"name": "egru_lm", "embedding": 16, "layers": [24, 16], "thr_mean": 0.1},
    "train": {"steps": 200, "batch": 4, "context": 8, "warmup": 5, "threads": 1, "evaluate_every": 100}
    | {"checkpoint_every": 70, "tensorboard": True},
    "data": {"valid": 0.01},
}


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, number) of each point, as TensorBoard shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder / "tensorboard"), size_guidance={reader.SCALARS: 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_each_number_of_a_record_is_a_curve():
    record = {"step": 20, "bits_per_byte": 3.5, "rates": [0.1, 0.2], "tokens_per_s": 900.0}
    wanted = {"train/bits_per_byte": 3.5, "train/rates/0": 0.1, "train/rates/1": 0.2, "train/tokens_per_s": 900.0}
    assert scalars(record, "bits_per_byte") == wanted
    look = {"step": 40, "valid": 0.75, "rates": (0.5,), "sparsity": {"layers.0.kernel": 0.9}}
    assert scalars(look, "cross_entropy") == {
        "valid/accuracy": 0.75,
        "valid/rates/0": 0.5,
        "valid/sparsity/layers.0.kernel": 0.9,
    }


def test_a_killed_run_that_goes_on_has_each_point_once(tmp_path):
    pytest.importorskip("tensorboard")
    config, folder = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(to_toml(TABLE))
    arguments = [sys.executable, "-m", "rheobase", "train", str(config), "--out", str(folder)]
    process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    log = folder / "log.jsonl"
    while not (log.exists() and b'"step": 100' in log.read_bytes()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run = loop.resume(folder, quiet=True)
    shown, measure = curves(folder), run.measure
    losses = [(r["step"], pytest.approx(r[measure], rel=1e-6)) for r in run.log() if measure in r]
    assert shown[f"train/{measure}"] == losses and len(losses) == 10
    assert shown[f"valid/{measure}"] == [(r["step"], pytest.approx(r["valid"])) for r in run.log() if "valid" in r]
    assert {"train/learning_rate", "train/rates/0", "train/rates/1", "train/tokens_per_s"} <= shown.keys()
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_run_that_asks_for_curves_late_gets_those_it_had(tmp_path):
    pytest.importorskip("tensorboard")
    table = TABLE | {"train": TABLE["train"] | {"steps": 40, "checkpoint_every": 20, "tensorboard": False}}
    config = tmp_path / "config.toml"
    config.write_text(to_toml(table))
    run = Run(tmp_path / "run")
    assert command(["train", str(config), "--out", str(run.folder), "--json"]) == 0
    assert not (run.folder / "tensorboard").exists()
    text = run.config_path.read_text().replace("tensorboard = false", "tensorboard = true")
    run.config_path.write_text(text.replace("steps = 40", "steps = 60"))
    loop.resume(run.folder, quiet=True)
    assert [step for step, _ in curves(run.folder)[f"train/{run.measure}"]] == [20, 40, 60]


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = tmp_path / "config.toml"
    config.write_text(to_toml(TABLE))
    assert command(["train", str(config), "--out", str(tmp_path / "run")]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "pip install 'rheobase[tensorboard]'" in line
    assert not (tmp_path / "run").exists()
