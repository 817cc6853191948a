"""RWKV-4's layers: the token shift, the time mix and the channel mix, each with its state given and returned.

B batch, T steps, D channels.
"""

import math

import torch
from torch import Tensor, nn

from rheobase.spiking.errors import ConfigError
from rheobase.spiking.ops import WKVState, wkv
from rheobase.spiking.tally import GRADED, mark


def token_shift(x_BTD: Tensor, last_BD: Tensor) -> Tensor:
    """The sequence one token later, [B, T, D]: `last_BD` [B, D] first, the last token left out.

    What is to be carried to the next call is x_BTD[:, -1].
    """
    if x_BTD.shape[1] == 0:
        return x_BTD
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # the same of parts that a compiler fuses and runs again, where of `cat` it would keep the result
        first_T1 = torch.arange(x_BTD.shape[1], device=x_BTD.device)[:, None] == 0
        return torch.where(first_T1, last_BD[:, None], x_BTD.roll(1, 1))
    return torch.cat([last_BD[:, None], x_BTD[:, :-1]], 1)


def mix(x_BTD: Tensor, before_BTD: Tensor, share_11D: Tensor) -> Tensor:
    """x share + before (1 - share), channel by channel."""
    return x_BTD * share_11D + before_BTD * (1 - share_11D)


class TimeMix(nn.Module):
    """What RWKV-4 has for attention: the running average `wkv` of values, behind a gate.

        x_c = mix_c(a, before)    c in k, v, r
        y = W_o (sigmoid(W_r x_r) wkv(W_k x_k, W_v x_v))

    d      channels D
    layer  its block's number, from 0, and `depth` the number of blocks, on which its decays and mixes start
    kernels  an attribute: the form that `wkv` runs in

    Source: Peng et al., arXiv 2305.13048, equations 11 to 15; its start as in RWKV-4's code, which SpikeGPT takes over.

    raises  ConfigError: no channels, or no such layer
    """

    kernels = "auto"

    def __init__(self, d: int, layer: int = 0, depth: int = 1):
        super().__init__()
        _check(type(self).__name__, d, layer, depth)
        ratio, rest = layer / max(depth - 1, 1), 1 - layer / depth
        h = torch.arange(d)
        self.time_decay = nn.Parameter(-5 + 8 * (h / max(d - 1, 1)) ** (0.7 + 1.3 * ratio))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((h + 1) % 3 - 1).float())
        share = (h / d)[None, None]
        self.time_mix_k = nn.Parameter(share**rest)
        self.time_mix_v = nn.Parameter(share**rest + 0.3 * ratio)
        self.time_mix_r = nn.Parameter(share ** (0.5 * rest))
        self.key, self.value, self.receptance, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, a: Tensor, before: Tensor, state: WKVState | None = None) -> tuple[Tensor, WKVState]:
        """a, and `token_shift` of it, [B, T, D] -> (y [B, T, D], state of the average); none is empty sums."""
        k = self.key(mix(a, before, self.time_mix_k))
        v = self.value(mix(a, before, self.time_mix_v))
        r = self.receptance(mix(a, before, self.time_mix_r))
        y, state = wkv(self.time_decay, self.time_first, k, v, state, gate=r, kernels=self.kernels)
        return self.output(y), state


class ChannelMix(nn.Module):
    """What RWKV-4 has for a feed-forward layer, 4 D wide, behind a gate.

        x_c = mix_c(a, before)    c in k, r
        y = sigmoid(W_r x_r) (W_v relu(W_k x_k)^2)

    d      channels D
    layer  its block's number, from 0, and `depth` the number of blocks, on which its mixes start

    Source: Peng et al., arXiv 2305.13048, equations 16 to 18; its start as in RWKV-4's code, which SpikeGPT takes over.

    raises  ConfigError: no channels, or no such layer
    """

    def __init__(self, d: int, layer: int = 0, depth: int = 1):
        super().__init__()
        _check(type(self).__name__, d, layer, depth)
        share = (torch.arange(d) / d)[None, None] ** (1 - layer / depth)
        self.time_mix_k, self.time_mix_r = nn.Parameter(share), nn.Parameter(share.clone())
        self.key = nn.Linear(d, 4 * d, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(4 * d, d, bias=False)

    def forward(self, a: Tensor, before: Tensor) -> Tensor:
        """a, and `token_shift` of it, [B, T, D] -> y [B, T, D]."""
        k = torch.relu(self.key(mix(a, before, self.time_mix_k)))
        k = mark(k * k, GRADED)  # and not k ** 2, for which autocast would make float32 of it
        r = torch.sigmoid(self.receptance(mix(a, before, self.time_mix_r)))
        return r * self.value(k)


def _check(name: str, d: int, layer: int, depth: int) -> None:
    if d < 1 or not 0 <= layer < depth:
        raise ConfigError(
            name, "d of 1 or more, and a layer from 0 to below depth", f"{d}, {layer}, {depth}", "mend it"
        )
