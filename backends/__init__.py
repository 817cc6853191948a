"""What takes a graph: counters, simulators, exporters."""

if __name__ != "rheobase.backends":
    raise ImportError(
        "import rheobase.backends, not backends: from the repository's root the bare name is a second copy"
    )

from typing import TYPE_CHECKING

from rheobase.spiking._lazy import lazy_names

if TYPE_CHECKING:
    from rheobase.backends.counting import count, price
    from rheobase.backends.exporters import export, verify
    from rheobase.backends.simulators import simulate

_HOMES = {
    "counting": "count, price",
    "exporters": "export, verify",
    "simulators": "simulate",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = ["count", "export", "price", "simulate", "verify"]
