"""What is left by a kill, a full disk, two at once and strange places: whole files, or a line that says so."""

import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from rheobase.backends.events import open_events, write_events
from rheobase.backends.events._record import Recording, events
from rheobase.cli import run as command
from rheobase.models.training import loop
from rheobase.models.training.checkpoint import alone
from rheobase.models.training.record import Log
from rheobase.models.training.run import Run, RunConfig
from rheobase.spiking import files
from rheobase.spiking.config import to_toml
from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import new_folder, write_atomic

MODEL = {"name": "egru_lm", "embedding": 16, "layers": [16]}
BRIEF = {
    "model": MODEL,
    "train": {"steps": 4, "batch": 4, "context": 16, "warmup": 1, "evaluate_every": 4, "checkpoint_every": 4},
}


@pytest.fixture
def brief(tmp_path):
    return loop.start(tmp_path / "brief", RunConfig.from_table(BRIEF), quiet=True)


def failing(monkeypatch, ending):
    """As if the process ended before a finished file of that name is put into its place."""
    replace = os.replace

    def put(source, target):
        if str(target).endswith(ending):
            raise OSError(5, "killed")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", put)


def test_a_device_stays_one_and_a_link_leads_where_it_did(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe: expected a file, or none yet, got a device or a pipe; choose another"):
        write_atomic(tmp_path / "pipe", b"new")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_bytes() == b"new"


def test_a_full_disk_says_where(tmp_path):
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'new'}'"), new_folder(tmp_path / "new"):
        raise OSError(28, "No space left on device")
    with Log(tmp_path / "log.jsonl", 0) as log:
        log._file.close()
        log._file = open("/dev/full", "wb")
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'log.jsonl'}'"):
            log.write(step=1)
        with pytest.raises(OSError, match="No space left"):
            log._file.close()
        log._file = None


def test_events_are_never_read_at_other_times(tmp_path, monkeypatch):
    """Between the file and its sidecar there was a moment at which the file was read without its shift."""
    path = tmp_path / "o.dat"

    def write(at, then):
        write_events(path, Recording([events([at, then], [1, 3], [2, 4], [1, 0])], (8, 8)), shift=True)

    write(10_000_000_000, 10_000_000_005)
    with open_events(path) as found:
        assert np.concatenate(list(found.chunks))["t"].tolist() == [10_000_000_000, 10_000_000_005]
    with monkeypatch.context() as patch:
        failing(patch, "o.dat")
        with pytest.raises(OSError, match="killed"):
            write(20_000_000_000, 20_000_000_009)
    with pytest.raises(FormatError, match="expected the bytes that its sidecar names, got others"), open_events(path):
        pass


def test_a_folder_with_what_is_left_of_a_run_is_not_trained_into(brief):
    """It "trained" no step and gave the old result."""
    brief.config_path.unlink()
    with pytest.raises(FormatError, match="expected a folder without a run, got what is left of one; choose another"):
        loop.start(brief.folder, RunConfig.from_table(BRIEF), quiet=True)


def test_who_comes_second_to_a_folder_writes_no_settings(tmp_path):
    run = Run(tmp_path)
    with alone(tmp_path, run.log_path), pytest.raises(FormatError, match="got one that is trained now"):
        loop.start(tmp_path, RunConfig.from_table(BRIEF), quiet=True)
    assert not run.config_path.exists()


def test_a_log_that_is_moved_or_cut_is_missed(tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "log.jsonl"
    with Log(path, 0) as log:
        log.write(step=1)
        held = log.synced()
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(FormatError, match="log.jsonl: expected the log of this training, got none, or another one"):
            log.synced()
    with pytest.raises(FormatError, match=f"expected the {held + 1} bytes of log of the checkpoint, got {held}; put"):
        Log(tmp_path / "moved" / "log.jsonl", held + 1)
    with Log(tmp_path / "new.jsonl", held) as log:
        assert log.synced() == 0  # one that was deleted begins anew


def test_a_finished_run_that_is_resumed_keeps_what_eval_measured(brief):
    assert command(["eval", str(brief.folder)]) == 0
    assert "test" in brief.metrics()
    loop.resume(brief.folder, quiet=True)
    assert "test" in brief.metrics()


def test_what_a_killed_process_left_half_written_goes_with_the_next(brief):
    left = [brief.folder / ".config.toml.12345678.partial", brief.model_path / ".model.safetensors.12345678.partial"]
    for path in left:
        path.write_bytes(b"half")
    others = brief.folder / "notes" / ".other.partial"
    others.parent.mkdir()
    others.write_bytes(b"of another process")
    loop.resume(brief.folder, quiet=True)
    assert not any(path.exists() for path in left) and others.exists()


def test_a_training_that_is_told_to_stop_says_so(tmp_path):
    table = {"model": MODEL, "train": {"steps": 100_000, "batch": 4, "context": 16, "warmup": 1}}
    (tmp_path / "long.toml").write_text(to_toml(table))
    arguments = [sys.executable, "-m", "rheobase", "train", "long.toml", "--out", "run"]
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    process = subprocess.Popen(arguments, **options)
    log, end = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 1 and "rheobase: interrupted, go on with --resume" in said
    assert not list((tmp_path / "run").rglob(".*"))
