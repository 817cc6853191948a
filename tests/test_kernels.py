"""Kernels in C against their references."""

import itertools

import pytest
import torch

from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking import EGRU, LIF, ATan, FastSigmoid, Sigmoid, StraightThrough, Triangle
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.ops import WKVState, lif, wkv
from rheobase.spiking.ops.lif import native as lif_in_c
from rheobase.spiking.ops.native import EVERY, UNITS, library, threads
from rheobase.spiking.ops.native.memory import empty
from rheobase.spiking.ops.wkv import native as wkv_in_c

needs_c = pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")
SURROGATES = [ATan(), ATan(3.0), Sigmoid(), Triangle(), FastSigmoid(), StraightThrough()]
SIZES = [(3, 9, 37), (1, 1, 1), (2, 5, 300), (0, 4, 3), (2, 0, 3), (2, 4, 0)]
TYPES = {torch.float64: 1e-10, torch.float32: 2e-5}
"""type -> largest error of a gradient, relative to its largest element"""


def assert_close(got, wanted, tolerance):
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if wanted.numel():
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


class Watched:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)


@pytest.fixture
def poisoned(monkeypatch):
    """What is not written holds NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def both_lifs(x, v, parameters, weights, **settings):
    """(spikes, membranes, gradients to x, v and the parameters) by the reference, and in C."""
    results = []
    for kernels in ("reference", "native"):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, v, *parameters.values())]
        named = dict(zip(parameters, leaves[2:], strict=True))
        outputs = lif(*leaves[:2], **named, **settings, kernels=kernels)
        loss = sum((w * part).sum() for w, part in zip(weights, outputs, strict=True) if w is not None)
        gradients = torch.autograd.grad(loss.requires_grad_(), leaves, allow_unused=True, materialize_grads=True)
        results.append((*outputs, gradients))
    return results


@needs_c
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("v_reset", [0.0, None, -0.2])
def test_lif_in_c_is_its_reference(v_reset, dtype):
    """Spikes and membranes to the last bit, for every setting; on multiples of 1/4 many lie on the threshold."""
    cases = itertools.product([True, False], [">", ">="], [False, True], [False, True], [2.0, 3.0, "learnt"], SIZES)
    for i, (decay_input, fire, ternary, detach_reset, tau, size) in enumerate(cases):
        g = torch.Generator().manual_seed(i)
        batch, steps, units = size
        x, v = (2 * torch.randn(s, generator=g, dtype=dtype) for s in (size, (batch, units)))
        if i % 2:
            x, v = (4 * x).round() / 4, (4 * v).round() / 4
        settings = {"decay_input": decay_input, "fire": fire, "ternary": ternary, "detach_reset": detach_reset}
        parameters = {}
        if tau == "learnt":
            tau_D, theta_D = torch.rand(2, units, generator=g, dtype=dtype)
            parameters = {"tau": 1 + 3 * tau_D, "theta": 0.3 + theta_D}
        else:
            settings |= {"tau": tau, "theta": 0.75}
        weights = [torch.randn(size, generator=g, dtype=dtype) for _ in range(2)]
        if i % 3:
            weights[i % 3 - 1] = None
        by_torch, in_c = both_lifs(
            x, v, parameters, weights, v_reset=v_reset, surrogate=SURROGATES[i % len(SURROGATES)], **settings
        )
        assert torch.equal(by_torch[0], in_c[0]) and torch.equal(by_torch[1], in_c[1]), settings
        for wanted, got in zip(by_torch[2], in_c[2], strict=True):
            assert_close(got, wanted, TYPES[dtype])


@needs_c
@pytest.mark.parametrize("steps", [1, 63, 500])
@pytest.mark.parametrize("whole", [True, False])
def test_lif_in_c_is_its_reference_at_odd_sizes(poisoned, steps, whole):
    """Also h and its gradient, and only the last membrane; nothing is read that was not written."""
    for i, (batch, units) in enumerate(itertools.product([1, 3], [1, 100, 513])):
        g = torch.Generator().manual_seed(i)
        x, v = (torch.randn(size, generator=g) for size in ((batch, steps, units), (batch, units)))
        weights = [torch.randn(batch, steps, units, generator=g) for _ in range(3)]
        weights[1] = weights[1] if whole else weights[1][:, 0]
        for surrogate, ternary in ((ATan(), False), (Triangle(), True)):
            by_torch, in_c = both_lifs(
                x, v, {}, weights, whole=whole, with_h=True, surrogate=surrogate, ternary=ternary, theta=0.6
            )
            assert all(torch.equal(a, b) for a, b in zip(by_torch[:3], in_c[:3], strict=True))
            for wanted, got in zip(by_torch[3], in_c[3], strict=True):
                assert_close(got, wanted, TYPES[torch.float32])


@needs_c
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_the_usual_lif_in_c_is_its_reference(v_reset, decay_input):
    """Which has loops of its own in whole tiles, where spikes alone have gradients; every third x is of multiples of
    1/4, of which many lie on the threshold."""
    g = torch.Generator().manual_seed(0)
    for i, (surrogate, tau, detach) in enumerate(itertools.product(SURROGATES, (2.0, 3.0), (False, True))):
        x, weight = torch.randn(2, 2, 2 * EVERY + 1, UNITS + 6, generator=g)
        x = 2 * x if i % 3 else (8 * x).round() / 4
        settings = {"v_reset": v_reset, "decay_input": decay_input, "tau": tau, "detach_reset": detach}
        by_torch, in_c = both_lifs(
            x, 0 * x[:, 0], {}, [weight, None], whole=False, surrogate=surrogate, theta=0.75, **settings
        )
        assert torch.equal(by_torch[0], in_c[0]) and torch.equal(by_torch[1], in_c[1]), (surrogate, settings)
        for wanted, got in zip(by_torch[2], in_c[2], strict=True):
            assert_close(got, wanted, TYPES[torch.float32])


@needs_c
@pytest.mark.parametrize("cut", [0, 1, 16, 50, 63])
def test_lif_in_c_can_be_cut_anywhere(cut):
    """Outputs to the last bit and gradients: a cut changes where membranes are kept, and nothing else."""
    x = torch.randn(2, 63, 130, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 63, 130, generator=torch.Generator().manual_seed(1))
    s, v = lif(x, whole=False, kernels="native")
    first, between = lif(x[:, :cut], whole=False, kernels="native")
    second, last = lif(x[:, cut:], between, whole=False, kernels="native")
    assert torch.equal(torch.cat([first, second], 1), s) and torch.equal(last, v)
    (wanted,) = torch.autograd.grad((weight * s).sum() + v.sum(), x)
    (got,) = torch.autograd.grad((weight[:, :cut] * first).sum() + (weight[:, cut:] * second).sum() + last.sum(), x)
    assert torch.equal(got, wanted)


@needs_c
def test_lif_in_c_keeps_little_for_its_backward_pass():
    """x and a sixteenth of the membranes."""
    x = torch.randn(4, 128, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lif(x, whole=False, kernels="native")
    assert sum(t.numel() for t in kept) <= x.numel() * 17 / 16 + 4 * 64 + 2 * 64


@needs_c
@pytest.mark.parametrize("batch, units", [(1, 700), (5, 300)])
def test_threads_change_no_bit(batch, units, monkeypatch):
    x = torch.randn(batch, 300, units, generator=torch.Generator().manual_seed(0))
    v = torch.randn(batch, units, generator=torch.Generator().manual_seed(1))
    parameters = {"tau": torch.full((units,), 3.0), "theta": torch.full((units,), 0.7)}
    weights = [torch.randn_like(x), torch.randn_like(v)]
    pools = Watched(threads._pool)
    monkeypatch.setattr(threads, "_pool", pools)
    runs = []
    for number in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        calls = pools.calls
        runs.append(both_lifs(x, v, parameters, weights, whole=False)[1])
        assert (pools.calls > calls) == (number > 1)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip((*runs[0][:2], *runs[0][2]), (*run[:2], *run[2]), strict=True))


def test_memory_is_used_again_once_its_tensor_is_gone(poisoned):
    size = (3, 100_000)
    a = empty(size, torch.float32)
    b = empty(size, torch.float32)
    place, other = a.data_ptr(), b.data_ptr()
    assert a.shape == size and a.isnan().all() and place != other and not a._is_view()
    part = a[1:].fill_(7)
    del a
    assert empty(size, torch.float64).data_ptr() != place and (part == 7).all(), "a view holds it too"
    del part
    again = empty(size, torch.float32)
    assert again.data_ptr() == place and again.isnan().all() and b.data_ptr() == other
    assert empty((2, 0), torch.float32).shape == (2, 0) and empty((), torch.float64).isnan()


@needs_c
@pytest.mark.parametrize("neuron", [LIF(5), EGRU(5, 4)])
def test_a_second_derivative_in_c_is_refused(neuron, monkeypatch):
    """It would be without what goes through the tensors that the backward pass keeps."""
    x = torch.randn(2, 9, 5, requires_grad=True)
    with pytest.raises(UnsupportedError, match="expected one derivative, got create_graph=True; set the environment"):
        torch.autograd.grad(neuron(x)[0].sum(), x, create_graph=True)
    monkeypatch.setenv("RHEOBASE_KERNELS", "reference")
    (g,) = torch.autograd.grad(neuron(x)[0].sum(), x, create_graph=True)
    g.square().sum().backward()
    assert x.grad.abs().sum() > 0


@needs_c
@pytest.mark.parametrize("whole", [True, False])
def test_no_steps_have_gradients_of_zero_in_either_form(whole):
    for kernels in ("reference", "native"):
        x, v = torch.randn(2, 0, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
        s, last, h = lif(x, v, whole=whole, with_h=True, kernels=kernels)
        g_x, g_v = torch.autograd.grad(s.sum() + last.sum() + h.sum(), [x, v], allow_unused=True)
        assert g_x.shape == x.shape and (whole or torch.equal(g_v, torch.ones(2, 3)))


@needs_c
def test_lif_in_c_takes_any_strides_and_passes_nan_on():
    x = torch.randn(5, 3, 7, dtype=torch.float64).transpose(0, 1)
    v = torch.randn(14, dtype=torch.float64)[::2].expand(3, 7)
    s, membranes = lif(x, v, kernels="native")
    assert torch.equal(s, lif(x, v, kernels="reference")[0])
    assert torch.equal(membranes, lif(x.contiguous(), v.contiguous(), kernels="native")[1])
    x[1, 2, 3] = torch.nan
    for a, b in zip(lif(x, v, kernels="native"), lif(x, v, kernels="reference"), strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def wkv_case(seed, size, scale, state_counts):
    """Inputs [time_decay, time_first, k, v, p, q, o] and weights of y and of the last state, in float64.

    Where the seed is odd, all exponents are whole numbers, so that the larger of two is often both.
    """
    batch, steps, channels = size
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    inputs = [draw(channels), draw(channels), scale * draw(*size), draw(*size)]
    inputs += [draw(batch, channels), draw(batch, channels).abs() + 0.1, draw(batch, channels)]
    if seed % 2:
        inputs[0].zero_()
        inputs = [x.round() if i in (1, 2, 6) else x for i, x in enumerate(inputs)]
    return inputs, [draw(*size), *(state_counts * draw(batch, channels) for _ in range(3))]


def run_wkv(inputs, weights, kernels):
    """Outputs, and the gradients of the inputs, of which an eighth is the gate."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    gate = leaves[7] if len(leaves) > 7 else None
    y, state = wkv(*leaves[:4], WKVState(*leaves[4:7]), gate=gate, kernels=kernels)
    loss = sum((w * part).sum() for w, part in zip(weights, (y, *state), strict=True))
    return (y, *state), torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)


