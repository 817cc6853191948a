"""WKV in Triton's interpreter; `tests/test_triton.py` runs it with TRITON_INTERPRET=1."""

import importlib

import pytest
import torch
import triton
import triton.language as tl
from test_kernels import assert_close, run_wkv, wkv_case
from torch.utils.checkpoint import checkpoint

from rheobase.backends import count
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking.ops import WKVState, wkv
from rheobase.spiking.ops.native import library
from rheobase.spiking.ops.rows import bit
from rheobase.spiking.ops.wkv import triton as kernels

STEPS = 4
SIZES = [(1, 1, 1), (3, 7, 5), (1, STEPS, 32), (1, 23, 3), (2, STEPS + 1, 40), (0, 3, 2), (2, 0, 3)]


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """The interpreter runs the steps beyond the last too."""
    monkeypatch.setattr(kernels, "STEPS", STEPS)


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that is not written holds not-a-number."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def amid_nan(x):
    """The same values, with not-a-number in memory before and after."""
    room = torch.full((x.numel() + 200,), torch.nan, dtype=x.dtype)
    room[100:-100] = x.flatten()
    return room[100:-100].view(x.shape)


def check(inputs, weights, tolerances, floor=1e-13):
    """Outputs, last state and gradients against the reference in float64, each relative to its largest element.

    The interpreter cuts to bfloat16 where a GPU rounds.
    """
    wanted = run_wkv([x.double() for x in inputs], [w.double() for w in weights], "reference")
    got = run_wkv([amid_nan(x) for x in inputs], weights, "triton")
    for parts, right, tolerance in zip(got, wanted, tolerances, strict=True):
        for a, b in zip(parts, right, strict=True):
            most = 2.0**-7 if a.dtype == torch.bfloat16 else tolerance
            assert torch.allclose(a.double(), b, atol=floor, rtol=0) or not assert_close(a.double(), b, most)


@pytest.mark.parametrize(
    ("scale", "state_counts"), [(0.1, True), (1.0, False), (1.0, True), (50.0, True), (1e4, False)]
)
def test_it_is_its_reference(scale, state_counts):
    """float64 to rounding; float32, whose exponents up to 5 have an error of 1e-6, to 1e-5."""
    for seed, size in enumerate(SIZES):
        inputs, weights = wkv_case(seed, size, scale, state_counts)
        check(inputs, weights, (1e-12, 1e-10))
        if scale == 1 and state_counts:
            check([x.float() for x in inputs], [w.float() for w in weights], (1e-5, 1e-5), 1e-6)


def with_gate(inputs):
    return [*inputs, inputs[2].flip(2) / 2]


def test_a_gate_is_taken_along():
    for seed, size in enumerate(SIZES[:2]):
        inputs, weights = wkv_case(seed, size, 1.0, True)
        check(with_gate(inputs), weights, (1e-12, 1e-10))


def test_keys_and_values_in_bfloat16_with_a_state_in_float32():
    for seed, size in enumerate(SIZES):
        inputs, weights = wkv_case(seed, size, 1.0, True)
        inputs = with_gate(inputs) if seed % 2 else inputs
        types = [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, *[torch.float32] * 3, torch.bfloat16]
        types = types[: len(inputs)]
        inputs = [x.to(dtype) for x, dtype in zip(inputs, types, strict=True)]
        weights = [weights[0].bfloat16(), *(w.float() for w in weights[1:])]
        check(inputs, weights, (1e-5, 1e-5), 1e-6)
        (y, *state), gradients = run_wkv(inputs, weights, "triton")
        assert y.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in state)
        assert [g.dtype for g in gradients] == types


@pytest.mark.parametrize("cut", [0, 1, STEPS, 23])
def test_any_cut_changes_nothing(cut):
    inputs, weights = wkv_case(2, (2, 23, 3), 3.0, True)

    def in_two(w, u, k, v, *state):
        first, between = wkv(w, u, k[:, :cut], v[:, :cut], WKVState(*state), kernels="triton")
        second, last = wkv(w, u, k[:, cut:], v[:, cut:], between, kernels="triton")
        return torch.cat([first, second], 1), *last

    leaves = [x.requires_grad_() for x in inputs]
    outputs, wanted = run_wkv(inputs, weights, "triton")
    again = in_two(*leaves)
    assert all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))
    loss = sum((w * part).sum() for w, part in zip(weights, again, strict=True))
    for got, right in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        assert_close(got, right, 1e-12)


def test_any_strides_will_do_and_equal_runs_give_equal_bits():
    inputs, weights = wkv_case(4, (2, 7, 6), 1.0, True)
    wanted = run_wkv(inputs, weights, "triton")
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x.repeat(2)[:6] for x in inputs]
    strided[3] = inputs[3].flip(2).contiguous().flip(2).mT.contiguous().mT
    for parts, right in zip(run_wkv(strided, weights, "triton"), wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parts, right, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [2, 3])
def test_what_is_not_finite_is_passed_on(value, which):
    inputs, _ = wkv_case(0, (1, 5, 3), 1.0, False)
    inputs[which][0, 2, 1] = value
    runs = [wkv(*inputs[:4], WKVState(*inputs[4:]), kernels=name) for name in ("triton", "reference")]
    for a, b in zip(*((y, *end) for y, end in runs), strict=True):
        assert torch.allclose(a, b, equal_nan=True)


