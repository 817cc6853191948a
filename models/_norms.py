"""The norms of a residual stream before a token shift: LayerNorm, and one that training turns into constants.

B batch, T steps, D width.
"""

import torch
from torch import Tensor, nn

from rheobase.spiking.rwkv import token_shift

REMEMBER = 0.99
"""how much of the running statistics of a `StaticNorm` a training step keeps"""


class ShiftedNorm(nn.LayerNorm):
    """LayerNorm before a token shift, which carries normalised values, as the original's code does."""

    def shifted(self, x_BTD: Tensor, last_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(The normalised sequence, the same one token later, what to carry to the next call [B, D])."""
        a, kind = self(x_BTD), x_BTD.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind) and a.dtype != torch.float64:  # autocast leaves that
            a = a.to(torch.get_autocast_dtype(kind))  # the products' type: what mixes make is rounded to that anyway
        # the last step is copied: of a view all of a would stay
        return a, token_shift(a, last_BD.to(a.dtype)), a[:, -1].to(last_BD.dtype, copy=True)


class StaticNorm(nn.LayerNorm):
    """A norm on its way out: LayerNorm whose mean and deviation become two constants, running means over training.

        out = (1 - removed) LayerNorm(x) + removed ((x - mean) / deviation weight + bias)

    At removed = 1 it is linear in x, so that it folds into the mix or the product that reads it. A token shift
    carries x itself. After Heimersheim, "You can remove GPT2's LayerNorm by fine-tuning", arXiv 2409.13710; here
    both statistics are constants and the two forms are blended.
    """

    pooled = staticmethod(lambda mean: mean)
    """as of `Pretrained`"""

    def __init__(self, d: int):
        super().__init__(d)
        for name, value in (("mean", 0.0), ("deviation", 1.0), ("removed", 0.0), ("seen", 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self.settled: bool | None = None
        """whether it is gone, said beforehand for a program that is traced, which cannot ask a tensor"""
        self._known: dict[str, tuple[Tensor, int, float]] = {}

    @property
    def gone(self) -> bool:
        """Whether nothing of the norm is left."""
        return self._read("removed") == 1 if self.settled is None else self.settled

    def remove(self, part: float) -> None:
        """Set how much of the norm is gone."""
        self._write("removed", part)

    def _read(self, name: str) -> float:
        """The number in a buffer; what `_write` wrote is known here, so that a GPU is not waited for."""
        tensor = getattr(self, name)
        if tensor.is_inference():  # its changes are not counted
            return tensor.item()
        known, version, number = self._known.get(name, (None, 0, 0.0))
        if known is not tensor or version != tensor._version:
            number = tensor.item()
            self._known[name] = tensor, tensor._version, number
        return number

    @torch.no_grad()
    def _write(self, name: str, number: float) -> None:
        tensor = getattr(self, name).fill_(number)
        if not tensor.is_inference():
            self._known[name] = tensor, tensor._version, number

    def __getstate__(self):
        return super().__getstate__() | {"_known": {}}  # a copy's tensors count their changes anew

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """x [..., D] -> its norm; with the token before x [B, D], the norm of both, one step more."""
        self._watch(x)
        return self._blend(x if last is None else torch.cat([last[:, None], x], 1))

    def _blend(self, x: Tensor) -> Tensor:
        if self.gone:
            return self.scale() * x + self.offset()
        deviation = self.deviation.clone() if self.training else self.deviation  # which `_watch` writes over
        static = (x - self.mean) / deviation * self.weight + self.bias
        return (1 - self.removed) * super().forward(x) + self.removed * static

    def shifted(self, x_BTD: Tensor, last_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(The normalised sequence, the same one token later, what to carry to the next call [B, D])."""
        a = self(x_BTD, last_BD)
        return a[:, 1:], a[:, :-1], x_BTD[:, -1].clone()

    def scale(self) -> Tensor:
        """Factor of x at removed = 1 [D]."""
        return self.weight / self.deviation

    def offset(self) -> Tensor:
        """What is added at removed = 1 [D]."""
        return self.bias - self.mean * self.scale()

    @torch.no_grad()
    def _watch(self, x: Tensor) -> None:
        if not self.training or self.gone or not x.numel():
            return
        rows = x.flatten(0, -2)
        now = rows.mean(), (rows.var(-1, correction=0) + self.eps).sqrt().mean()
        for statistic, value in zip((self.mean, self.deviation), now, strict=True):
            statistic.lerp_(self.pooled(value).to(statistic.dtype), 1 - REMEMBER if self._read("seen") else 1.0)
        self._write("seen", 1.0)


NORMS = {"layer": ShiftedNorm, "static": StaticNorm}
"""The norms of the residual stream, by name"""
