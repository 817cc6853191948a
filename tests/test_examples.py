"""Each example runs, with few updates, and says what it should."""

import runpy
import sys
from pathlib import Path

import pytest

import rheobase

FOLDER = Path(__file__).parent.parent / "examples"
SAYS = {
    "train_egru.py": ("test  ", "MACs a token", "products alone, as papers do", "saved egru"),
    "train_spikegpt.py": ("operations a token", "lif_out", "and 0 multiply-accumulates a token"),
    "bring_your_neuron.py": ("Adaptive  ", "lif  ", "accumulates"),
}


def test_each_example_is_run():
    assert {path.name for path in FOLDER.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("script", SAYS)
def test_example(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "".join(f"{n} is followed by {n + 1}. " for n in range(700))
    Path("my.txt").write_text(text)
    arguments = [] if script.startswith("bring") else ["--text", "my.txt"]
    monkeypatch.setattr(sys, "argv", [script, "--steps", "3", *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    said = capsys.readouterr().out
    assert all(word in said for word in SAYS[script]), said
    if script == "train_egru.py":
        assert rheobase.load("egru").config.layers == (224,)
    assert len((FOLDER / script).read_text().splitlines()) < 90