def test_it_keeps_little_for_its_backward_pass():
    leaves = [torch.randn(64, requires_grad=True) for _ in range(2)]
    leaves += [torch.randn(1, 64, 64, requires_grad=True) for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, _ = wkv(*leaves, kernels="triton")
    own = {t.data_ptr(): t.numel() for t in kept}
    assert sum(own.values()) < (2.1 + 3 / STEPS) * y.numel()


def test_without_a_state_it_begins_with_empty_sums():
    for seed, size in enumerate(size for size in SIZES if size[1]):
        (*inputs, _, _, _), weights = wkv_case(seed, size, 1.0, True)
        leaves, results = [x.requires_grad_() for x in inputs], []
        for form in ("reference", "triton"):
            y, state = wkv(*leaves, kernels=form)
            loss = sum((a * b).sum() for a, b in zip(weights, (y, *state), strict=True))
            results.append((y, *state, *torch.autograd.grad(loss, leaves)))
        for a, b in zip(*reversed(results), strict=True):
            assert torch.allclose(a, b, atol=1e-13, rtol=0) or not assert_close(a, b, 1e-10)


@triton.jit
def loses_decay(o, w, k, live):
    a, e, n = kernels._shares(o, k)
    return tl.where(live, a, 1.0), tl.where(live, e, 0.0), tl.where(live, n, o)


@triton.jit
def walks_on(o, w, k, live):
    return kernels._shares(w + o, k)


@triton.jit
def reads_beyond(at, stride, first, end, STEPS: tl.constexpr, inside, WHOLE: tl.constexpr = False):
    rows = ()
    for i in tl.static_range(STEPS):
        rows += (tl.load(at + (i - 1) * stride, mask=inside & bit(first + i < end), other=0.0),)
    return rows


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "wrong"), [("_carry", loses_decay), ("_carry", walks_on), ("_load", reads_beyond)], ids=lambda x: str(x)
)
def test_a_planted_wrong_kernel_is_caught(name, wrong, monkeypatch):
    case = wkv_case(0, (2, 5, 3), 1.0, True)
    check(*case, (1e-12, 1e-10))
    monkeypatch.setattr(kernels, name, wrong)
    with pytest.raises(AssertionError):
        check(*case, (1e-12, 1e-10))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # it is opcheck that looks
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype):
    (w, u, k, v, *state), _ = wkv_case(0, (2, 5, 3), 1.0, True)
    wide = torch.promote_types(dtype, torch.float32)
    state = torch.stack(state, 1).to(wide)
    ways = [(k.flip(2).to(dtype), state), (None, None), (None, state)]
    for gate, before in ways if dtype == torch.float64 else ways[:1]:
        inputs = [w.to(wide), u.to(wide), k.to(dtype), v.to(dtype), gate, before]
        leaves = [x if x is None else x.clone().requires_grad_() for x in inputs]
        torch.library.opcheck(kernels._wkv, (*inputs, False))
        torch.library.opcheck(kernels._wkv, (*leaves, True))
        y, last, kept = kernels._wkv(*inputs, True)
        torch.library.opcheck(kernels._wkv_backward, (*inputs, last, kept, torch.ones_like(y), torch.ones_like(last)))


def gradients_of(run, layer, x):
    layer.zero_grad()
    y, state = run(x)
    (y.float().square().sum() + sum(part.square().sum() for part in state[:2])).backward()
    return [p.grad.clone() for p in layer.parameters()]


class Mix(torch.nn.Module):
    """Products whose results WKV reads, as a model has them."""

    def __init__(self, kernels):
        super().__init__()
        torch.manual_seed(0)
        self.time_decay, self.time_first = (torch.nn.Parameter(torch.randn(3)) for _ in range(2))
        self.products, self.kernels = torch.nn.Linear(3, 9), kernels

    def forward(self, x):
        k, v, r = self.products(x).chunk(3, -1)
        return wkv(self.time_decay, self.time_first, k, v, gate=r, kernels=self.kernels)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("way", ["eager", "torch.compile", "checkpoint", "DDP"])
def test_it_trains_in_every_way_that_torch_has(way, autocast, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # elsewhere may lie what has longer stretches
    layer, x = Mix("triton"), torch.randn(2, 5, 3)
    run = layer
    if way == "torch.compile":
        run = torch.compile(layer, fullgraph=True)
    elif way == "checkpoint":
        run = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731
    elif way == "DDP":
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        run = torch.nn.parallel.DistributedDataParallel(layer)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, wanted = gradients_of(run, layer, x), gradients_of(reference := Mix("reference"), reference, x)
        assert run(x)[0].dtype == reference(x)[0].dtype == (torch.bfloat16 if autocast else torch.float32)
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, 0.02 if autocast else 1e-5)
    if way == "DDP":
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(library() is None, reason="no C library, which tells a counter the same")
def test_a_counter_is_told_what_it_does(monkeypatch):
    model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, vocabulary=16)).eval()
    tokens = torch.randint(16, (1, 5))
    wanted = count(model, tokens)
    watched = []
    monkeypatch.setattr(kernels, "_wkv", lambda *args, run=kernels._wkv: watched.append(1) or run(*args))
    monkeypatch.setattr(importlib.import_module("rheobase.spiking.ops.wkv"), "takes", lambda *_: "triton")
    assert count(model, tokens) == wanted and watched
