"""Discovery by file name: a neuron, a model, an exporter or a target exists because its file does."""

import difflib
import importlib
import pkgutil
from types import ModuleType

from rheobase.spiking.errors import ConfigError


def nearest(word: str, choices) -> str:
    """A remedy that names the choice nearest to `word`, or lists all of them."""
    choices = sorted(choices)
    match = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {match[0]!r}?" if match else f"choose one of {', '.join(choices)}"


def names(package: str) -> list[str]:
    """The public modules of a package: the file names without those that start with an underscore."""
    folder = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_"))


def get(package: str, name: str) -> ModuleType:
    """Import the module `name` of `package`; raises ConfigError with the nearest match if there is none."""
    available = names(package)
    if name not in available:
        raise ConfigError(package.rsplit(".", 1)[-1], "a known name", repr(name), nearest(name, available))
    return importlib.import_module(f"{package}.{name}")
