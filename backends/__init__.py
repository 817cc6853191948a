"""What takes a graph: counters, simulators, exporters."""

if __name__ != "rheobase.backends":
    raise ImportError(
        "import rheobase.backends, not backends: from the repository's root the bare name is a second copy"
    )

from rheobase.backends.counting import count, price
from rheobase.backends.exporters import export, verify
from rheobase.backends.simulators import simulate

__all__ = ["count", "export", "price", "simulate", "verify"]
