"""Prefill and decode apart: a prompt's tokens counted in one call, each further token in a call of its own."""

from torch import Tensor, nn

from rheobase.backends.counting.dispatch import count
from rheobase.spiking.errors import ConfigError, ShapeError
from rheobase.spiking.tally import Tally


def count_phases(model: nn.Module, tokens: Tensor, prefill: int, *, strict: bool = False) -> tuple[Tally, Tally]:
    """(prefill, decode): the first tokens counted in one call, the rest one call a token, the state carried.

    model    takes (tokens, state) and returns (logits, state), as the models here do
    tokens   [B, T]
    prefill  tokens of the first call, 1 to T
    strict   as in `count`
    returns  two tallies, for B x prefill and B x (T - prefill) tokens
    raises   ConfigError: no such stretch;  ShapeError: a model that returns no state;  UnsupportedError: as in `count`
    """
    steps = tokens.shape[1]
    if not 1 <= prefill <= steps:
        raise ConfigError(
            "prefill", f"1 to {steps} tokens", str(prefill), "count more tokens, or fewer of them at once"
        )
    carried = [None]

    def keep(module, inputs, outputs):
        if not (isinstance(outputs, tuple) and len(outputs) > 1):
            remedy = "give a model that carries its state, or count all tokens at once"
            raise ShapeError("count_phases model", "(logits, state)", type(outputs).__name__, remedy)
        carried[0] = outputs[1]

    def counted(part: Tensor) -> Tally:
        return count(model, part, carried[0], strict=strict)

    hook = model.register_forward_hook(keep)
    try:
        first = counted(tokens[:, :prefill])
        return first, sum((counted(tokens[:, t : t + 1]) for t in range(prefill, steps)), Tally())
    finally:
        hook.remove()
