"""The leaky integrate-and-fire neuron as a layer."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.spiking.errors import ConfigError, ShapeError
from rheobase.spiking.graph import GradedLIFCell, LIFCell, TernaryLIFCell
from rheobase.spiking.neurons._cell import Cell, stored
from rheobase.spiking.ops import lif
from rheobase.spiking.ops.lif.reference import lif_step
from rheobase.spiking.surrogates import FIRE_RULES, ATan, Surrogate
from rheobase.spiking.tally import GRADED, mark

TAU_MIN, THETA_MIN = 1.0, 1e-3


class LIFState(NamedTuple):
    """The membrane after the reset, [B, D]."""

    v: Tensor


def _membrane(state: LIFState | Tensor) -> Tensor:
    """v of a state, or v itself, as `ops.lif` takes it."""
    return state if isinstance(state, Tensor) else state[0]


class LIF(Cell):
    """Leaky integrate-and-fire units; equations, peers and source: `rheobase.spiking.ops.lif`.

    units         number of units; needed for learnable parameters, else any width is taken
    tau, theta    time constant in steps, at least 1, and threshold, at least 0.001
    v_reset       membrane after a spike; None resets by subtracting theta
    decay_input   whether the input is divided by tau too
    fire          ">=" or ">"
    detach_reset  whether the reset is cut from the gradient
    ternary       whether units fire at -theta too, with a spike of -1
    graded        whether a spike carries h, the membrane before the reset: the output is s h, or s |h| where ternary,
                  in place of s
    learn         names among "tau" and "theta" to be learnt, one value a unit; `project_` keeps tau >= 1 and
                  theta >= 0.001
    kernels       an attribute: the form that a call runs in, as of `ops.lif`; "auto" unless set
    call          layer(x [B, T, D], state=None) -> (s [B, T, D], state)
    raises        ConfigError: tau or theta too small or more than one number, another rule, no Surrogate, or something
                  to learn without `units`;  ShapeError, in a call: x of another width than `units`

    >>> s, state = LIF()(torch.ones(1, 3, 2))
    >>> s.shape
    torch.Size([1, 3, 2])
    """

    kernels = "auto"

    def __init__(
        self,
        units: int | None = None,
        *,
        tau: float = 2.0,
        theta: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        fire: str = ">=",
        detach_reset: bool = False,
        surrogate: Surrogate = ATan(),
        ternary: bool = False,
        graded: bool = False,
        learn: tuple[str, ...] = (),
    ):
        super().__init__()
        if fire not in FIRE_RULES:
            raise ConfigError("LIF fire", "'>' or '>='", repr(fire), "name the firing rule")
        if not isinstance(surrogate, Surrogate):
            raise ConfigError("LIF surrogate", "a Surrogate, such as ATan()", repr(surrogate), "make one")
        for name, value in (("tau", tau), ("theta", theta)):
            if isinstance(value, Tensor) and value.numel() != 1:
                remedy = f'name it in learn=("{name}",) and copy the values into the parameter'
                raise ConfigError(f"LIF {name}", "one number", f"{value.numel()} of them", remedy)
        if not tau >= TAU_MIN:
            raise ConfigError("LIF tau", "at least 1 step", str(tau), "raise it")
        if not theta >= THETA_MIN:
            raise ConfigError("LIF theta", f"at least {THETA_MIN}", str(theta), "raise it")
        if isinstance(learn, str) or set(learn) - {"tau", "theta"}:
            raise ConfigError("LIF learn", "a tuple of 'tau', 'theta' or both", repr(learn), 'write learn=("tau",)')
        if learn and units is None:
            raise ConfigError("LIF units", "a number, since parameters are learnt", "None", "give units=")
        self.units = self.input_size = units
        for name, value in (("tau", tau), ("theta", theta)):
            setattr(self, name, nn.Parameter(torch.full((units,), float(value))) if name in learn else value)
        self.v_reset, self.decay_input, self.fire = v_reset, decay_input, fire
        self.detach_reset, self.surrogate = detach_reset, surrogate
        self.ternary, self.graded, self.learn = ternary, graded, tuple(learn)

    def _settings(self) -> dict:
        names = ("tau", "theta", "v_reset", "decay_input", "fire", "detach_reset", "surrogate", "ternary")
        return {name: getattr(self, name) for name in names}

    def _grade(self, s: Tensor, h: Tensor | None = None) -> Tensor:
        if not self.graded:
            return s
        if torch.is_grad_enabled():
            y = s * (h.abs() if self.ternary else h)
        else:
            y = torch.where(s.bool(), h, 0)  # the same of finite h: a spike sends h, and nothing is multiplied
        return mark(y, GRADED, sent=False)

    def _check(self, x: Tensor) -> None:
        if self.units is not None and x.shape[-1] != self.units:
            raise ShapeError("LIF", f"{self.units} units", f"{x.shape[-1]}", "give x of that width")

    def initial_state(self, batch, *, dtype=None, device=None, units=None):
        """A membrane at rest, [batch, units]; `units` is needed only where the layer was built without."""
        units = self.units if units is None else units
        if units is None:
            raise ConfigError("LIF initial_state", "the number of units", "None", "give units=")
        if dtype is None or device is None:
            own = next(self.parameters(), torch.empty(0))
            dtype, device = dtype or own.dtype, device or own.device
        return LIFState(torch.full((batch, units), self.v_reset or 0.0, dtype=dtype, device=device))

    def step(self, x_BD, state):
        self._check(x_BD)
        v = _membrane(state)
        if v.shape != x_BD.shape:
            wanted, got = f"v of shape {tuple(x_BD.shape)}", f"{tuple(v.shape)}"
            raise ShapeError("LIF step", wanted, got, "start a new state")
        wide = torch.promote_types(torch.promote_types(x_BD.dtype, v.dtype), torch.float32)
        s, v, h = lif_step(x_BD.to(wide), v.to(wide), **self._settings())
        return self._grade(s.to(x_BD.dtype), h.to(x_BD.dtype)), LIFState(v)

    def forward(self, x_BTD, state=None, *, apart: bool = False):
        """As any cell's, (output, state); `apart`: (output, the spikes that carry it in {-1, 0, 1}, state)."""
        self._check(x_BTD)
        if state is None:
            state = self.initial_state(x_BTD.shape[0], dtype=x_BTD.dtype, device=x_BTD.device, units=x_BTD.shape[-1])
        how = {"with_h": self.graded, "whole": False, "kernels": self.kernels}
        s, v, *h = lif(x_BTD, _membrane(state), **self._settings(), **how)
        y, state = self._grade(s, *h), LIFState(v)
        return (y, s, state) if apart else (y, state)

    def lower(self) -> LIFCell:
        """LIFCell with these settings, but for learnt ones, which are to be arrays of its node, by the same names."""
        names = ("tau", "theta", "v_reset", "decay_input", "fire")
        settings = {name: getattr(self, name) for name in names}
        if self.graded:
            cell, settings["ternary"] = GradedLIFCell, self.ternary
        else:
            cell = TernaryLIFCell if self.ternary else LIFCell
        given = {name: value for name, value in settings.items() if name not in self.learn}
        return cell(**{name: value.item() if isinstance(value, Tensor) else value for name, value in given.items()})

    @torch.no_grad()
    def project_(self):
        for name, least in (("tau", TAU_MIN), ("theta", THETA_MIN)):
            if (learnt := stored(self, name)) is not None:
                learnt.clamp_(min=least)


def examples() -> list[Cell]:
    """Small instances for the laws: both resets, both firing rules, both input forms, two and three values, graded
    spikes, learnable parameters."""
    return [
        LIF(3),
        LIF(2, tau=4.0, v_reset=None, decay_input=False, fire=">"),
        LIF(4, tau=3.0, theta=0.7, v_reset=-0.2, detach_reset=True, learn=("tau", "theta")),
        LIF(3, tau=3.0, theta=0.6, v_reset=0.1, ternary=True, learn=("tau", "theta")),
        LIF(2, tau=4.0, v_reset=None, decay_input=False, fire=">", ternary=True, learn=("theta",)),
        LIF(3, tau=3.0, theta=0.6, v_reset=0.1, graded=True, learn=("tau", "theta")),
        LIF(2, tau=4.0, v_reset=None, decay_input=False, fire=">", graded=True, ternary=True),
    ]
