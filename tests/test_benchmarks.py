"""What the benchmarks share: runs are trained once, and one of other settings is not taken for them."""

import json
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from rheobase.models.training import loop
from rheobase.models.training.run import Run, RunConfig
from rheobase.spiking.errors import ConfigError

TRAIN = {"steps": 2, "batch": 2, "context": 8, "warmup": 1, "evaluate_batch": 256, "learning_rate": 2e-3}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def test_parts_of_another_text_are_refused(tmp_path, monkeypatch):
    import language_models

    monkeypatch.setattr(language_models, "TRAIN", 50)
    text = tmp_path / "t.txt"
    text.write_bytes(bytes(range(100)))
    table = language_models.cut(text, tmp_path / "out")
    assert language_models.cut(text, tmp_path / "out") == table
    assert Path(table["text"]).read_bytes() + Path(table["valid_text"]).read_bytes() == text.read_bytes()
    text.write_bytes(bytes(range(1, 101)))
    with pytest.raises(ConfigError, match="text.bin: expected a part of .*t.txt, got another text"):
        language_models.cut(text, tmp_path / "out")


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_a_run_is_kept_and_one_of_other_settings_refused(tokenizer, tmp_path, monkeypatch):
    from _runs import train

    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command[3:]))
    (tmp_path / "t.txt").write_text("some words " * 99)
    data = {"text": str(tmp_path / "t.txt"), "tokenizer": tokenizer}
    table = {"model": {"name": "lstm_lm", "embedding": 8, "layers": [8]}, "data": data, "train": TRAIN}
    folder = tmp_path / "runs" / "one"
    train(folder, table)
    assert asked.pop() == ["train", str(folder) + ".toml", "--out", str(folder)]
    loop.start(folder, RunConfig.from_table(table), quiet=True)
    assert train(folder, table).config.train.steps == 2 and not asked
    others = (
        (table | {"train": TRAIN | {"steps": 3}}, "a run with train.steps = 3, got 2; delete it"),
        (table | {"model": table["model"] | {"embedding": 9, "layers": [9]}}, "model.embedding = 9, got 8"),
        (table | {"data": data | {"tokenizer": "characters"}}, "= 'characters', got"),
        (table | {"budget": {"ops_per_token": 9.0}}, "budget.ops_per_token = 9.0, got None"),
    )
    for other, message in others:
        with pytest.raises(ConfigError, match=message):
            train(folder, other)
    (folder / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="train.steps = 3"):
        train(folder, others[0][0])
    train(folder, table)
    assert asked.pop() == ["train", "--resume", "--out", str(folder)]


def test_logs_hold_all_that_a_run_says_but_where_it_lay(small_run, tmp_path):
    from _runs import write_logs

    run = Run(shutil.copytree(small_run.folder, tmp_path / "runs" / "one"))
    run.add_metrics(text=str(tmp_path / "runs" / "text" / "a.bin"))
    write_logs([run], tmp_path / "logs.jsonl.xz", tmp_path / "runs")
    (line,) = lzma.open(tmp_path / "logs.jsonl.xz", "rt")
    said = json.loads(line)
    assert said["run"] == "one" and said["metrics"] == small_run.metrics() | {"text": "text/a.bin"}
    assert said["log"] == small_run.log() and said["config"]["train"]["steps"] == small_run.config.train.steps


def test_integers_are_judged_beside_floats(small_run, monkeypatch):
    import quantised

    monkeypatch.setattr(quantised, "STREAMS", 2)
    monkeypatch.setattr(quantised, "LENGTH", 100)
    floats, integers = quantised.judge(small_run)
    assert integers != floats and integers == pytest.approx(floats, rel=0.01)
    assert [quantised.shown(*given) for given in (([1.0, 2.0], "+.1f"), ([2.0], ".2f"))] == ["+1.5 ± 0.5", "2.00"]


def test_a_kernel_is_read_off_its_machine_code(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    import gpu_code

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    op, kernel, constants = gpu_code.WAYS["LIF forward"]
    code = gpu_code.compiled(op, kernel, constants, "fp32", 90)
    registers, stack, a_step, cycles, loads = gpu_code.described(code, op.STEPS)
    assert 3 * op.STEPS < registers < 256 and stack == 0  # three stretches of one number a step
    assert 6 < a_step < 20 and 0 < loads < 1  # a load, a store, two differences, two products, two sums, a comparison
    assert 20 < cycles < 32, "five of them wait for one another, 4 or 5 cycles each"