@needs_c
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("state_counts", [False, True])
def test_wkv_in_c_is_its_reference(scale, state_counts):
    """float64 to rounding; float32, whose exponents up to 5 have an error of 1e-6, to 1e-5."""
    sizes = [(2, EVERY, 64), (3, 2 * EVERY + 1, 70), (2, 6, 3), *SIZES]
    for seed, size in enumerate([size for size in sizes for _ in range(4)]):
        inputs, weights = wkv_case(seed, size, scale, state_counts)
        wanted = run_wkv(inputs, weights, "reference")
        got = run_wkv(inputs, weights, "native")
        for a, b, tolerance in zip(got, wanted, (1e-12, 1e-10), strict=True):
            for part, right in zip(a, b, strict=True):
                assert torch.allclose(part, right, atol=1e-13, rtol=0) or not assert_close(part, right, tolerance)
        if scale <= 5:
            got = run_wkv([x.float() for x in inputs], [w.float() for w in weights], "native")
            for part, right in zip((*got[0], *got[1]), (*wanted[0], *wanted[1]), strict=True):
                assert part.dtype == torch.float32
                assert torch.allclose(part.double(), right, atol=1e-6, rtol=0) or not assert_close(
                    part.double(), right, 1e-5
                )


@needs_c
@pytest.mark.parametrize("steps", [1, 63, 500])
def test_wkv_in_c_is_its_reference_at_odd_sizes(poisoned, steps):
    """More channels than blocks that go side by side, and nothing is read that was not written."""
    for seed, (batch, channels) in enumerate(itertools.product([1, 3], [1, 100, 513])):
        inputs, weights = wkv_case(seed, (batch, steps, channels), 1.0, True)
        wanted, got = (run_wkv(inputs, weights, kernels) for kernels in ("reference", "native"))
        for a, b, tolerance in zip(got, wanted, (1e-12, 1e-10), strict=True):
            for part, right in zip(a, b, strict=True):
                assert_close(part, right, tolerance)


