"""Neurons by name: ours ("lif"), and those of other libraries as cells of ours ("norse:LIFBox", "snntorch:Leaky").

One file a library, found by its name: `make(kind, units, settings) -> Cell` and `examples()`. Each runs the
library's own step over explicit state; the library is imported there and then.
"""

import inspect
import typing

from rheobase.spiking import registry
from rheobase.spiking.config import checked
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.neurons import Cell


def make_neuron(name: str, units: int, /, **settings) -> Cell:
    """A layer of elementwise neurons, [B, T, units] -> [B, T, units].

    name      a file of `spiking/neurons`, or "library:Neuron" for a file of `spiking/adapters`
    settings  the neuron's own; its library's names and defaults where it is a library's
    raises    ConfigError: an unknown name or setting (with the nearest match), or a setting without effect or meaning;
              UnsupportedError: the library is not installed, or its neuron cannot be such a cell, and why

    >>> make_neuron("lif", 3, tau=4.0).lower().tau
    4.0
    """
    library, colon, kind = name.partition(":")
    if colon:
        return registry.get("rheobase.spiking.adapters", library).make(kind, units, settings)
    module = registry.get("rheobase.spiking.neurons", name)
    cells = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Cell) and value.__module__ == module.__name__
    ]
    if len(cells) != 1:
        got = ", ".join(cell.__name__ for cell in cells) or "none"
        raise ConfigError(module.__name__, "one Cell that is defined there", got, "move the others to other files")
    (own,) = cells
    if not own.elementwise:
        raise ConfigError(name, "a neuron without matrices", own.__name__, f"build the layer {own.__name__} itself")
    names = list(inspect.signature(own).parameters)
    if names[:1] != ["units"]:
        raise ConfigError(f"{own.__name__}.__init__", "units first", ", ".join(names) or "none", "name it units")
    hints = typing.get_type_hints(own.__init__)
    return own(units, **checked(settings, {n: hints.get(n, typing.Any) for n in names[1:]}, name))
