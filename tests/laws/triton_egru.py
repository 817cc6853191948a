"""EGRU in Triton's interpreter; `tests/test_triton.py` runs it with TRITON_INTERPRET=1."""

import importlib

import pytest
import torch
import triton
import triton.language as tl
from test_egru_kernels import assert_same, case, from_product, run

from rheobase.backends import count
from rheobase.spiking import EGRU, ATan, EGRUState, Triangle
from rheobase.spiking.cuda_graphs import CudaGraphed
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.ops import egru
from rheobase.spiking.ops.egru import triton as kernels

SIZES = [(1, 1, 1), (3, 7, 5), (1, 15, kernels.BLOCK), (2, 3, kernels.BLOCK + 1), (0, 3, 2), (2, 0, 3), (2, 3, 0)]
MODES = [{}, {"zoneout": 0.3}, {"zoneout": 0.3, "training": True}]
TRIANGLE = Triangle(3.6, 3.6)


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that is not written holds not-a-number."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(size, seed, tolerance=1e-12, dtype=torch.float64, **settings):
    """Events, values, state and gradients against the reference in float64; gradients of some outputs alone too."""
    tensors, weights = case(size, seed)
    weights = [None if seed and i % 4 == seed else w for i, w in enumerate(weights)]
    wanted = run(tensors, weights, "reference", surrogate=TRIANGLE, **settings)
    tensors, weights = [t.to(dtype) for t in tensors], [w if w is None else w.to(dtype) for w in weights]
    assert_same(run(tensors, weights, "triton", surrogate=TRIANGLE, **settings), wanted, tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_it_is_its_reference(size, mode):
    for seed in range(2):
        check(size, seed, **mode)


def test_it_goes_on_from_the_input_s_product():
    tensors, weights = case((3, 7, 5))
    wanted, got = (run(from_product(tensors), weights, k, surrogate=TRIANGLE) for k in ("reference", "triton"))
    assert_same(got, wanted, 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_float32(seed):
    mask = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(seed)) < 0.7
    check((3, 7, 5), seed, 2e-5, torch.float32, zoneout=0.2, training=seed == 1, zoneout_mask=mask)


def test_bfloat16_computes_a_cell_in_float32():
    """A step in which each gate sees the numbers that the reference sees in float32, rounded once."""
    tensors, _ = case((3, 1, 40))
    tensors = [t.bfloat16() for t in tensors]
    tensors[1], tensors[2] = tensors[1] * 0, tensors[2] * 0
    got, state = egru(*tensors[:6], EGRUState(*tensors[6:]), surrogate=TRIANGLE, kernels="triton")
    wide = [t.float() for t in tensors]
    wide[3], wide[4] = (b.bfloat16().float() for b in (wide[3], wide[4]))
    wanted, _ = egru(*wide[:6], EGRUState(*wide[6:]), surrogate=TRIANGLE, kernels="reference")
    assert {part.dtype for part in (*got, *state)} == {torch.bfloat16}
    assert torch.equal(got.o.float(), wanted.o)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a.float(), b, atol=0, rtol=2.0**-7)  # the interpreter cuts where a GPU rounds


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_products_alone_are_narrow(given):
    """Units far from their thresholds, so that an event does not hang on a product's rounding; x may be narrow too."""
    tensors, weights = case((3, 6, 20))
    tensors, weights = [t.float() for t in tensors], [w.float() for w in weights]
    tensors[5] = torch.where(torch.arange(20) % 3 == 0, -2.0, 2.0)
    tensors[0] = tensors[0].to(given)
    wanted = run(
        [t.double() for t in tensors], [w.double() for w in weights], "reference", surrogate=Triangle(0.7, 0.3)
    )
    with torch.autocast("cpu", torch.bfloat16):
        got = run(tensors, weights, "triton", surrogate=Triangle(0.7, 0.3))
        exact = egru(*tensors[:1], *(p * 0 for p in tensors[1:5]), tensors[5], surrogate=TRIANGLE, kernels="triton")[0]
    assert {part.dtype for part in got[0]} == {torch.float32} and 0.2 < got[0][2].mean() < 0.5
    assert [g.dtype for g in got[1]] == [t.dtype for t in tensors]
    for parts, right in zip(got[:2], wanted[:2], strict=True):
        for a, b in zip(parts, right, strict=True):
            assert (a.double() - b).abs().max() <= 0.03 * b.abs().max()
    bare = [t.float() * (i in (0, 5)) for i, t in enumerate(tensors[:6])]
    for a, b in zip(exact, egru(*bare, surrogate=TRIANGLE, kernels="reference")[0], strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=0), "the cell itself is in float32"


