"""What the README says is so."""

import re
from pathlib import Path

from rheobase.cli import parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert "Report(ok=True" in capsys.readouterr().out


def test_links_and_commands_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    known = next(a for a in parser()._actions if a.dest == "command").choices
    lines = re.findall(r"^rheobase .*$", TEXT, re.M)
    named = {name for line in lines for part in re.findall(r"rheobase ([a-z|]+)", line) for name in part.split("|")}
    assert named and named <= set(known)


def test_the_two_commands_stand_as_ci_runs_them():
    assert TEXT.count("\npip install -e . && rheobase quickstart\n") == 1
    assert TEXT.count('\npip install -e ".[test]" && pytest\n') == 1
