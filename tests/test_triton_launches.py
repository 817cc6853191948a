"""Triton's own way from a call to a launch, compiled at the size that a kernel has: what it makes of the arguments, and
what the compiled code computes, run in software."""

import pytest
import torch
from test_egru_kernels import assert_same, case
from test_egru_kernels import run as run_egru
from test_kernels import TYPES, assert_close, poisoned, run_wkv, wkv_case  # noqa: F401

from rheobase.spiking import ATan, Triangle
from rheobase.spiking.ops import lif

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device launches them itself"),
    pytest.mark.usefixtures("poisoned"),
]
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


@pytest.fixture(autouse=True)
def launched(tmp_path, monkeypatch):
    from software_gpu import software_gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with software_gpu() as launches:
        yield launches


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def both_lifs(kind, steps, learns):
    """(outputs, gradients) of a call by the reference and by Triton, in float32 or wider of x in a type."""
    wide, size = torch.promote_types(kind, torch.float32), (2, steps, 33)
    x, v, *weights = drawn(size, (2, 33), size, size if learns else (2, 33), size)
    numbers = {"tau": torch.linspace(1.5, 4, 33), "theta": torch.linspace(0.5, 1, 33)} if learns else {}
    settings = {"v_reset": None if learns else 0.0, "ternary": learns, "detach_reset": not learns}
    settings |= {"surrogate": ATan(2.0), "with_h": learns, "whole": learns}
    results = []
    for kernels in ("reference", "triton"):
        leaves = [(2 * x).to(kind), *(t.to(wide) for t in (v, *numbers.values()))]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        outputs = lif(*leaves[:2], **dict(zip(numbers, leaves[2:], strict=True)), **settings, kernels=kernels)
        loss = sum((w.to(part) * part).sum() for w, part in zip(weights, outputs, strict=False))
        results.append((outputs, torch.autograd.grad(loss, leaves)))
    return results


@pytest.mark.parametrize(("kind", "steps", "learns"), [(F32, 1, False), (BF16, 64, False), (F64, 39, True)], ids=str)
def test_lif(kind, steps, learns, launched):
    """Spikes, membranes and h to the last bit. What is read and written, by hand: each sequence once, and a row a batch
    of the first and last membrane and of one in 32."""
    (wanted, right), (got, gradients) = both_lifs(kind, steps, learns)
    assert [launch.name for launch in launched] == ["_forward", "_backward"]
    row, sequence = 2 * 33 * 4, 2 * 33 * steps * kind.itemsize
    kept = row * -(-steps // 32)
    if not learns:
        assert launched[0][1:] == (sequence + row, sequence + kept + row)
        assert launched[1][1:] == (2 * sequence + kept + row, sequence + row)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)) and wanted[0].any()
    for a, b in zip(gradients, right, strict=True):
        assert_close(a, b, 2.0**-8 if a.dtype == BF16 else TYPES[b.dtype])


