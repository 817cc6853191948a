"""LIF over a sequence: `reference.py` in plain torch is the truth, `native.py` the same in C, `triton.py` for GPUs.

B batch, T steps, D units.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from rheobase.spiking.errors import ConfigError, ShapeError
from rheobase.spiking.ops.choice import OTHER, takes
from rheobase.spiking.ops.lif import native, reference
from rheobase.spiking.surrogates import FIRE_RULES, IN_KERNELS, ATan, Surrogate
from rheobase.spiking.tally import BINARY, TERNARY, announce, listens, mark, unseen, work


def lif(
    x_BTD: Tensor,
    v: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    theta: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    fire: str = ">=",
    detach_reset: bool = False,
    surrogate: Surrogate = ATan(),
    ternary: bool = False,
    with_h: bool = False,
    whole: bool = True,
    kernels: str = "auto",
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire neurons along the time axis of x.

        h_t = v + (x_t - (v - v_rest)) / tau      decay_input=True
        h_t = v - (v - v_rest) / tau + x_t        decay_input=False
        s_t = [h_t >= theta] or [h_t > theta]
        s_t = [h_t >= theta] - [h_t <= -theta]    ternary=True, or both strict
        v_t = h_t - |s_t| (h_t - v_reset)         hard reset, v_rest = v_reset
        v_t = h_t - s_t theta                     v_reset=None: reset by subtraction, v_rest = 0

    x_BTD         input current, in units of theta                                 [B, T, D]
    v             membrane before the first step, at rest if not given              [B, D]
    tau           time constant in steps, at least 1 (a number, or one a unit [D]; the reference takes [B, D] too)
    theta         threshold, likewise; above 0 where ternary
    detach_reset  True: no gradient flows through the reset's s_t
    ternary       True: units fire at -theta too, with a spike of -1; the surrogate's slope is taken at both
    with_h        True: h_BTD, the membrane before each step's reset, is returned as well
    whole         False: of the membranes, only that after the last step is returned [B, D], which spares memory
    kernels       which form runs (`ops/choice.py`): "auto", "reference", "native" (C) or "triton"; the environment
                  variable RHEOBASE_KERNELS goes before it
    returns       (s_BTD in {0, 1}, or {-1, 0, 1} where ternary, v_BTD the membrane after each step's reset, or
                  the last v_BD); the state to carry is v_BTD[:, -1]. Spikes and h are of x's type, membranes of the
                  widest given, float32 at least
    raises        ShapeError: x is not [B, T, D], v is not [B, D], or tau or theta cannot be read as [B, D];
                  ConfigError: no such firing rule or kernels, ternary at a number theta <= 0;
                  UnsupportedError: the form named cannot run this call

    Source: SpikeGPT's LIF is tau=2, theta=1, v_reset=0, decay_input=True, fire=">=", ATan(2); SNN texts write
    beta = 1 - 1/tau. Peers: snnTorch's `Leaky` is decay_input=False, fire=">", tau = 1/(1 - beta), and equals this
    only with reset_delay=False (by default it resets one step later) and, resetting by subtraction, only while v
    stays below 2 theta (beyond, it subtracts before it fires). Norse's `lif_feed_forward_step` is decay_input=True,
    fire=">", tau = 1/(dt tau_mem_inv), with the input through a synaptic current: with tau_syn_inv = 1/dt that
    current is the input itself.
    """
    if x_BTD.dim() != 3:
        raise ShapeError("lif", "x of shape [B, T, D]", f"{tuple(x_BTD.shape)}", "add the missing axis")
    if fire not in FIRE_RULES:
        raise ConfigError("lif fire", "'>' or '>='", repr(fire), "name the firing rule")
    if ternary and not isinstance(theta, Tensor) and not theta > 0:
        raise ConfigError("lif theta", "above 0, to fire at -theta too", f"{theta}", "give a threshold")
    batch, steps, units = x_BTD.shape
    parameters = [p for p in (tau, theta) if isinstance(p, Tensor)]
    given = [t for t in (x_BTD, v, *parameters) if t is not None]
    wide = functools.reduce(torch.promote_types, (t.dtype for t in given), torch.float32)
    if v is None:
        v = x_BTD.new_full((batch, units), 0.0 if v_reset is None else v_reset, dtype=wide)
    if wrong := [tuple(p.shape) for p in parameters if not _spreads(p.shape, (batch, units))]:
        raise ShapeError("lif tau, theta", f"a number, or shape ({units},)", f"{wrong[0]}", "give one number a unit")
    if v.shape != (batch, units):
        raise ShapeError("lif", f"v of shape {(batch, units)}", f"{tuple(v.shape)}", "start a new state")
    v = v.to(wide)
    settings = {
        "tau": tau,
        "theta": theta,
        "v_reset": v_reset,
        "decay_input": decay_input,
        "fire": fire,
        "detach_reset": detach_reset,
        "surrogate": surrogate,
        "ternary": ternary,
    }
    form = takes("lif", kernels, [x_BTD, v, *parameters], _obstacles(surrogate, parameters, units))
    if form == "reference":
        s_BTD, v_BTD, h_BTD = reference.lif(x_BTD.to(wide), v, **settings)
        if not whole:
            v_BTD = v_BTD[:, -1].clone() if steps else v  # of a view every membrane would stay
        run = s_BTD.to(x_BTD.dtype), v_BTD, h_BTD.to(x_BTD.dtype)
    else:
        if form == "triton":
            from rheobase.spiking.ops.lif import triton as kernel
        else:
            kernel = native
        with unseen():
            run = kernel.lif(x_BTD, v, with_h=with_h, whole=whole, **settings)
        if listens():
            _tell(x_BTD, run[0], parameters, v_reset, ternary)
    return run if with_h else run[:2]


def _spreads(shape: Sequence[int], over: tuple[int, int]) -> bool:
    """Whether a tensor of one shape can be read as one of another."""
    return len(shape) <= 2 and all(n in (1, m) for n, m in zip(reversed(shape), reversed(over), strict=False))


def _obstacles(surrogate: Surrogate, parameters: list[Tensor], units: int) -> dict[str, tuple[str, str, str] | None]:
    """form -> what keeps a call from it, as of `takes`."""
    obstacle, unknown, name = None, None, type(surrogate).__name__
    if type(surrogate).spike is not Surrogate.spike:
        obstacle = "a surrogate whose spike is the step", name, OTHER
    elif any(p.shape not in ((), (units,)) for p in parameters):
        obstacle = f"tau and theta of shape ({units},)", "another shape", OTHER
    if type(surrogate) not in IN_KERNELS:
        unknown = " or ".join(known.__name__ for known in IN_KERNELS), name, OTHER
    elif not surrogate.of_numbers():
        unknown = "a surrogate of numbers", f"{name} of tensors", OTHER
    return {"native": obstacle, "triton": obstacle or unknown}


def _tell(x_BTD: Tensor, s_BTD: Tensor, parameters: list[Tensor], v_reset: float | None, ternary: bool) -> None:
    """What the reference's operators do, for a counter that does not see them."""
    n, size = x_BTD.numel(), x_BTD.element_size()
    learnt = sum(p.numel() > 1 for p in parameters)
    work(
        products=n,
        adds=(7 if ternary else 4) * n + (2 * n if v_reset else 0),
        comparisons=(2 if ternary else 1) * n,
        transcendentals={"division": n},
        weight_bytes=learnt * n * size,
        activation_bytes=2 * n * size,
    )
    mark(s_BTD, TERNARY if ternary else BINARY)
    announce(state_updates=x_BTD, cause=x_BTD)  # a membrane a unit and step, whether it was written or not