@needs_c
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["k", "v"])
def test_wkv_in_c_passes_on_what_is_not_finite(value, which, dtype):
    (w, u, k, v, *state), _ = wkv_case(0, (1, 5, 3), 1.0, False)
    {"k": k, "v": v}[which][0, 2, 1] = value
    w, u, k, v, *state = (x.to(dtype) for x in (w, u, k, v, *state))
    (y, end), (z, last) = (wkv(w, u, k, v, WKVState(*state), kernels=name) for name in ("native", "reference"))
    for a, b in zip((y, *end), (z, *last), strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.allclose(a, b, rtol=1e-5, equal_nan=True)


@needs_c
def test_float32_wkv_has_an_exponential_within_two_units_in_the_last_place():
    """One step with w = -1, k = 0 from p = 1 and o = 1 + x gives p = e^x."""
    o = 1 - 88 * torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(o)
    _, last = wkv(zeros[0], zeros[0], zeros[None], zeros[None], WKVState(zeros + 1, zeros, o), kernels="native")
    x = (o - 1).double()
    wanted = torch.exp(x)
    unit = torch.exp2(torch.floor(torch.log2(wanted)) - 23)
    far = x < -87
    assert ((last.p - wanted).abs() / unit)[~far].max() <= 2
    assert (last.p[far] == 0).all() and far.any()


@needs_c
def test_threads_change_no_bit_of_wkv(monkeypatch):
    inputs, weights = wkv_case(0, (3, 300, 700), 1.0, True)
    pools = Watched(threads._pool)
    monkeypatch.setattr(threads, "_pool", pools)
    runs = []
    for number in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        calls = pools.calls
        outputs, gradients = run_wkv(inputs, weights, "native")
        runs.append((*outputs, *gradients))
        assert (pools.calls > calls) == (number > 1)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@needs_c
def test_wkv_in_c_keeps_little_for_its_backward_pass():
    """k, v and 3 numbers a channel every 16 steps; with y and the gradients, below three times k and v."""
    size = 4, 128, 64
    inputs = [torch.randn(64), torch.randn(64), *(torch.randn(size) for _ in range(2))]
    leaves = [x.requires_grad_() for x in inputs]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, _ = wkv(*leaves, kernels="native")
    own = {t.data_ptr(): t.numel() for t in kept}
    assert sum(own.values()) + y.numel() + 2 * y.numel() < 6 * y.numel()
    assert sum(own.values()) < 2.5 * y.numel()


LIFS = [
    {},
    {"ternary": True, "surrogate": Triangle()},
    {"surrogate": Sigmoid(), "whole": False, "with_h": True},
    {"v_reset": None, "whole": False},
]


def in_both_ways(run, leaves, module, monkeypatch):
    """Outputs and gradients of run(*leaves), eager and inside what torch compiles; each time in C."""
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    called = []
    monkeypatch.setattr(
        module, "_call", lambda name, *args, call=module._call: called.append(name) or call(name, *args)
    )
    results = []
    for way in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        outputs = way(*leaves)
        weights = [
            torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype) for out in outputs
        ]
        loss = sum((w * out.sin()).sum() for w, out in zip(weights, outputs, strict=True))
        results.append((*outputs, *torch.autograd.grad(loss, leaves)))
        assert any(name.endswith("forward") for name in called) and any(name.endswith("backward") for name in called)
        called.clear()
    return results


