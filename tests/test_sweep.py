"""A sweep: its plan, its figures by hand, and one that is killed and goes on."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rheobase.cli import run as command
from rheobase.models.training.run import Run
from rheobase.pareto import draw
from rheobase.spiking.errors import ConfigError
from rheobase.sweeping import Row, front, ranked, read_sweep, show, spread

PAGE = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
SMALL = """[set]
model.embedding = 16
model.layers = [16]
data.valid = 0.01
data.test = 0.01
train.steps = 20
train.batch = 4
train.context = 8
train.evaluate_every = 20
train.checkpoint_every = 4
"""


def planned(tmp_path, text: str):
    (tmp_path / "sweep.toml").write_text(text)
    return read_sweep(tmp_path / "sweep.toml")


def row(label: str, figures, operations, **more) -> Row:
    known = {"tests": [], "parameters": 10, "rate": None, "seconds": 1.0, "failed": {}, "settings": {}}
    return Row(label=label, figures=figures, operations=operations, **{**known, **more})


def test_a_plan_is_every_combination_with_every_seed(tmp_path):
    text = (
        'base = "quickstart_lstm"\nseeds = [3, 4]\n[grid]\ntrain.batch = [2, 4]\n[ablate]\n"model.layers" = [8, 192]\n'
    )
    points = planned(tmp_path, text)
    labels = ["batch=2", "batch=2,layers=8-192", "batch=4", "batch=4,layers=8-192"]
    assert [p.name for p in points] == [f"{label},seed={seed}" for label in labels for seed in (3, 4)]
    assert points[3].table["model"] == {
        **{"name": "lstm_lm", "embedding": 192, "embedding_range": 0.5},
        "layers": [8, 192],
    }
    assert points[3].table["train"]["batch"] == 2 and points[3].table["train"]["seed"] == 4
    assert all(p.table["train"]["threads"] == 1 for p in points)
    assert [p.name for p in planned(tmp_path, 'base = "quickstart_lstm"')] == ["base,seed=0"]


def test_draws_are_in_range_repeat_and_do_not_depend_on_each_other(tmp_path):
    points = planned(tmp_path, EXAMPLES[1])
    assert len(points) == 8 * 3
    drawn = [p.settings for p in points[::3]]
    assert all(1e-3 <= s["train.learning_rate"] <= 3e-2 and 8 <= s["train.batch"] <= 32 for s in drawn)
    assert all(type(s["train.batch"]) is int and s["model.eps"] in (0.5, 1.0, 1.5) for s in drawn)
    assert min(s["train.learning_rate"] for s in drawn) < 4e-3, "by the logarithm, 8 draws in the upper half: 1 in 150"
    assert planned(tmp_path, EXAMPLES[1]) == points
    fewer = planned(tmp_path, EXAMPLES[1].replace("model.eps", "# model.eps"))
    assert [p.settings["train.batch"] for p in fewer] == [p.settings["train.batch"] for p in points]
    other = planned(tmp_path, EXAMPLES[1].replace("seed = 0", "seed = 1"))
    assert [p.settings for p in other] != [p.settings for p in points]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seeds = [0]", "expected a base"),
        ('base = "quickstart_egro"', "did you mean 'quickstart_egru'"),
        ('base = "quickstart_egru"\ngrit = 1', "did you mean 'grid'"),
        ('base = "quickstart_egru"\nseeds = 3', "a list of whole numbers"),
        ('base = "quickstart_egru"\ngrid = 3', "a section"),
        ('base = "quickstart_egru"\n[grid]\ntrain.batch = 3', "a list of values"),
        ('base = "quickstart_egru"\n[grid]\nbatch = [3]', "settings by section"),
        ('base = "quickstart_egru"\n[grid]\ntrain.batsh = [3]', "did you mean 'batch'"),
        ('base = "quickstart_egru"\n[grid]\ntrain.batch = [2, 2]', "runs that differ"),
        ('base = "quickstart_egru"\n[ablate]\nmodel.thr_mean = 0.3', "runs that differ"),
        ('base = "quickstart_egru"\n[grid]\ntrain.seed = [2]', "got one twice"),
        ('base = "quickstart_egru"\n[grid]\ntrain.batch = [2]\n[ablate]\ntrain.batch = 3', "got one twice"),
        ('base = "quickstart_egru"\n[random]\ntrain.batch = [2]', "how many to draw"),
        ('base = "quickstart_egru"\n[random]\nsamples = 2\ntrain.clip = {low = 0, high = 1, log = true}', "above 0"),
        ('base = "quickstart_egru"\n[random]\nsamples = 2\ntrain.clip = {low = 1, high = inf}', "low below high"),
        (
            f'base = "quickstart_egru"\n[random]\nsamples = 2\ntrain.steps = {{low = 1, high = {10**400}, log = true}}',
            "low below high",
        ),
        ('base = "quickstart_egru"\n[grid]\ntrain.steps = [1, 0]', "at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_a_line(tmp_path, text, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        planned(tmp_path, text)


def test_figures_and_the_front_by_hand():
    assert spread([1.0, 2.0, 4.0], 2) == "2.33 ± 1.50" and spread([2.0], 1) == "2.0" and spread([], 1) == "-"
    rows = [
        row("a", [2.0, 2.2], [100.0, 120.0]),
        row("b", [2.1], [200.0]),
        row("c", [1.5], [300.0], tests=[1.6]),
        row("d", [3.0], [50.0]),
        row("e", [2.05], [110.0]),
        row("f", [], [], failed={"f,seed=0": "why"}),
        row("g", [1.0], []),
    ]
    assert [r.label for r in front(rows, higher=False)] == ["d", "e", "c"]
    assert [r.label for r in front(rows, higher=True)] == ["d"]
    assert [r.label for r in ranked(rows, higher=False)] == ["g", "c", "e", "a", "b", "d", "f"]
    lines = show(ranked(rows, False), "bits a byte", False).splitlines()
    assert re.match(r"2\* +c +1\.5000 +1\.6000 +300 +10 +- +1$", lines[2])
    assert re.match(r"4 +a +2\.1000 ± 0\.1000 +- +110 ± 10 ", lines[4])


def test_the_picture_is_drawn(tmp_path):
    rows = [row(f"learning_rate={i},{'x' * 60}", [2 - i / 10, 2.1], [100.0 * 2**i]) for i in range(6)]
    for higher in (False, True):
        draw(ranked(rows, higher), "accuracy", higher, tmp_path / "front.png")
        assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def small_sweep(tmp_path, text: str):
    (tmp_path / "sweep.toml").write_text(text)
    return ["sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "out")]


def test_the_example_in_small_killed_and_resumed(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = small_sweep(tmp_path, re.sub(r"\[set\].*?\n\n", SMALL, EXAMPLES[0], flags=re.DOTALL))
    process = subprocess.Popen([sys.executable, "-m", "rheobase", *arguments], stdout=subprocess.DEVNULL)
    first, second = out / "thr_mean=0.1,seed=0", out / "thr_mean=0.1,seed=1"
    while not second.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = (first / "metrics.json").stat().st_mtime_ns
    end = time.monotonic() + 30
    while any(str(second).encode() in line for line in command_lines()):
        assert time.monotonic() < end, "a training outlived its sweep"
        time.sleep(0.05)
    assert command(arguments) == 1 and "--resume" in capsys.readouterr().err
    (tmp_path / "sweep.toml").write_text((tmp_path / "sweep.toml").read_text().replace("0.5]", "0.4]"))
    assert command([*arguments, "--resume"]) == 1
    assert "got another thr_mean=0.4,seed=0; put it back" in capsys.readouterr().err
    (tmp_path / "sweep.toml").write_text((tmp_path / "sweep.toml").read_text().replace("0.4]", "0.5]"))
    assert command([*arguments, "--resume", "--test", "--jobs", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (first / "metrics.json").stat().st_mtime_ns > kept, "the test's figures were added"
    names = [f"thr_mean={m},seed={s}" for m in (0.1, 0.5) for s in (0, 1)]
    metrics = {name: Run(out / name).metrics() for name in names}
    for found in answer["rows"]:
        own = [metrics[f"{found['label']},seed={seed}"] for seed in (0, 1)]
        assert found["figures"] == [m["valid"]["bits_per_byte"] for m in own]
        assert found["tests"] == [m["test"]["bits_per_byte"] for m in own]
        assert found["operations"] == [
            (m["tally"]["total"]["macs"] + m["tally"]["total"]["acs"]) / m["tally"]["tokens"] for m in own
        ]
    with open(out / "sweep.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == names and [line["model.thr_mean"] for line in lines] == ["0.1"] * 2 + [
        "0.5"
    ] * 2
    assert float(lines[3]["validation"]) == metrics[names[3]]["valid"]["bits_per_byte"]
    assert {p.name for p in out.iterdir()} == {*names, "sweep.json", "sweep.csv", "pareto.png"}


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue


def test_a_run_that_fails_is_said_and_the_others_go_on(tmp_path, capsys):
    text = f'base = "quickstart_lstm"\n{SMALL}[grid]\ndata.text = ["{tmp_path}/none.txt", "pydoc"]\n'
    assert command(small_sweep(tmp_path, text)) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^failed: text=.*none\.txt.*,seed=0: .*none.txt: expected a text file, got no file", shown, re.M)
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert rows[0]["label"] == "text=pydoc" and len(rows[0]["figures"]) == 1 and rows[0]["front"]
    assert rows[1]["figures"] == [] and list(rows[1]["failed"].values())[0].endswith("check data.text or --text")
    lines = list(csv.DictReader((tmp_path / "out" / "sweep.csv").read_text().splitlines()))
    assert lines[0]["failed"] and not lines[0]["validation"] and float(lines[1]["validation"]) > 0
    assert os.listdir(tmp_path / "out" / "text=pydoc,seed=0")
