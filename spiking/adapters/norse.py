"""Norse's feed-forward neurons as cells, by its names of cell classes without "Cell": LIF, LIFBox, IAF, LIFEx, ...

Norse has its state as an argument already. Left aside are its modules: they start in float32, and they write
`requires_grad` onto parameters that are shared defaults.
"""

import inspect
import math
from numbers import Number
from types import SimpleNamespace

import torch

from rheobase.spiking.adapters._library import alike, load, require_sizes
from rheobase.spiking.config import checked
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import CubaLIFCell, LIFCell, Op
from rheobase.spiking.neurons import Cell
from rheobase.spiking.registry import nearest
from rheobase.spiking.tally import BINARY, announce, mark

REQUIREMENT = "norse>=1.1"
METHODS = ("super", "triangle", "tanh", "circ", "heavi_erfc")
RESETS = ("reset_value", "reset_subtract")
LOWERED = ("norse:LIF", "norse:LIFBox", "norse:IAF")
"""those that a graph op computes"""


class Norse(Cell):
    """A neuron of Norse over a layer of units: its own step function, in the type of x.

    name      "norse:LIF" and the like
    function  (x_BD, state, p, dt) -> (s_BD, state)
    p         the fields of Norse's parameters, as numbers (its own tuple cannot be pickled): time constants as inverses
              in 1/s, potentials in one common unit
    dt        the step in s
    rest      Norse's state tuple, of numbers: each part before the first step

    Fires at v > v_th; the reset is not cut from the gradient. There is no `surrogate` to exchange: the step picks
    Norse's own by the name in `p.method`. Its "super" is FastSigmoid(k=1).
    """

    def __init__(self, name: str, units: int, function, p: SimpleNamespace, dt: float, rest: tuple):
        super().__init__()
        self.name, self.units, self.input_size = name, units, units
        self.function, self.p, self.dt, self.rest = function, p, dt, rest

    def initial_state(self, batch, *, dtype=None, device=None):
        shape = (batch, self.units)
        return type(self.rest)(*(torch.full(shape, part, dtype=dtype, device=device) for part in self.rest))

    def step(self, x_BD, state):
        require_sizes(self.name, self.units, x_BD, state)
        s, state = self.function(x_BD, state, self.p, self.dt)
        for part in state:
            announce(state_updates=part, cause=x_BD)
        return mark(s, BINARY), state

    def lower(self):
        """LIFBox and IAF are an LIFCell, LIF is a CubaLIFCell: where they leak to what the graph op leaks to.

        Counting: the graph op does the same in fewer products than Norse's step of LIFBox and IAF; for LIF in as many.
        """
        p = self.p
        subtracts = getattr(p, "reset_method", None) is reset_of("reset_subtract")
        v_reset = None if subtracts else p.v_reset
        if self.name == "norse:IAF":
            return LIFCell(math.inf, p.v_th, v_reset, decay_input=False, fire=">")
        if self.name == "norse:LIFBox" and p.v_leak == (v_reset or 0.0):
            return LIFCell(1 / (self.dt * p.tau_mem_inv), p.v_th, v_reset, decay_input=True, fire=">")
        leak = self.dt * p.tau_mem_inv
        if self.name == "norse:LIF" and p.v_leak == 0:
            return CubaLIFCell(1 - self.dt * p.tau_syn_inv, 1 - leak, leak, p.v_th, v_reset)
        what = "a neuron that a graph op computes"
        if self.name in ("norse:LIFBox", "norse:LIF"):
            rest = "v_reset (0 if it subtracts)" if self.name == "norse:LIFBox" else "0"
            raise UnsupportedError(
                self.name, what, f"v_leak = {p.v_leak}", f"set v_leak to {rest} and shift the others"
            )
        raise UnsupportedError(self.name, what, "equations of no graph op", f"lower one of {', '.join(LOWERED)}")


def reset_of(name: str):
    """Norse's reset function of that name."""
    return getattr(load("norse.torch.functional.reset", REQUIREMENT), name)


def _cell_type(name: str, kind: str) -> type:
    """Norse's cell class of a neuron; raises where it cannot be a cell of ours."""
    library = load("norse.torch", REQUIREMENT)
    cells = {k.removesuffix("Cell"): v for k, v in vars(library).items() if inspect.isclass(v) and k.endswith("Cell")}
    if kind not in cells:
        raise ConfigError(name, "a neuron of Norse", repr(kind), nearest(kind, cells))
    taken = inspect.signature(cells[kind]).parameters
    why = None
    if "input_size" in taken:
        why = "a neuron that holds matrices", "put a linear layer before a feed-forward one"
    elif "p" not in taken:
        why = "a neuron whose parameters come with a state", "choose a feed-forward LIF"
    elif "v_th" not in taken["p"].default._fields:
        nested = any(isinstance(value, tuple) for value in taken["p"].default)
        why = ("a nested state" if nested else "a neuron that never fires"), "choose a feed-forward LIF"
    if why:
        raise UnsupportedError(name, "a neuron of a flat state and no matrices that fires", *why)
    return cells[kind]