@needs_c
def test_wkv_runs_in_c_inside_what_torch_compiles(monkeypatch):
    """The same bits, forward and backward, with a carried state and a gate."""
    inputs, _ = wkv_case(0, (2, EVERY + 5, 3), 1.0, True)

    def run(w, u, k, v, p, q, o):
        y, state = wkv(w, u, k, v, WKVState(p, q, o), gate=v)
        return wkv(w, u, y, v, state)[0], *state

    eager, compiled = in_both_ways(run, [x.requires_grad_() for x in inputs], wkv_in_c, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


@needs_c
@pytest.mark.parametrize("settings", LIFS)
def test_lif_runs_in_c_inside_what_torch_compiles(settings, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, v, tau_D, theta_D = (torch.rand(size, generator=g) for size in ((2, 37, 5), (2, 5), 5, 5))
    leaves = [part.requires_grad_() for part in (4 * x - 2, v, 1 + tau_D, theta_D)]

    def run(x, v, tau, theta):
        return lif(x, v, tau=tau, theta=theta, **settings)

    eager, compiled = in_both_ways(run, leaves, lif_in_c, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


@needs_c
@pytest.mark.parametrize("placement", ["reference", "spike_fed"])
def test_a_whole_model_compiles_in_one_graph_and_keeps_its_kernels(placement, monkeypatch):
    model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, placement=placement, dropout=0.0))
    tokens = torch.randint(256, (2, 40))
    model.wake(tokens)

    def run(*_):
        logits, state = model(tokens)
        return logits, model(tokens, state)[0]

    for module in (lif_in_c, wkv_in_c):
        eager, compiled = in_both_ways(run, list(model.parameters()), module, monkeypatch)
        assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.5, 2.0, 64.0])
