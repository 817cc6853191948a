"""Surrogate gradients as frozen values.

A spike is the step function of u = v - theta; its derivative is replaced by `slope(u)` in the backward pass.
`relaxed` is the smooth function whose derivative is `slope`: with it in place of the step, a network is
differentiable in the ordinary sense and `torch.autograd.gradcheck` can judge its gradients.

Survey: Neftci, Mostafa, Zenke, "Surrogate gradient learning in spiking neural networks", IEEE SPM 36(6), 2019.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rheobase.spiking.errors import ConfigError

FIRE_RULES = (">", ">=")


class _Spike(torch.autograd.Function):
    """Forward: the step function. Backward: the surrogate's slope."""

    @staticmethod
    def forward(ctx, u, surrogate, fire):
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u > 0 if fire == ">" else u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.slope(u), None, None


class _Transformed(_Spike):
    """The same in the form that torch.func's transforms ask for, whose call takes torch four times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u, surrogate, fire):
        return (u > 0 if fire == ">" else u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, ctx.surrogate, _ = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)


class _BothWays(_Transformed):
    """With a derivative forward too, for jvp; torch.compile takes no such function."""

    @staticmethod
    def jvp(ctx, tangent, *_):
        (u,) = ctx.saved_tensors
        return tangent * ctx.surrogate.slope(u)


def _form() -> type[_Spike]:
    if not torch._C._are_functorch_transforms_active():
        return _Spike
    return _Transformed if torch.compiler.is_compiling() else _BothWays


@dataclass(frozen=True)
class Surrogate:
    """Base of all surrogates: `slope` and `relaxed` are what one defines, and slope = d relaxed / du.

    raises  ConfigError: a setting that is negative or not finite, or an inverse width of 0
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (0 <= value < math.inf and (value or field.name != "eps")):
                where, least = f"{type(self).__name__} {field.name}", "above" if field.name == "eps" else "of at least"
                raise ConfigError(where, f"a finite number {least} 0", str(value), "mend it")

    def of_numbers(self) -> bool:
        """Whether all settings are numbers, which a kernel that knows this surrogate can be given."""
        return all(isinstance(getattr(self, field.name), int | float) for field in dataclasses.fields(self))

    def slope(self, u: Tensor) -> Tensor:
        """The derivative used in the backward pass, of the shape of u or one that broadcasts to it."""
        raise NotImplementedError(f"{type(self).__name__} defines no slope")

    def slopes(self, u: Tensor) -> Tensor:
        """`slope` as a kernel reads it: a number for each of u, of its type, side by side."""
        return torch.as_tensor(self.slope(u), dtype=u.dtype, device=u.device).expand(u.shape).contiguous()

    def relaxed(self, u: Tensor) -> Tensor:
        """The smooth stand-in of the step function, of the shape of u, built of differentiable torch functions."""
        raise NotImplementedError(f"{type(self).__name__} defines no relaxed form")

    def spike(self, u: Tensor, fire: str = ">") -> Tensor:
        """s = [u > 0] or [u >= 0], of the type of u, with `slope(u)` as its gradient.

        u     distance of the membrane from the threshold, any shape
        fire  ">" fires above the threshold, ">=" at it
        """
        if fire not in FIRE_RULES:
            raise ConfigError("fire", "'>' or '>='", repr(fire), "name the firing rule")
        return _form().apply(u, self, fire)


@dataclass(frozen=True)
class Relaxed(Surrogate):
    """Runs a neuron in its relaxed form: `spike` is the inner surrogate's `relaxed`. For gradcheck."""

    inner: Surrogate

    def slope(self, u):
        return self.inner.slope(u)

    def relaxed(self, u):
        return self.inner.relaxed(u)

    def spike(self, u, fire=">"):
        return self.inner.relaxed(u)


@dataclass(frozen=True)
class ATan(Surrogate):
    """slope = (alpha/2) / (1 + (pi alpha u / 2)^2),  relaxed = 1/2 + atan(pi alpha u / 2) / pi.

    Source: Fang et al., "Incorporating learnable membrane time constant", ICCV 2021; SpikeGPT uses alpha = 2.
    """

    alpha: float = 2.0

    def slope(self, u):
        return (self.alpha / 2) / (1 + (math.pi / 2 * self.alpha * u) ** 2)

    def relaxed(self, u):
        return 0.5 + torch.atan(math.pi / 2 * self.alpha * u) / math.pi


@dataclass(frozen=True)
class Triangle(Surrogate):
    """slope = gamma max(0, 1 - eps |u|); relaxed is its integral, 0 left of -1/eps and gamma/eps right of 1/eps.

    gamma  height of the slope at the threshold
    eps    inverse half-width of the window (the reference's `pseudo_derivative_support`)

    Source: Bellec et al., "Long short-term memory and learning-to-learn", NeurIPS 2018; EGRU, ICLR 2023.
    """

    gamma: float = 0.7
    eps: float = 1.0

    def slope(self, u):
        return self.gamma * torch.clamp(1 - self.eps * u.abs(), min=0)

    def relaxed(self, u):
        w = torch.clamp(self.eps * u, -1, 1)
        return self.gamma / self.eps * (0.5 + w - 0.5 * w * w.abs())


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """relaxed = sigmoid(alpha u),  slope = alpha sigmoid(alpha u) (1 - sigmoid(alpha u)).

    Source: Zenke and Vogels, Neural Computation 33(4), 2021.
    """

    alpha: float = 4.0

    def slope(self, u):
        s = torch.sigmoid(self.alpha * u)
        return self.alpha * s * (1 - s)

    def relaxed(self, u):
        return torch.sigmoid(self.alpha * u)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """slope = 1 / (1 + k |u|)^2,  relaxed = 1/2 + u / (1 + k |u|).

    Source: Zenke and Ganguli, "SuperSpike", Neural Computation 30(6), 2018. As there, the slope at 0 is 1 for
    every k, so relaxed runs from 1/2 - 1/k to 1/2 + 1/k.
    """

    k: float = 25.0

    def slope(self, u):
        return 1 / (1 + self.k * u.abs()) ** 2

    def relaxed(self, u):
        return 0.5 + u / (1 + self.k * u.abs())


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """slope = 1,  relaxed = u: the gradient passes as if the spike were the membrane itself.

    Source: Bengio, Leonard, Courville, arXiv 1308.3432.
    """

    def slope(self, u):
        return torch.ones_like(u)

    def relaxed(self, u):
        return u.clone()


IN_KERNELS = ATan, Triangle, Sigmoid, FastSigmoid, StraightThrough
"""Those whose slopes the kernels compute, numbered from 1 in `ops/native/lif.c`"""
