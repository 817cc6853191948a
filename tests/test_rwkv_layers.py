"""RWKV-4's layers by themselves: the equations, sequence = fold of step at any cut, gradients to what is carried."""

import pytest
import torch

from rheobase.spiking import ChannelMix, TimeMix, token_shift
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.ops import WKVState

D = 6


def inputs(seed=0, steps=9):
    torch.manual_seed(seed)
    x, last = torch.randn(2, steps, D, dtype=torch.float64), torch.randn(2, D, dtype=torch.float64)
    state = WKVState(*(torch.randn(2, D, dtype=torch.float64) for _ in range(3)))
    return x, last, state._replace(q=state.q.abs() + 0.1)


def test_the_layers_compute_their_equations():
    x, last, _ = inputs()
    torch.manual_seed(1)
    time, channel = TimeMix(D, 1, 3).double(), ChannelMix(D, 1, 3).double()
    wanted_time, wanted_channel = [], []
    w, u = -time.time_decay.exp(), time.time_first
    top = below = torch.zeros(2, D, dtype=torch.float64)
    before = last
    for t in range(x.shape[1]):
        now = x[:, t]

        def mixed(layer, name, now=now, before=before):
            share = getattr(layer, f"time_mix_{name}")[0, 0]
            return now * share + before * (1 - share)

        k, v, r = (getattr(time, p).weight @ mixed(time, p[0]).T for p in ("key", "value", "receptance"))
        k, v, r = k.T, v.T, r.T
        y = (top + (u + k).exp() * v) / (below + (u + k).exp())
        top, below = w.exp() * top + k.exp() * v, w.exp() * below + k.exp()
        wanted_time.append((r.sigmoid() * y) @ time.output.weight.T)
        hidden = (mixed(channel, "k") @ channel.key.weight.T).clamp(min=0) ** 2
        gate = (mixed(channel, "r") @ channel.receptance.weight.T).sigmoid()
        wanted_channel.append(gate * (hidden @ channel.value.weight.T))
        before = now
    shifted = token_shift(x, last)
    assert torch.allclose(time(x, shifted)[0], torch.stack(wanted_time, 1), atol=1e-12, rtol=0)
    assert torch.allclose(channel(x, shifted), torch.stack(wanted_channel, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_a_sequence_may_be_cut_anywhere(cut):
    x, last, state = inputs()
    torch.manual_seed(1)
    time = TimeMix(D).double()
    whole, end = time(x, token_shift(x, last), state)
    first, middle = time(x[:, :cut], token_shift(x[:, :cut], last), state)
    carried = x[:, cut - 1] if cut else last
    second, after = time(x[:, cut:], token_shift(x[:, cut:], carried), middle)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12, rtol=0)
    assert all(torch.allclose(a, b, atol=1e-12, rtol=0) for a, b in zip(after, end, strict=True))


def test_gradients_reach_what_is_carried():
    x, last, state = inputs(steps=3)
    time, channel = TimeMix(D, 2, 7).double(), ChannelMix(D, 2, 7).double()
    leaves = [tensor.requires_grad_() for tensor in (x, last, *state)]

    def both(x, last, *state):
        before = token_shift(x, last)
        return time(x, before, WKVState(*state))[0], channel(x, before)

    assert torch.autograd.gradcheck(both, leaves)


@pytest.mark.parametrize("sizes", [(0,), (4, 2), (4, 5, 3), (4, -1, 3), (4, 0, 0)])
@pytest.mark.parametrize("layer", [TimeMix, ChannelMix])
def test_no_such_layer(layer, sizes):
    with pytest.raises(ConfigError, match="Mix: expected d of 1 or more, and a layer from 0 to below depth, got"):
        layer(*sizes)


def test_one_channel_one_block_no_tokens():
    x = torch.zeros(2, 0, 1)
    y, state = TimeMix(1)(x, token_shift(x, torch.zeros(2, 1)))
    assert y.shape == (2, 0, 1) and state.p.shape == (2, 1) and ChannelMix(1)(x, x).shape == (2, 0, 1)