def _refuse_without_effect(name: str, settings: dict, values: dict) -> None:
    """Norse takes these and does not use them; a setting that changes nothing is a mistake."""
    for choice, choices in (("method", METHODS), ("reset_method", RESETS)):
        if choice in settings and settings[choice] not in choices:
            got = f"{settings[choice]!r}"
            raise ConfigError(f"{name} {choice}", f"one of {choices}", got, nearest(settings[choice], choices))
    unused = {
        "alpha": values["method"] == "super" and 'Norse\'s "super" does not use it',
        "dt": name == "norse:IAF" and "it does not leak",
        "v_reset": values.get("reset_method") == "reset_subtract" and "it resets by subtraction",
    }
    for setting, why in unused.items():
        if setting in settings and why:
            raise ConfigError(f"{name} {setting}", "a setting with an effect", why, "drop it")


def _refuse_without_meaning(name: str, values: dict) -> None:
    """Norse takes these and then divides by 0, stands still, or leaps beyond what it leaks to."""
    for setting, value in values.items():
        if not isinstance(value, Number):
            continue
        if not math.isfinite(value):
            raise ConfigError(f"{name} {setting}", "a finite number", str(value), "mend it")
        if setting in ("dt", "tau_mem_inv", "delta_T", "alpha") and not value > 0:
            raise ConfigError(f"{name} {setting}", "a number above 0", str(value), "raise it")
        if setting.startswith("tau_") and not 0 <= values["dt"] * value <= 1:
            wanted = "an inverse time constant from 0 to 1 / dt, so that a step is no longer than it"
            raise ConfigError(f"{name} {setting}", wanted, f"{value} at dt = {values['dt']}", "mend one of them")


def make(kind: str, units: int, settings: dict) -> Norse:
    """The neuron `kind` of Norse; settings are the fields of its parameter tuple, and dt."""
    name = f"norse:{kind}"
    cell = _cell_type(name, kind)
    defaults = inspect.signature(cell).parameters["p"].default
    values = {"dt": 0.001}
    for field, value in defaults._asdict().items():
        plain = value.__name__ if callable(value) and not isinstance(value, torch.Tensor) else value
        values[field] = plain if isinstance(plain, str) else float(plain)
    values |= checked(settings, {field: type(value) for field, value in values.items()}, name)
    _refuse_without_effect(name, settings, values)
    _refuse_without_meaning(name, values)
    dt = values.pop("dt")
    if "reset_method" in values:
        values["reset_method"] = reset_of(values["reset_method"])
    tensors = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, Number) else v for k, v in values.items()}
    built = cell(p=type(defaults)(**tensors))
    rest = built.state_fallback(torch.zeros(1, 1, dtype=torch.float64))
    rest = type(rest)(*(part.detach().item() for part in rest))
    return Norse(name, units, built.activation, SimpleNamespace(**values), dt, rest)


def op_of(cell) -> Op:
    """The graph op of a feed-forward cell of somebody's network.

    raises  UnsupportedError: no graph op computes it, or its units differ in a parameter
    """
    name = f"norse:{type(cell).__name__.removesuffix('Cell')}"
    if name not in LOWERED:
        raise UnsupportedError(name, f"one of {', '.join(LOWERED)}", "equations of no graph op", "replace it")
    numbers = {
        k: alike(f"{name} {k}", v) if isinstance(v, Number | torch.Tensor) else v for k, v in cell.p._asdict().items()
    }
    return Norse(name, 1, cell.activation, SimpleNamespace(**numbers), cell.dt, ()).lower()


def examples() -> list[Norse]:
    """Small instances for the laws: each neuron that can be a cell, both resets, every surrogate."""
    fast = {"tau_mem_inv": 400.0, "v_th": 0.4}
    return [
        make("LIFBox", 3, {**fast, "v_leak": 0.1, "v_reset": -0.2}),
        make("LIFBox", 2, {**fast, "reset_method": "reset_subtract", "method": "tanh"}),
        make("LIF", 3, {**fast, "method": "triangle", "alpha": 0.5}),
        make("IAF", 2, {"v_th": 0.6, "v_reset": -0.1, "method": "circ", "alpha": 1.0}),
        make("LIFEx", 2, {**fast, "method": "heavi_erfc", "alpha": 1.0}),
        make("LIFAdEx", 3, fast),
        make("LSNN", 3, {**fast, "tau_adapt_inv": 10.0}),
    ]
