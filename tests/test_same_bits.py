"""The kernels in C give the same bits with every compiler on every machine: GCC and Clang, x86-64 and AArch64 were seen
to agree. What is not in C here are single operations, which IEEE 754 defines."""

import hashlib
import importlib
import itertools

import numpy as np
import pytest
import torch

from rheobase.backends.stream import Stream
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking.ops.lif.native import lif_backward, lif_forward
from rheobase.spiking.ops.native import Gather, library
from rheobase.spiking.ops.native.egru import egru_sequence
from rheobase.spiking.ops.wkv.native import wkv_backward, wkv_forward
from rheobase.spiking.surrogates import IN_KERNELS

pytestmark = pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")


def spread(dtype, *shape, scale=1.0):
    """Numbers from -scale to scale, exact, and nearer to 0 every third time."""
    at = torch.arange(int(np.prod(shape)))
    return (((at * 40503 % 65521 - 32760).double() / 32768) * scale / (1 + 255 * (at % 3 == 0))).to(dtype).view(shape)


def digest(arrays):
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def of_lif(dtype):
    x, v, tau = spread(dtype, 2, 37, 131, scale=3), spread(dtype, 2, 131), 2.5 + spread(dtype, 131)
    kinds = [0, 1, 1, 0, 0, 0, 0], [-0.25, 1, 0, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0, 1]
    for (reset, *flags), surrogate in itertools.product(kinds, range(1, 1 + len(IN_KERNELS))):
        yield from both_ways(x, v, tau, [reset, 0, 2, 0.5, *flags, 0, surrogate], True)


def both_ways(x, v, tau, settings, with_h):
    """LIF's spikes, last membranes, h if it is wanted and every 16th membrane, then its gradients."""
    given = x, v, tau, 0.5 + tau / 8
    outputs = lif_forward(*given, settings, False, with_h, True)
    yield from outputs
    h = outputs[2] if with_h else None
    yield from lif_backward(x, v, outputs[-1], *given[2:], None, None, x, h, None, v, settings)


def of_wkv(dtype):
    for scale in (0.5, 20):
        given = -spread(dtype, 131, scale=scale).abs(), spread(dtype, 131)
        k, v = spread(dtype, 2, 37, 131, scale=scale), spread(dtype, 2, 37, 131).flip(1)
        y, last, kept = wkv_forward(*given, k, v, spread(dtype, 2, 3, 131), True)
        yield from (y, last, *wkv_backward(*given, k, v, kept, y, last))


def of_egru(dtype):
    weight, bias = spread(dtype, 67, 201).numpy(), spread(dtype, 201).flip(0).numpy()
    state = [spread(dtype, 3, 67).numpy()] * 3
    thr = spread(dtype, 67, scale=0.25).abs().numpy()
    yield from egru_sequence(
        spread(dtype, 23, 3, 201, scale=4).numpy(), Gather(weight, bias), thr, state, zoneout=0.2, decay=0.9
    )[:4]


def of_streams(dtype):
    for model in (
        EGRULM(EGRULMConfig(embedding=24, layers=(33, 24), zoneout=0.2)),
        SpikeGPT(SpikeGPTConfig(embedding=24, depth=2, binary_embedding=False)),
    ):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(spread(dtype, *parameter.shape, scale="time_decay" not in name))
        yield Stream(model.to(dtype).eval().lower(), tables=False)(np.arange(36) * 7)


BITS = {
    of_lif: ("887748f2e0cef72b", "5d3a60a636a43f8a"),
    of_wkv: ("01f70f120a355ca0", "e2b41f2c99bd94e5"),
    of_egru: ("00c92c8ed06c3164", "1ba2d4112c070004"),
    of_streams: ("ffbac2694588c3ff", "0c57803c2019a861"),
}
"""function -> digests of what it gives in float32 and in float64"""


@pytest.mark.parametrize("kernel", BITS)
def test_every_machine_gives_the_same_bits(kernel):
    runs = [[np.asarray(array) for array in kernel(dtype)] for dtype in (torch.float32, torch.float64)]
    assert all(np.isfinite(array).all() for run in runs for array in run)
    assert tuple(map(digest, runs)) == BITS[kernel]


@pytest.mark.parametrize("units", [16, 80, 131, 192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_past_the_caches_is_the_same(units, dtype, monkeypatch):
    """Of SpikeGPT's neurons, snnTorch's, others that a compiler knows, and the rest; unwritten memory holds NaN."""
    monkeypatch.setattr(torch, "empty", lambda *shape, run=torch.empty, **given: run(*shape, **given).fill_(torch.nan))
    native = importlib.import_module("rheobase.spiking.ops.lif.native")
    kinds = [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1, 0], [-0.25, 1, 0, 1, 1, 1, 1]
    x, v, tau = spread(dtype, 3, 37, units, scale=3), spread(dtype, 3, units), 2.5 + spread(dtype, units)
    runs = []
    for least in (1 << 60, 0):
        monkeypatch.setattr(native, "PAST", least)
        ways = itertools.product(kinds, range(1, 1 + len(IN_KERNELS)), (False, True))
        runs.append([a for (reset, *flags), number, with_h in ways
                     for a in both_ways(x, v, tau, [reset, 0, 2, 0.5, *flags, 0, number], with_h)])  # fmt: skip
    assert all(map(torch.equal, *runs))