def test_a_power_of_two_is_multiplied_by_as_it_is_divided_by(tau, dtype):
    g = torch.Generator().manual_seed(0)
    x, v, of_s = (3 * torch.randn(size, generator=g, dtype=dtype) for size in ((2, 37, 131), (2, 131), (2, 37, 131)))
    for settings in ({"v_reset": 0.0}, {"v_reset": None, "decay_input": False, "fire": ">"}, {"ternary": True}):
        found = []
        for given in (tau, torch.full((131,), tau, dtype=dtype)):
            leaves = [part.clone().requires_grad_() for part in (x, v)]
            s, last = lif(*leaves, tau=given, theta=0.7, kernels="native", **settings)
            found.append([s, last, *torch.autograd.grad((s * of_s).sum() + last.square().sum(), leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_c
def test_the_operators_in_c_keep_torchs_rules():
    (w, u, k, v, *state), _ = wkv_case(0, (2, EVERY + 5, 3), 1.0, True)
    inputs = w, u, k, v, torch.stack(state, 1)
    y, last, kept = wkv_in_c.wkv_forward(*inputs, True)
    for keep in (False, True):
        torch.library.opcheck(wkv_in_c.wkv_forward.operator, (*inputs, keep))
    torch.library.opcheck(wkv_in_c.wkv_backward.operator, (*inputs[:4], kept, y, last))
    settings = [0.0, 0.0, 2.0, 0.0, *[1.0] * 3, 0.0, 0.0, 1.0, 0.0, 1.0]
    inputs = k, state[0], w.exp(), u.exp()
    for wanted in itertools.product([False, True], repeat=3):
        torch.library.opcheck(lif_in_c.lif_forward.operator, (*inputs, settings, *wanted))
    *_, kept = lif_in_c.lif_forward(*inputs, settings, False, False, True)
    others = kept, *inputs[2:], None, None, v, None, None, state[0], settings
    torch.library.opcheck(lif_in_c.lif_backward.operator, (*inputs[:2], *others))