@pytest.mark.parametrize(("kind", "steps", "more"), [(F32, 1, False), (BF16, 64, False), (F64, 39, True)], ids=str)
def test_wkv(kind, steps, more, launched):
    """Against the reference in float64. What is read and written, by hand: each sequence once, and rows of the two
    parameters, of the first and last state, and of a state in 16."""
    inputs, weights = wkv_case(0, (2, steps, 33), 1.0, True)
    inputs += [inputs[2].flip(2)] * more
    wide = torch.promote_types(kind, torch.float32)
    given = [t.to(kind if i in (2, 3, 7) else wide) for i, t in enumerate(inputs)]
    weights = [weights[0].to(kind), *(w.to(wide) for w in weights[1:])]
    wanted = run_wkv([t.double() for t in given], [w.double() for w in weights], "reference")
    got = run_wkv(given, weights, "triton")
    assert [launch.name for launch in launched] == ["_forward", "_backward"]
    row, sequence = 2 * 33 * 4, 2 * 33 * steps * kind.itemsize
    kept = 3 * row * -(-steps // 16)
    if not more:  # the way back reads no maximum of a state, but its gradient
        assert launched[0][1:] == (2 * sequence + 5 * row, sequence + kept + 3 * row)
        assert launched[1][1:] == (3 * sequence + kept + 9 * row, 2 * sequence + 5 * row)
    for a, b in zip((*got[0], *got[1]), (*wanted[0], *wanted[1]), strict=True):
        assert_close(a.double(), b, {F64: 1e-10, F32: 1e-5, BF16: 2.0**-7}[a.dtype])


@pytest.mark.parametrize(
    ("kind", "steps", "settings"),
    [(F32, 1, {}), (BF16, 3, {"zoneout": 0.3}), (F64, 3, {"zoneout": 0.3, "training": True})],
    ids=str,
)
def test_egru(kind, steps, settings, launched):
    """Steps after the first are launched with addresses."""
    tensors, weights = case((2, steps, 5))
    settings = settings | {"surrogate": Triangle(3.6, 3.6)}
    wanted = run_egru(tensors, weights, "reference", **settings)
    got = run_egru([t.to(kind) for t in tensors], [w.to(kind) for w in weights], "triton", **settings)
    assert [launch.name for launch in launched] == ["_forward"] * steps + ["_backward"] * steps
    assert_same(got, wanted, {F64: 1e-10, F32: 2e-5, BF16: 0.1}[kind])


@triton.jit
def fires_late(h, theta, STRICT: triton.language.constexpr, TERNARY: triton.language.constexpr):
    return (h > theta).to(h.dtype), h * 0


@pytest.mark.parametrize("wrong", [False, True])
def test_a_planted_wrong_kernel_is_caught(wrong, monkeypatch):
    """It is silent at its threshold."""
    from rheobase.spiking.ops.lif import triton as kernels

    if wrong:
        monkeypatch.setattr(kernels, "_fired", fires_late)
    x = torch.full((1, 3, 5), 2.0)
    spikes = [lif(x, whole=False, kernels=name)[0] for name in ("triton", "reference")]
    assert spikes[1].all() and torch.equal(*spikes) != wrong


def test_a_write_outside_of_the_tensors_is_caught(monkeypatch):
    from rheobase.spiking.ops.lif import triton as kernels

    outputs = kernels._outputs
    monkeypatch.setattr(kernels, "_outputs", lambda x, *settings: outputs(x[:, 1:], *settings))
    with pytest.raises(IndexError, match="an address lies in none of the tensors"):
        lif(torch.ones(1, 3, 5), whole=False, kernels="triton")


PTX = """
.visible .entry by_hand(.param .u64 .ptr .global .align 1 by_hand_param_0, .param .u64 by_hand_param_1)
.reqntid 32
{
    .reg .pred %p<3>; .reg .b16 %rs<3>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [by_hand_param_0];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %tid.x;
    shl.b32 %r3, %r1, 5;
    add.s32 %r3, %r3, %r2; // of all programs
    mov.b32 %r4, 0;
    mov.b32 %r5, %r3;
$L__BB0_1:
    setp.eq.b32 %p1, %r5, 0;
    @%p1 bra $L__BB0_2;
    add.s32 %r4, %r4, %r3;
    add.s32 %r5, %r5, -1;
    bra.uni $L__BB0_1;
$L__BB0_2:
    mad.wide.u32 %rd2, %r3, 8, %rd1;
    st.global.b32 [ %rd2 + 0 ], { %r4 };
    ld.global.b32 %r6, [%rd2+4];
    cvt.rn.bf16.f32 %rs1, %r6;
    cvt.f32.bf16 %r7, %rs1;
    @!%p1 ret;
    setp.lt.u32 %p2, %r3, 40;
    @%p2 st.global.b32 [ %rd2 + 4 ], { %r7 };
    ret;
}
"""


def test_each_thread_goes_its_own_way():
    """As often through a loop as its number says; numbers are rounded to bfloat16 as torch rounds them."""
    from ptx import Kernel
    from software_gpu import Memory

    values = torch.tensor([[0, 1.00390625 * 2.0 ** (i % 9) * (1 + i % 5 / 256)] for i in range(64)])
    numbers = values.clone()
    Kernel(PTX)((2, 1, 1), [values.data_ptr(), 0], Memory([(values.data_ptr(), values.nbytes)]))
    numbers[:40, 1] = numbers[:40, 1].bfloat16()
    assert torch.equal(values[:, 0].contiguous().view(torch.int32), torch.arange(64, dtype=torch.int32) ** 2)
    assert torch.equal(values[:, 1], numbers[:, 1])