def test_a_unit_may_fire_a_zero():
    """Below a threshold under 0 an event of 0 fires, which backward has to tell from silence."""
    tensors, weights = case((2, 4, 5))
    tensors = [t * 0 for t in tensors]
    tensors[5] = torch.tensor([-0.2, -0.5, 0.0, -0.1, 0.3], dtype=torch.float64)
    wanted = run(tensors, weights, "reference", surrogate=TRIANGLE)
    y, _, o, _ = wanted[0][:4]
    assert ((y == 0) & (o == 1)).any() and (o == 0).any()
    assert_same(run(tensors, weights, "triton", surrogate=TRIANGLE), wanted, 1e-12)


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_any_cut_changes_nothing(cut):
    tensors, _ = case((2, 7, 5))
    x, *parameters = tensors[:6]
    whole, end = egru(x, *parameters, EGRUState(*tensors[6:]), surrogate=TRIANGLE, kernels="triton")
    first, state = egru(x[:, :cut], *parameters, EGRUState(*tensors[6:]), surrogate=TRIANGLE, kernels="triton")
    second, last = egru(x[:, cut:], *parameters, state, surrogate=TRIANGLE, kernels="triton")
    pieces = [torch.cat(parts, 1) for parts in zip(first, second, strict=True)]
    for a, b in zip((*pieces, *last), (*whole, *end), strict=True):
        assert torch.allclose(a, b, atol=1e-13, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_passed_on(value):
    """And no further, through units that fill a row up: 5 are 6 in float64."""
    tensors, weights = case((2, 6, 5))
    tensors[0][1, 2, 3] = value
    got, wanted = (run(tensors, weights, name, surrogate=TRIANGLE)[:2] for name in ("triton", "reference"))
    for a, b in zip((*got[0], *got[1]), (*wanted[0], *wanted[1]), strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.allclose(a, b, atol=1e-12, equal_nan=True)
    assert wanted[0][0].isnan().any() == (value != value)


def test_any_strides_will_do():
    tensors, weights = case((2, 5, 6))
    wanted = run(tensors, weights, "triton", surrogate=TRIANGLE)
    strided = [torch.stack([t.transpose(0, -1)] * 2, -1)[..., 0].transpose(0, -1) for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    assert_same(run(strided, weights, "triton", surrogate=TRIANGLE), wanted, 1e-13)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # it is opcheck that looks
def test_the_operators_keep_torchs_rules():
    tensors, _ = case((2, 3, 4))
    for kept, zoneout in ((None, 0.2), (torch.rand(2, 3, 4) < 0.5, 0.2)):
        settings = (kept, zoneout, 0.7, 1.0)
        torch.library.opcheck(kernels._egru, (*(t.clone().requires_grad_() for t in tensors), *settings))
        y, c, *_, gates, q_g = kernels._egru(*tensors, *settings)
        given = (tensors[2], tensors[5], tensors[7], kept, gates, q_g, y, c, torch.ones_like(y), *[None] * 5)
        for last_trace in (None, torch.ones(2, 4, dtype=y.dtype)):
            torch.library.opcheck(kernels._egru_backward, (*given, last_trace, *settings[1:]))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_trains(compiled, monkeypatch):
    torch.manual_seed(0)
    layer, x = EGRU(3, 4, zoneout=0.0 if compiled else 0.2).train(), torch.randn(2, 5, 3)  # a compiler draws its own
    run = torch.compile(layer, fullgraph=True) if compiled else layer
    gradients = []
    for name in ("triton", "reference"):
        monkeypatch.setenv("RHEOBASE_KERNELS", name)
        torch.manual_seed(1)
        layer.zero_grad()
        y, state = (run if name == "triton" else layer)(x)
        (y.square().sum() + state.c.sum()).backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-5) for a, b in zip(*gradients, strict=True))


@triton.jit
def forgets(first, later, t, H, at_first, at, inside, TYPE: tl.constexpr):
    return tl.load(first + at_first, mask=inside, other=0.0).to(TYPE)


@triton.jit
def doubles(gradient, at, inside, TYPE: tl.constexpr):
    return 2 * tl.load(gradient + at, mask=inside, other=0.0).to(TYPE)


@pytest.mark.parametrize(("name", "wrong"), [("_carried", forgets), ("_given", doubles)])
def test_a_planted_wrong_kernel_is_caught(name, wrong, monkeypatch):
    check((2, 5, 3), 0)
    monkeypatch.setattr(kernels, name, wrong)
    with pytest.raises(AssertionError):
        check((2, 5, 3), 0)


def test_it_runs_or_says_why_not():
    tensors, _ = case((2, 3, 4))
    x, *parameters = tensors[:6]
    with pytest.raises(UnsupportedError, match="kernels: expected a surrogate of numbers, got Triangle of tensors"):
        egru(x, *parameters, surrogate=Triangle(torch.tensor(1.0)), kernels="triton")
    with pytest.raises(UnsupportedError, match="egru kernels: expected the surrogate Triangle, got ATan"):
        egru(x, *parameters, surrogate=ATan(), kernels="triton")
    with pytest.raises(UnsupportedError, match="tensors of one type, or autocast, got torch.float32, torch.float64"):
        egru(x, *parameters, EGRUState(*torch.zeros(3, 2, 4)), surrogate=TRIANGLE, kernels="triton")


def test_a_counter_is_told_what_it_does(monkeypatch):
    layer, x = EGRU(5, 7, zoneout=0.2, thr_mean=0.1), torch.randn(2, 6, 5)
    wanted, watched = count(layer, x, kernels="reference").without_bytes(), []
    monkeypatch.setattr(kernels, "_egru", lambda *args, run=kernels._egru: watched.append(1) or run(*args))
    monkeypatch.setattr(importlib.import_module("rheobase.spiking.ops.egru"), "takes", lambda *_: "triton")
    assert count(layer, x).without_bytes() == wanted and watched


def test_the_operators_can_be_recorded_and_replayed(monkeypatch):
    """As a CUDA graph does; the last state carries a gradient too."""
    from test_cuda_graphs import record

    record(monkeypatch)
    monkeypatch.setenv("RHEOBASE_KERNELS", "triton")
    torch.manual_seed(0)
    layer, x = EGRU(3, 4, TRIANGLE, zoneout=0.2), torch.randn(2, 5, 3)
    run, seen = CudaGraphed(layer, x), []
    for way in (run, layer):
        layer.zero_grad()
        state = layer.initial_state(2)
        for seed in range(2):
            torch.manual_seed(seed)
            y, state = way(x + seed, state)
            (y.square().sum() + sum(part.square().sum() for part in state)).backward()
            state = EGRUState(*(part.detach() for part in state))
        seen.append([y.detach(), *state, *(p.grad for p in layer.parameters())])
    assert seen[0][0].count_nonzero() and all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
