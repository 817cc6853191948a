"""Names of a package that are imported when they are first asked for: what reads event files or prepares texts needs no
torch, which takes over 600 MB."""

import importlib
import sys
from collections.abc import Callable, Mapping


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package (PEP 562).

    homes    submodule -> the names that it gives the package, "A, B"
    """
    module_of = {name: module for module, names in homes.items() for name in names.split(", ")}

    def get(name: str) -> object:
        if name in homes:
            return importlib.import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get, names
