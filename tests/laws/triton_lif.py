"""LIF in Triton's interpreter; `tests/test_triton.py` runs it with TRITON_INTERPRET=1."""

import importlib
import itertools
from collections import defaultdict

import pytest
import torch
import triton
import triton.language as tl
from test_kernels import SURROGATES, TYPES, assert_close
from triton_wkv import amid_nan, poisoned  # noqa: F401

from rheobase.backends import count
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking import ATan
from rheobase.spiking.ops import lif
from rheobase.spiking.ops.lif import triton as kernels
from rheobase.spiking.ops.native import library

STEPS = 4
SIZES = [(3, 7, 5), (1, 1, 1), (1, STEPS, kernels.BLOCK), (2, STEPS + 1, 40), (1, 23, 3), (0, 3, 2), (2, 0, 3)]


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """The interpreter runs the steps beyond the last too."""
    monkeypatch.setattr(kernels, "STEPS", STEPS)


def case(seed, size, dtype=torch.float64):
    """x, v, and weights of s, v, h; where the seed is odd, many membranes lie on the threshold."""
    g = torch.Generator().manual_seed(seed)
    shapes = [size, (size[0], size[2]), size, size, size]
    x, v, *weights = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes)
    return ((4 * x).round() / 4, (4 * v).round() / 4, weights) if seed % 2 else (2 * x, v, weights)


