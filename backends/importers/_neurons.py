"""NIR's neurons as ops of ours: Euler's step of their equations."""

import math

import numpy as np

from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError
from rheobase.spiking.graph import CubaLIFCell, LIFCell, Op, Shape
from rheobase.spiking.tally import BINARY, DENSE

NEAR = 1e-6
"""relative distance at which r is 1 or tau / dt: files hold both rounded"""
TIMES = ("tau", "tau_mem", "tau_syn")


def neuron_op(name: str, node, image: Shape | None, *, dt_s: float | None, written_by: str | None):
    """(op, arrays by role, port that others read, its kind, shape) of a NIR neuron.

    image  the shape of what enters it; parameters of one number are for all its units
    raises UnsupportedError: no graph op computes it;  ConfigError: a time constant, and no dt_s
    """
    op = node.metadata.get("op")
    if isinstance(op, Op):  # a module whose op is known: `importers.torch`
        return op, node.metadata["arrays"], "s", op.outputs["s"], image
    kind = type(node).__name__
    if kind not in _OPS:
        remedy = "replace it, or import the network that it was written from"
        raise UnsupportedError(name, f"a node among {', '.join(sorted(_OPS))}, a pool or a product", kind, remedy)
    if dt_s is None or not dt_s > 0:
        remedy = "give --dt: snnTorch and SpikingJelly write for 1e-4, Norse for its to_nir's dt"
        raise ConfigError(f"{name} dt", "the duration of a step in seconds", str(dt_s), remedy)
    given = {k: np.asarray(v) for k, v in vars(node).items() if k in _ROLES and v is not None}
    shape = np.broadcast_shapes(*(a.shape for a in given.values()))
    if image is not None and math.prod(shape) == 1:
        shape = tuple(image)
    if image is not None and math.prod(shape) != math.prod(image):
        raise FormatError(name, f"parameters for {image}", f"{shape}", "mend the file")
    values = _Values(name, given, shape, dt_s)
    if written_by == "norse":
        values.mend_norse(kind)
    values.check_times()
    op, arrays = _OPS[kind](values)
    port, sends = ("s", BINARY) if op.theta != math.inf else ("v", DENSE)
    return op, arrays, port, sends, shape


_ROLES = (*TIMES, "r", "v_leak", "v_threshold", "v_reset", "w_in")


class _Values:
    """A neuron's parameters; times in steps, in the type of the file: 4e-4 / 1e-4 is 4 in single precision."""

    def __init__(self, name, given, shape, dt_s):
        self.name, self.shape, self.dt_s = name, shape, dt_s
        self.given = {k: np.asarray(a, np.result_type(a.dtype, np.float32)) for k, a in given.items()}
        if any(not np.isfinite(a).all() for k, a in self.given.items() if k not in TIMES):
            raise FormatError(name, "finite parameters", "others", "mend the file")
        for k in TIMES:
            if k in self.given:
                self.given[k] = self.given[k] / self.given[k].dtype.type(dt_s)

    def check_times(self):
        """Refuse a time constant that is shorter than a step: it would leap beyond what it leaks to."""
        for k in TIMES:
            if k in self.given and not (self.given[k] >= 1 - NEAR).all():
                got = f"{self.given[k].min():.3g} steps of {self.dt_s:g} s"
                remedy = "give the dt of its writer; Norse's to_nir multiplies times by dt: --written-by norse"
                raise FormatError(f"{self.name}.{k}", "at least one step", got, remedy)

    def mend_norse(self, kind):
        """Norse's `to_nir`: dt / tau_mem_inv for 1 / tau_mem_inv; the synapse's gain left out; IF that adds r x."""
        for k in TIMES:
            if k in self.given:
                self.given[k] = self.given[k] / self.given[k].dtype.type(self.dt_s)
        if kind == "CubaLIF":
            self.given["w_in"] = self.given["tau_syn"]
        if kind == "IF":
            self.given["r"] = np.full_like(self.given["r"], 1 / self.dt_s)

    def all(self, role) -> np.ndarray:
        return np.broadcast_to(self.given[role], self.shape if self.given[role].size > 1 else (1,))

    def one(self, role) -> float:
        """The one value of all units."""
        values = np.unique(self.given[role])
        if values.size != 1:
            got = f"{values.size} values"
            raise UnsupportedError(f"{self.name}.{role}", "one value for all units", got, "split the layer")
        return float(values[0])


def _near(value, wanted) -> bool:
    return bool(np.allclose(value, wanted, rtol=NEAR, atol=0))


def _lif(p: _Values):
    reset, leak = p.one("v_reset"), p.one("v_leak")
    tau, r = p.all("tau"), p.all("r")
    if reset == leak and (_near(r, 1) or _near(r, tau)):
        given = {"tau": tau, "theta": p.all("v_threshold")}
        arrays = {role: a for role, a in given.items() if np.unique(a).size > 1}
        single = {role: float(a.reshape(-1)[0]) for role, a in given.items() if role not in arrays}
        decay_input = _near(r, 1)
        return LIFCell(**single, v_reset=reset, decay_input=decay_input, fire=">"), arrays
    tau = p.one("tau")
    gain = 1.0 if _near(p.one("r"), tau) else p.one("r") / tau
    return CubaLIFCell(0.0, 1 - 1 / tau, gain, p.one("v_threshold") - leak, reset - leak), {}


def _if(p: _Values):
    gain, reset = p.one("r") * p.dt_s, p.one("v_reset")
    if _near(gain, 1):
        return LIFCell(math.inf, p.one("v_threshold"), reset, decay_input=False, fire=">"), {}
    # nothing leaks, so that v is counted from v_reset, where it begins too
    return CubaLIFCell(0.0, 1.0, gain, p.one("v_threshold") - reset, 0.0), {}


def _cuba(p: _Values) -> tuple[float, float, float]:
    """alpha, beta, gain: i counts in units of the input, so that its own gain joins r's."""
    tau, tau_syn = p.one("tau_mem"), p.one("tau_syn")
    gain = p.one("r") / tau * p.one("w_in") / tau_syn
    return 1 - 1 / tau_syn, 1 - 1 / tau, 1.0 if _near(gain, 1) else gain


def _cubalif(p: _Values):
    leak = p.one("v_leak")
    return CubaLIFCell(*_cuba(p), p.one("v_threshold") - leak, p.one("v_reset") - leak), {}


def _never_fires(p: _Values, alpha: float, beta: float, gain: float):
    if p.one("v_leak"):
        raise UnsupportedError(f"{p.name}.v_leak", "0", str(p.one("v_leak")), "add it to what reads the membrane")
    return CubaLIFCell(alpha, beta, gain, math.inf, 0.0, "never"), {}


def _li(p: _Values):
    tau = p.one("tau")
    return _never_fires(p, 0.0, 1 - 1 / tau, 1.0 if _near(p.one("r"), tau) else p.one("r") / tau)


def _cubali(p: _Values):
    return _never_fires(p, *_cuba(p))


_OPS = {"LIF": _lif, "IF": _if, "CubaLIF": _cubalif, "LI": _li, "CubaLI": _cubali}
