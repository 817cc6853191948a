"""The README stands as CI runs it, and names commands that exist."""

import re
from pathlib import Path

from rheobase.cli import parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_commands_it_names_exist():
    known = next(a for a in parser()._actions if a.dest == "command").choices
    named = {name for part in re.findall(r"rheobase ([a-z|]+)", TEXT) for name in part.split("|")}
    assert named <= set(known) and len(named) > 10


def test_the_two_commands_stand_as_ci_runs_them():
    assert TEXT.count("\npip install -e . && rheobase quickstart\n") == 1
    assert TEXT.count('\npip install -e ".[test]" && pytest\n') == 1
