"""Who may import whom: spiking <- models, spiking <- backends; only the facade sees both."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "spiking": ("rheobase.spiking",),
    "models": ("rheobase.spiking", "rheobase.models"),
    "backends": ("rheobase.spiking", "rheobase.backends"),
}


def breaches(folder: str, source: str) -> list[str]:
    """Imports of ours in a file of a folder that the folder may not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
            if names == ["rheobase"]:
                names = [f"rheobase.{alias.name}" for alias in node.names]
        else:
            continue
        ours = [n for n in names if n.split(".")[0] in ("", "rheobase", *ALLOWED)]
        found += [n for n in ours if not any(n == a or n.startswith(f"{a}.") for a in ALLOWED[folder])]
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_one_way(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(f): b for f in files if (b := breaches(folder, f.read_text()))} == {}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("spiking", "from rheobase.models import EGRULM"),
        ("models", "def f():\n    import rheobase.backends.counting"),
        ("backends", "from rheobase import load"),
        ("backends", "import models"),
        ("models", "from . import _recurrent"),
    ],
)
def test_a_planted_breach_is_caught(folder, source):
    assert breaches(folder, source)


def test_spiking_loads_neither_models_nor_backends():
    code = "import sys, rheobase.spiking; print([m for m in sys.modules if m.startswith(('rheobase.m', 'rheobase.b'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ALLOWED)
def test_the_bare_name_is_refused_from_the_root(folder):
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith(f"ImportError: import rheobase.{folder}, not {folder}")


def test_packages_show_their_parts_without_importing_them_first():
    code = "import rheobase.backends, rheobase.spiking; print(rheobase.backends.counting, rheobase.spiking.graph)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "rheobase.spiking.graph" in done.stdout, done.stderr


def test_a_command_begins_without_what_it_may_not_need():
    """torch's compiler and its sharing out of models take two seconds."""
    heavy = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "matplotlib", "jinja2"]
    code = f"import sys, rheobase.commands; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
