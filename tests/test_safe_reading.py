"""What reads files never runs them: the calls that would are not in the package, and archives are not unpacked."""

import ast
from pathlib import Path

import pytest

from rheobase import backends

ROOT = Path(backends.__file__).parent.parent
FOLDERS = ("backends", "models", "rheobase", "spiking")
RUNS_FILES = {"backends/importers/torch.py": ["exec_module"]}
"""`rheobase import FILE.py:NAME` runs FILE.py, and says so"""
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "runpy",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__", "exec_module", "load_module", "extractall", "extract", "mktemp"}
CALLS |= {"unpack_archive", "system", "popen", "read_pickle", "run_path", "run_module"}
SAFE = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
    ("format", "read_array"): ("allow_pickle", False),
}
"""(module, function): the argument that must be written out, and its value"""


def unsafe(source: str) -> list[str]:
    """The calls and imports of a source file that could run what a stranger wrote, or write where they say."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").partition(".")[0] in MODULES and not node.level else []
            found += [alias.name for alias in node.names if alias.name in CALLS]
            found += [alias.name for alias in node.names if (node.module, alias.name) in SAFE]
        elif isinstance(node, ast.Call):
            given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else None for k in node.keywords}
            called, owner = node.func, ""
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if isinstance(called, ast.Attribute):
                owner = getattr(called.value, "attr", getattr(called.value, "id", "?"))
            plain = owner in ("", "builtins", "os", "tempfile", "shutil", "loader", "archive", "tar", "runpy", "pd")
            found += [name] if name in CALLS and (plain or name in ("extractall", "extract", "exec_module")) else []
            argument, value = SAFE.get((owner, name), (None, None))
            found += [f"{owner}.{name}"] if argument and given.get(argument) is not value else []
            found += [f"{name} through a shell"] if given.get("shell", False) is not False else []
    return found


def test_the_package_runs_nothing_that_it_reads():
    files = {p.relative_to(ROOT).as_posix(): p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")}
    assert len(files) > 150
    assert {name: found for name, path in files.items() if (found := unsafe(path.read_text()))} == RUNS_FILES


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "from torch import load",
        "np.lib.format.read_array(file)",
        "eval(text)",
        "exec(text)",
        "spec.loader.exec_module(module)",
        "tarfile.open(path).extractall(folder)",
        "archive.extract(entry)",
        "zipfile.ZipFile(path).extractall()",
        "shutil.unpack_archive(path)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tempfile.mktemp()",
        "from tempfile import mktemp",
    ],
)
def test_a_planted_call_is_found(source):
    assert unsafe(source)


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "np.load(path, allow_pickle=False)", "x.load()"])
def test_harmless_calls_are_left_alone(source):
    assert not unsafe(source)