def run(x, v, weights, form, parameters=None, **settings):
    """(s, v, h) and the gradients to x, v and the parameters."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, v, *(parameters or {}).values())]
    places = leaves if form == "reference" else [amid_nan(leaf) for leaf in leaves]
    named = dict(zip(parameters or {}, places[2:], strict=True))
    outputs = lif(*places[:2], **named, **settings, with_h=True, kernels=form)
    if not settings.get("whole", True):
        weights = [weights[0], weights[1].sum(1), weights[2]]
    loss = sum((w * part).sum() for w, part in zip(weights, outputs, strict=True) if w is not None)
    return outputs, torch.autograd.grad(loss.requires_grad_(), leaves, allow_unused=True, materialize_grads=True)


def check(*args, tolerance=1e-10, **settings):
    """Outputs to the last bit and gradients against the reference."""
    wanted, got = (run(*args, form, **settings) for form in ("reference", "triton"))
    for a, b in zip(got[0], wanted[0], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), settings
    for a, b in zip(got[1], wanted[1], strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 5))])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.2])
def test_it_is_its_reference(v_reset, part):
    """Every fifth of all kinds, which has each pair of settings; the others are slow."""
    either, taus = [True, False], ["learnt", 3.0, 2.0]
    kinds = itertools.product(either, [">", ">="], either, either, taus, either)
    for i, (decay_input, fire, ternary, detach_reset, tau, whole) in itertools.islice(enumerate(kinds), part, None, 5):
        size = SIZES[i % len(SIZES)] if i < 10 * len(SIZES) else (2, 3, 4)
        dtype = torch.float32 if i % 3 == 2 else torch.float64
        x, v, weights = case(i, size, dtype)
        settings = {"decay_input": decay_input, "fire": fire, "ternary": ternary, "detach_reset": detach_reset}
        if tau == "learnt":
            one = torch.arange(size[2], dtype=dtype) / 7
            settings["parameters"] = {"tau": 1.5 + one, "theta": 0.5 + one}
        else:
            settings |= {"tau": tau, "theta": 0.75}
        surrogate = SURROGATES[i % len(SURROGATES)]
        check(x, v, weights, tolerance=TYPES[dtype], v_reset=v_reset, surrogate=surrogate, whole=whole, **settings)


def test_float32_spikes_are_those_of_float64_but_at_the_threshold():
    x, v, weights = case(0, (2, 60, 40))
    (wanted, _, h), _ = run(x, v, weights, "reference", tau=3.0)
    (s, _, _), _ = run(x.float(), v.float(), [w.float() for w in weights], "triton", tau=3.0)
    clear = (h - 1).abs() > 1e-5
    assert torch.equal(s[clear], wanted[clear].float()) and clear.float().mean() > 0.99


def test_input_in_bfloat16_with_membranes_in_float32():
    """The interpreter cuts to bfloat16 where a GPU rounds; spikes have no rest to be cut."""
    for seed, size in enumerate(SIZES):
        x, v, weights = case(seed, size, torch.bfloat16)
        (s, membranes, h), gradients = run(x, v.float(), weights, "triton")
        wanted, right = run(x, v.float(), weights, "reference")
        assert s.dtype == h.dtype == gradients[0].dtype == torch.bfloat16 and membranes.dtype == torch.float32
        assert torch.equal(s, wanted[0]) and torch.equal(membranes, wanted[1])
        for a, b in zip((h, *gradients), (wanted[2], *right), strict=True):
            assert_close(a, b, 2.0**-7)


@pytest.mark.parametrize("cut", [0, 1, STEPS, 23])
def test_any_cut_changes_nothing(cut):
    x, v, weights = case(2, (2, 23, 3))
    x, v = x.requires_grad_(), v.requires_grad_()
    s, last = lif(x, v, whole=False, kernels="triton")
    first, between = lif(x[:, :cut], v, whole=False, kernels="triton")
    second, end = lif(x[:, cut:], between, whole=False, kernels="triton")
    again = torch.cat([first, second], 1)
    assert torch.equal(again, s) and torch.equal(end, last)
    losses = [(weights[0] * spikes).sum() + membrane.sum() for spikes, membrane in ((s, last), (again, end))]
    for a, b in zip(*(torch.autograd.grad(loss, (x, v)) for loss in losses), strict=True):
        assert torch.equal(a, b)


def test_any_strides_will_do_and_nan_is_passed_on():
    x, v, weights = case(4, (2, 7, 6))
    x[0, 3, 2] = torch.nan
    wanted = run(x, v, weights, "reference")
    strided = x.transpose(0, 1).contiguous().transpose(0, 1), v.mT.contiguous().mT
    got = lif(*strided, with_h=True, kernels="triton")
    for a, b in zip(got, wanted[0], strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def test_it_keeps_little_for_its_backward_pass():
    x = torch.randn(1, 64, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lif(x, whole=False, kernels="triton")
    assert sum(t.numel() for t in kept) <= x.numel() + 64 // STEPS * 64 + 2 * 64


@triton.jit
def fires_late(h, theta, STRICT: tl.constexpr, TERNARY: tl.constexpr):
    return (h > theta).to(h.dtype), tl.zeros_like(h)


def test_a_planted_wrong_kernel_is_caught(monkeypatch):
    x, v, weights = case(1, (2, 9, 4))
    check(x, v, weights, tau=1.0, theta=0.75)
    monkeypatch.setattr(kernels, "_fired", fires_late)
    with pytest.raises(AssertionError):
        check(x, v, weights, tau=1.0, theta=0.75)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # it is opcheck that looks
@pytest.mark.parametrize(("dtype", "learns"), [(torch.float64, False), (torch.bfloat16, True)])
def test_the_operators_keep_torchs_rules(dtype, learns):
    x, v, weights = case(0, (2, 5, 3), dtype)
    wide = torch.promote_types(dtype, torch.float32)
    v, numbers = v.to(wide), [2.0, 1.0]
    parameters, rules = [None, None], ([True, True, False, False, False], "ATan")
    if learns:
        parameters = [torch.full((3,), n, dtype=wide, requires_grad=True) for n in numbers]
        numbers = [0.0, 0.0]
    settings = numbers + [0.0, 2.0, 0.0], *rules
    inputs = [x.requires_grad_(), v.requires_grad_(), *parameters]
    for shown in ([True, True, True], [False, False, True]):
        torch.library.opcheck(kernels._lif, (*inputs, *settings, shown))
    inputs = [t if t is None else t.detach() for t in inputs]
    *_, last, kept = kernels._lif(*inputs, *settings, shown)
    for g_v, g_h in ((None, None), (weights[1].to(wide), weights[2])):
        gradients = weights[0], g_v, g_h, torch.ones_like(last)
        torch.library.opcheck(kernels._lif_backward, (inputs[0], *inputs[2:], kept, *gradients, *settings, learns))


def test_it_runs_inside_what_torch_compiles():
    x, v, weights = case(2, (2, 5, 3))

    def loss(x, v):
        s, last = lif(x, v, surrogate=ATan(3.0), whole=False, kernels="triton")
        return (weights[0] * s).sum() + last.sum()

    leaves = x.requires_grad_(), v.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(way(*leaves), leaves) for way in (loss, compiled)), strict=True):
        assert torch.equal(a, b)


def test_learnt_parameters_launch_what_was_compiled(monkeypatch):
    """Triton finds that by its constants, and one unequal to itself would be sought, and noted, at every launch."""
    launches = []
    monkeypatch.setattr(kernels, "_forward", defaultdict(lambda: lambda *_, **options: launches.append(options)))
    for _ in range(2):
        lif(torch.zeros(1, 4, 3), tau=torch.full((3,), 2.0), theta=torch.ones(3), kernels="triton")
    assert launches[0] == launches[1]


@pytest.mark.skipif(library() is None, reason="no C library, which tells a counter the same")
def test_a_counter_is_told_what_it_does(monkeypatch):
    model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, vocabulary=16)).eval()
    tokens = torch.randint(16, (1, 5))
    wanted = count(model, tokens)
    watched = []
    monkeypatch.setattr(kernels, "_lif", lambda *args, run=kernels._lif: watched.append(1) or run(*args))
    monkeypatch.setattr(importlib.import_module("rheobase.spiking.ops.lif"), "takes", lambda *_: "triton")
    assert count(model, tokens) == wanted and watched
