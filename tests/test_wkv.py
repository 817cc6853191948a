"""WKV: the fixture of the original, its closed form, and the laws of a recurrent op."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheobase.spiking.errors import ShapeError
from rheobase.spiking.ops import WKVState, wkv
from rheobase.spiking.ops.native import library

FILE = np.load(Path(__file__).parent / "golden" / "spikegpt_reference.npz")


def fixture(name):
    return torch.from_numpy(FILE[f"wkv.{name}"])


def draw(seed, batch=2, steps=6, channels=3, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((channels,), (channels,), (batch, steps, channels), (batch, steps, channels))
    w, u, k, v = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return w, u, scale * k, v


def closed_form(time_decay, u, k, v):
    """The two sums as they stand, in float64: fine for small k."""
    w, out = -torch.exp(time_decay), torch.zeros_like(v)
    for t in range(k.shape[1]):
        ages = torch.arange(t - 1, -1, -1, dtype=k.dtype)[None, :, None]
        weights = torch.cat([torch.exp(ages * w + k[:, :t]), torch.exp(u + k[:, t : t + 1])], 1)
        out[:, t] = (weights * v[:, : t + 1]).sum(1) / weights.sum(1)
    return out


def test_the_originals_values_and_gradients(kernels):
    leaves = [fixture(n).requires_grad_() for n in "wukv"]
    y, _ = wkv(*leaves)
    assert (y - fixture("y")).abs().max() <= 1e-12
    y.backward(fixture("gy"))
    for leaf, name in zip(leaves, "wukv", strict=True):
        wanted = fixture(f"g{name}")
        assert (leaf.grad - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def test_it_is_the_closed_form(kernels):
    @given(st.integers(0, 2**31), st.integers(1, 3), st.integers(0, 7), st.integers(1, 4))
    def law(seed, batch, steps, channels):
        w, u, k, v = draw(seed, batch, steps, channels)
        assert torch.allclose(wkv(w, u, k, v)[0], closed_form(w, u, k, v), atol=1e-12, rtol=1e-10)

    law()


def test_any_cut_changes_nothing(kernels):
    @given(st.integers(0, 2**31), st.integers(0, 6), st.sampled_from([0.1, 1.0, 50.0]))
    def law(seed, cut, scale):
        w, u, k, v = draw(seed, scale=scale)
        y, end = wkv(w, u, k, v)
        first, state = wkv(w, u, k[:, :cut], v[:, :cut])
        second, last = wkv(w, u, k[:, cut:], v[:, cut:], state)
        assert torch.equal(torch.cat([first, second], 1), y)
        assert all(torch.equal(a, b) for a, b in zip(end, last, strict=True))

    law()


def test_gradients_reach_everything_and_the_initial_state(kernels):
    @given(st.integers(0, 2**31))
    @settings(max_examples=50)
    def law(seed):
        w, u, k, v = draw(seed, batch=1, steps=3, channels=2)
        state = wkv(w, u, k, v)[1]
        inputs = [x.detach().requires_grad_() for x in (w, u, k, v, *state)]
        assert torch.autograd.gradcheck(lambda *x: (lambda y, s: (y, *s))(*wkv(*x[:4], WKVState(*x[4:]))), inputs)

    law()


@pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")
def test_c_where_keys_lie_near_and_where_they_lie_far_apart(monkeypatch):
    """Of sequences with two keys that stand out, from states far above and below them, beside the reference's."""
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)

    far_apart, before = st.sampled_from([15.0, 25.0, 80.0]), st.sampled_from([-1e38, -30.0, 10.0, 100.0])

    @given(st.integers(0, 2**31), far_apart, before, st.sampled_from([1, 100]), st.booleans())
    @settings(max_examples=150)
    def law(seed, far, above, bonus, single):
        dtype = torch.float32 if single else torch.float64
        w, u, k, v = draw(seed, batch=2, steps=37, channels=3)
        k[:, seed % 37, seed % 3] += far
        k[:, seed % 31, seed % 2] -= far
        g = torch.Generator().manual_seed(seed)
        state = [torch.randn(2, 3, generator=g, dtype=k.dtype).exp() for _ in range(2)] + [torch.full((2, 3), above)]
        inputs = [x.to(dtype) for x in (2 * w, bonus * u, k, v, *state)]
        weights = [torch.randn(shape, generator=g, dtype=dtype) for shape in (k.shape, *[(2, 3)] * 3)]
        found = []
        for form, kind in (("native", dtype), ("reference", torch.float64)):
            leaves = [x.to(kind, copy=True).requires_grad_() for x in inputs]
            y, last = wkv(*leaves[:4], WKVState(*leaves[4:]), kernels=form)
            torch.autograd.backward((y, *last), [weight.to(kind) for weight in weights])
            found.append([x.detach().double() for x in (y, *last, *(leaf.grad for leaf in leaves))])
        near = 1e-3 if single else 1e-10
        for ours, theirs in zip(*found, strict=True):
            assert (ours - theirs).abs().max() <= near * max(1, theirs.abs().max())

    law()


@pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")
@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
def test_in_float32_c_is_as_near_the_truth_as_the_reference_is(scale, monkeypatch):
    """Over decays of RWKV-4's first weights, of which the slowest remember hundreds of steps."""
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    _, u, k, v = draw(1, 2, 600, 65, scale)
    inputs, weight = (torch.linspace(-5, 3, 65), 0.5 * u - 1, k, v), torch.linspace(-1, 1, 65)

    def found(form, dtype):
        leaves = [x.float().to(dtype).requires_grad_() for x in inputs]
        y, _ = wkv(*leaves, kernels=form)
        (y * weight.to(dtype)).sum().backward()
        return [x.detach().double() for x in (y, *(leaf.grad for leaf in leaves))]

    truth = found("reference", torch.float64)
    ours, theirs = (
        [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found(form, torch.float32), truth, strict=True)]
        for form in ("native", "reference")
    )
    assert all(a <= 1.3 * b + 3e-7 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_large_keys_do_not_overflow_and_order_of_memory_does_not_matter(kernels):
    w, u, k, v = draw(0, scale=1e4)
    y, state = wkv(w, u, k, v)
    assert y.isfinite().all() and all(part.isfinite().all() for part in state)
    assert (y.abs() <= v.abs().max()).all()
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (k, v)]
    assert torch.equal(wkv(w, u, *strided)[0], y)
    w, u, k, v = (x.float() for x in (w, u, k, v))
    assert wkv(w, u, k, v)[0].isfinite().all()


def test_a_gate_multiplies_y_by_its_sigmoid(kernels):
    w, u, k, v = draw(0)
    gate = k.flip(0)
    (y, end), (z, last) = wkv(w, u, k, v, gate=gate), wkv(w, u, k, v)
    assert torch.equal(y, torch.sigmoid(gate) * z)
    assert all(torch.equal(a, b) for a, b in zip(end, last, strict=True))


def test_wrong_sizes_are_refused():
    w, u, k, v = draw(0)
    _, state = wkv(w, u, k, v)
    with pytest.raises(ShapeError, match="k and v of one shape"):
        wkv(w, u, k, v[:, :-1])
    with pytest.raises(ShapeError, match="give one for each value"):
        wkv(w, u, k, v, gate=k[:, :1])
    with pytest.raises(ShapeError, match="give one number a channel"):
        wkv(w[:-1], u, k, v)
    with pytest.raises(ShapeError, match="start a new state"):
        wkv(w, u, k[:1], v[:1], state)
    for other in (torch.stack(state), tuple(state)[:2]):
        with pytest.raises(ShapeError, match="expected p, q and o"):
            wkv(w, u, k, v, other)
