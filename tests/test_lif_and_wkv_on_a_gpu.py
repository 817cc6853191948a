"""LIF and WKV on a CUDA device, where there is one: Triton there against the reference on the CPU."""

import pytest
import torch

from rheobase.spiking import ATan
from rheobase.spiking.ops import WKVState, lif, wkv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = "cuda"
SIZES = [(3, 39, 5), (4, 64, 768), (70_000, 1, 1)]
"""few, since each is compiled"""


def run(op, tensors, kernels, device, dtype):
    """Outputs of an op of these tensors, and gradients of a weighted sum of them."""
    leaves = [t.to(device, dtype).requires_grad_() for t in tensors]
    outputs = op(*leaves, kernels=kernels)
    weights = (torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) for out in outputs)
    loss = sum((w.to(out) * out).sum() for w, out in zip(weights, outputs, strict=True))
    return [t.detach().cpu().double() for t in (*outputs, *torch.autograd.grad(loss, leaves))]


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def largest_error(got, wanted):
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("learnt", "v_reset"), [(False, 0.0), (True, None)])
def test_lif(size, learnt, v_reset):
    """tau 3: a division that torch rounds as the kernel does on a CPU alone. Spikes are the same in float32 too."""
    batch, steps, units = size
    ones = [torch.full((units,), number) for number in (3.0, 0.75)] if learnt else []

    def op(x, v, tau=3.0, theta=0.75, *, kernels):
        kind = {"v_reset": v_reset, "surrogate": ATan(2.0), "with_h": True, "kernels": kernels}
        return lif(x, v, tau=tau, theta=theta, **kind)

    tensors = [2 * t for t in drawn(size, (batch, units))] + ones
    wanted, got = (run(op, tensors, *where, torch.float32) for where in (("reference", "cpu"), ("triton", DEVICE)))
    assert torch.equal(got[0], wanted[0]) and wanted[0].any()
    assert largest_error(got, wanted) < 1e-4


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_wkv(size, gated):
    batch, steps, channels = size

    def op(decay, first, k, v, p, q, o, *gate, kernels):
        y, state = wkv(decay, first, k, v, WKVState(p, q, o), gate=gate[0] if gate else None, kernels=kernels)
        return y, *state

    tensors = drawn((channels,), (channels,), size, size, *[(batch, channels)] * 3, *[size] * gated)
    tensors[5] = tensors[5].abs() + 0.5
    wanted = run(op, tensors, "reference", "cpu", torch.float64)
    assert largest_error(run(op, tensors, "triton", DEVICE, torch.float32), wanted) < 1e-4
