"""What takes a graph: counters, simulators, exporters."""

if __name__ != "rheobase.backends":
    raise ImportError(
        "import rheobase.backends, not backends: from the repository's root the bare name is a second copy"
    )

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rheobase.backends.counting import count, price
    from rheobase.backends.exporters import export, verify
    from rheobase.backends.simulators import simulate

_HOMES = {
    "count": "counting",
    "export": "exporters",
    "price": "counting",
    "simulate": "simulators",
    "verify": "exporters",
}


def __getattr__(name: str):
    """Import a name when it is first asked for: what reads event files needs no torch, which takes over 600 MB."""
    if name in _HOMES.values():
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["count", "export", "price", "simulate", "verify"]
