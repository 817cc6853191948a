"""EGRU with its cell in C against its reference: events, values, states and gradients."""

import pytest
import torch
import torch.nn.functional as F

from rheobase.backends import count
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking import EGRU, ATan, EGRUState, FastSigmoid, Sigmoid, StraightThrough, Triangle
from rheobase.spiking.errors import ShapeError, UnsupportedError
from rheobase.spiking.ops import egru
from rheobase.spiking.ops.egru import native
from rheobase.spiking.ops.native import library
from rheobase.spiking.surrogates import Relaxed

pytestmark = pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")
SIZES = [(1, 1, 1), (3, 1, 100), (3, 63, 1), (3, 63, 100), (1, 500, 100), (3, 63, 513), (9, 20, 50)]
EMPTY = [(0, 4, 3), (2, 0, 3), (2, 4, 0)]
SURROGATES = [Triangle(3.6, 3.6), Triangle(), ATan(), Sigmoid(), FastSigmoid(), StraightThrough()]
INPUTS = 7


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody has written is not a number."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def case(size, seed=0, inputs=INPUTS, dtype=torch.float64):
    """x, parameters and state of a layer in which about a third of the units fire; weights of the outputs and of the
    last state."""
    g = torch.Generator().manual_seed(seed)
    batch, steps, units = size

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    parameters = [draw(inputs, 3 * units) / inputs**0.5, draw(units, 3 * units) / max(units, 1) ** 0.5]
    parameters += [draw(3 * units) / 2, draw(3 * units) / 2, draw(units).abs() / 3]
    state = [draw(batch, units).clamp(min=0), draw(batch, units) / 2, draw(batch, units)]
    weights = [draw(*size) for _ in range(4)] + [draw(batch, units) for _ in range(3)]
    tensors = [draw(batch, steps, inputs), *parameters, *state]
    return [t.to(dtype) for t in tensors], [w.to(dtype) for w in weights]


def from_product(tensors):
    """The same case, given the product of x instead of x."""
    x, kernel, recurrent, bias, *others = tensors
    return [F.linear(x, kernel.t(), bias), None, recurrent, None, *others]


def run(tensors, weights, kernels, **settings):
    """(the trajectory and the last state, gradients of all tensors that are given, numbers drawn)."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    torch.manual_seed(1)
    trajectory, state = egru(*leaves[:6], EGRUState(*leaves[6:]), kernels=kernels, **settings)
    outputs = (*trajectory, *state)
    loss = sum((w * part).sum() for w, part in zip(weights, outputs, strict=True) if w is not None)
    given = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
    return outputs, gradients, torch.get_rng_state()


def assert_same(got, wanted, tolerance):
    """Events identical, values within the tolerance, gradients within it relative to their largest element."""
    assert torch.equal(got[0][2].double(), wanted[0][2]) and torch.equal(got[0][0] != 0, wanted[0][0] != 0)
    assert len({part.dtype for parts in got[:2] for part in parts}) == 1
    for a, b in zip(got[0], wanted[0], strict=True):
        assert a.shape == b.shape and torch.allclose(a.double(), b, atol=tolerance, rtol=0)
    for a, b in zip(got[1], wanted[1], strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        assert not b.numel() or (a - b).abs().max() <= tolerance * max(b.abs().max(), 1e-3)
    assert torch.equal(got[2], wanted[2]), "both draw the same numbers"


@pytest.mark.parametrize("size", SIZES + EMPTY)
def test_float64_is_the_reference(size):
    modes = [{}, {"zoneout": 0.3}, {"zoneout": 0.3, "training": True}, {"training": True}]
    for seed in range(4 if size[1] * size[2] < 20_000 else 1):
        tensors, weights = case(size, seed)
        weights = [None if seed and i % 3 == seed - 1 else w for i, w in enumerate(weights)]
        settings = {"surrogate": SURROGATES[(seed + size[0]) % len(SURROGATES)], **modes[(seed + 2) % 4]}
        wanted = run(tensors, weights, "reference", **settings)
        assert_same(run(tensors, weights, "native", **settings), wanted, 1e-12)


@pytest.mark.parametrize("size", SIZES + EMPTY)
def test_it_goes_on_from_the_input_s_product(size):
    tensors, weights = case(size)
    wanted = run(from_product(tensors), weights, "reference", surrogate=Triangle())
    assert_same(run(from_product(tensors), weights, "native", surrogate=Triangle()), wanted, 1e-12)
    outputs, (_, _, of_recurrent, _, *of_others), _ = run(tensors, weights, "reference", surrogate=Triangle())
    for a, b in zip((*outputs, of_recurrent, *of_others), (*wanted[0], *wanted[1][1:]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inputs, kernel, bias", [(5, None, None), (9, None, 9), (5, (5, 9), None)])
def test_a_product_is_given_whole_or_not_at_all(inputs, kernel, bias):
    x, thr, zeros = torch.zeros(1, 2, inputs), torch.zeros(3), torch.zeros(9)
    kernel, bias = (None if shape is None else torch.zeros(shape) for shape in (kernel, bias))
    with pytest.raises(ShapeError, match=r"neither and x of shape \[B, T, 9\]"):
        egru(x, kernel, torch.zeros(3, 9), bias, zeros, thr, surrogate=Triangle())


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_a_mask_on_another_device_is_refused(kernels):
    """Its address would be read as one of this device's; of "meta" it is 0, which C takes for no mask."""
    tensors = torch.zeros(1, 2, 9), None, torch.zeros(3, 9), None, torch.zeros(9), torch.zeros(3)
    settings = {"surrogate": Triangle(), "zoneout": 0.5, "training": True, "kernels": kernels}
    with pytest.raises(ShapeError, match="egru zoneout_mask: expected a mask on cpu, got one on meta"):
        egru(*tensors, **settings, zoneout_mask=torch.zeros(1, 2, 3, dtype=torch.bool, device="meta"))


def test_the_cases_fire_and_stay_silent():
    tensors, weights = case((3, 63, 100))
    o = run(tensors, weights, "native", surrogate=Triangle())[0][2]
    assert 0.2 < o.mean() < 0.5


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("zoneout", [0.0, 0.25])
@pytest.mark.parametrize("training", [False, True])
def test_every_surrogate_in_every_mode(surrogate, zoneout, training):
    size = (3, 9, 20)
    tensors, weights = case(size, 5)
    mask = torch.rand(size, generator=torch.Generator().manual_seed(2)) < 0.7
    for given in (None, mask, mask.double()):
        settings = {"surrogate": surrogate, "zoneout": zoneout, "training": training, "zoneout_mask": given}
        assert_same(run(tensors, weights, "native", **settings), run(tensors, weights, "reference", **settings), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("threads", [1e-9, 1, 1e9], ids=["gathered", "chosen", "dense"])
def test_products_by_events_and_dense_ones_are_the_same(threads, dtype, monkeypatch):
    """Many threads make every product dense, hardly any gathers all of them; and x may hold events too."""
    monkeypatch.setattr(native.torch, "get_num_threads", lambda: threads)
    for size in ((1, 30, 40), (20, 15, 40), (20, 1, 40)):
        tensors, weights = case(size, 3, inputs=30)
        tensors[0] = tensors[0].clamp(min=0) * (tensors[0] > 1)
        wanted = run(tensors, weights, "reference", surrogate=Triangle())
        got = run([t.to(dtype) for t in tensors], weights, "native", surrogate=Triangle())
        assert_same(got, wanted, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_float32_has_the_same_events_where_none_lies_at_its_threshold(size):
    """Each step from the float64 state before it, so that an event that lies too near cannot change later ones."""
    tensors, _ = case(size)
    x, *parameters = tensors[:6]
    wanted, _ = egru(x, *parameters, EGRUState(*tensors[6:]), surrogate=Triangle(), kernels="reference")
    outcomes = zip(tensors[6:], (wanted.y, wanted.c, wanted.trace), strict=True)
    before = [torch.cat([s[:, None], w[:, :-1]], 1) for s, w in outcomes]
    state = EGRUState(*(part.flatten(0, 1).float() for part in before))
    x, *parameters = (t.float() for t in (x.flatten(0, 1)[:, None], *parameters))
    got, _ = egru(x, *parameters, state, surrogate=Triangle(), kernels="native")
    thr, c, o = (t.flatten(0, 1) for t in (tensors[5].expand_as(wanted.c), wanted.c, wanted.o))
    far = torch.where(o > 0, c, c - thr).abs() > 1e-5
    assert torch.equal(got.o[:, 0].double()[far], o[far]) and far.double().mean() > 0.99
    for part, right in zip(got, wanted, strict=True):
        assert part.dtype == torch.float32
        assert torch.allclose(part[:, 0].double()[far], right.flatten(0, 1)[far], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [s for s in SIZES if s[1] * s[2] < 10_000])
def test_float32_has_the_gradients_of_float64(size):
    for seed in range(3):
        tensors, weights = case(size, seed)
        settings = {"surrogate": SURROGATES[seed], "zoneout": 0.2, "training": seed == 1}
        if settings["training"]:
            settings["zoneout_mask"] = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.7
        wanted = run(tensors, weights, "reference", **settings)
        got = run([t.float() for t in tensors], [w.float() for w in weights], "native", **settings)
        assert_same(got, wanted, 2e-5)


def test_any_strides():
    """Every second of something, transposed; and a broadcast state."""
    tensors, weights = case((3, 9, 20))
    wanted = run(tensors, weights, "native", surrogate=Triangle())

    def strided(t):
        return torch.stack([t.transpose(0, -1), t.transpose(0, -1) + 1], -1)[..., 0].transpose(0, -1)

    assert not any(strided(t).is_contiguous() for t in tensors)
    assert_same(run([strided(t) for t in tensors], weights, "native", surrogate=Triangle()), wanted, 1e-13)
    zero = torch.zeros(1, dtype=torch.float64).expand(3, 20)
    out, _ = egru(*tensors[:6], EGRUState(zero, zero, zero), surrogate=Triangle(), kernels="native")
    again, _ = egru(*tensors[:6], surrogate=Triangle(), kernels="reference")
    assert torch.equal(out.o, again.o) and torch.allclose(out.c, again.c, atol=1e-12, rtol=0)


@pytest.mark.parametrize("batch", [1, 9])
def test_any_cut_changes_nothing(batch):
    tensors, _ = case((batch, 13, 40))
    x, *parameters = tensors[:6]
    whole, end = egru(x, *parameters, EGRUState(*tensors[6:]), surrogate=Triangle(), kernels="native")
    for cut in range(14):
        first, state = egru(x[:, :cut], *parameters, EGRUState(*tensors[6:]), surrogate=Triangle(), kernels="native")
        second, last = egru(x[:, cut:], *parameters, state, surrogate=Triangle(), kernels="native")
        pieces = [torch.cat(parts, 1) for parts in zip(first, second, strict=True)]
        for a, b in zip((*pieces, *last), (*whole, *end), strict=True):
            assert torch.allclose(a, b, atol=1e-12, rtol=0)
        assert torch.equal(pieces[2], whole.o)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_not_finite_is_passed_on(value, dtype):
    tensors, _ = case((2, 6, 5), dtype=dtype)
    tensors[0][1, 2, 3] = value
    outs = [
        egru(*tensors[:6], EGRUState(*tensors[6:]), surrogate=Triangle(), kernels=kernels)[0]
        for kernels in ("native", "reference")
    ]
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.allclose(a, b, atol=1e-5, equal_nan=True)
    assert outs[0].y.isnan().any() == (value != value)


def test_training_takes_the_reference_s_course():
    """Dropconnect, dropouts and zoneout drawn alike: the same losses and weights after some steps, but for rounding."""
    ends = []
    for kernels in ("reference", "native"):
        torch.manual_seed(0)
        config = {"layers": (24, 16), "thr_mean": 0.1, "zoneout": 0.1, "dropconnect": 0.3, "rate_weight": 0.1}
        model = EGRULM(EGRULMConfig(embedding=16, **config)).double().train()
        tokens = torch.randint(256, (4, 21))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RHEOBASE_KERNELS", kernels)
            losses = []
            for _ in range(4):
                logits, _, runs = model.run(tokens[:, :-1])
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
                optimiser.zero_grad()
                (loss + model.penalty(runs)).backward()
                optimiser.step()
                losses.append(loss.item())
        ends.append((losses, [p.detach() for p in model.parameters()]))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-12) and ends[0][0][-1] < ends[0][0][0]
    assert all(torch.allclose(a, b, atol=1e-12, rtol=0) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def test_four_numbers_a_step_are_kept_beside_inputs_and_outputs():
    tensors, _ = case((2, 50, 40))
    leaves = [t.requires_grad_() for t in tensors]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out, _ = egru(*leaves[:6], EGRUState(*leaves[6:]), surrogate=Triangle(), kernels="native")
    known = {t.data_ptr() for t in (*leaves, *out)}
    assert sum(t.numel() for t in kept if t.data_ptr() not in known) == 4 * out.y.numel()


def test_a_second_backward_pass_gives_the_same():
    tensors, _ = case((2, 5, 8))
    leaves = [t.requires_grad_() for t in tensors]
    out, _ = egru(*leaves[:6], EGRUState(*leaves[6:]), surrogate=Triangle(), kernels="native")
    loss = out.y.square().sum()
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(once, torch.autograd.grad(loss, leaves), strict=True))


def test_the_last_state_holds_no_more_than_itself():
    tensors, _ = case((2, 50, 8))
    _, state = egru(*tensors[:6], surrogate=Triangle(), kernels="native")
    assert all(part.untyped_storage().nbytes() == 2 * 8 * part.element_size() for part in state)


@pytest.mark.parametrize("zoneout", [0.0, 0.2])
@pytest.mark.parametrize("steps", [1, 6])
def test_a_counter_is_told_what_the_reference_does(zoneout, steps):
    torch.manual_seed(0)
    layer, x = EGRU(5, 7, zoneout=zoneout, thr_mean=0.1), torch.randn(2, steps, 5)
    state = EGRUState(*(torch.randn(2, 7).clamp(min=0) for _ in range(3)))
    for given in (None, state):
        for kind in ("DENSE", "GRADED"):
            seen = count(layer, x, given, kind=kind, kernels="reference").without_bytes()
            assert count(layer, x, given, kind=kind).without_bytes() == seen
            assert seen.operators["recurrent_kernel"].macs < seen.operators["recurrent_kernel"].dense_macs


def test_native_runs_c_or_says_why_not(monkeypatch):
    calls, in_c = [], native.egru
    monkeypatch.setattr(native, "egru", lambda *args, **options: calls.append(1) or in_c(*args, **options))
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    tensors, _ = case((2, 3, 4))
    x, *parameters = tensors[:6]
    egru(x, *parameters, surrogate=Triangle())
    assert len(calls) == 1, "auto takes it"
    egru(x, *parameters, surrogate=Relaxed(Triangle()))
    with torch.autocast("cpu", torch.bfloat16):
        egru(x, *parameters, surrogate=Triangle())
        with pytest.raises(UnsupportedError, match="egru kernels: expected products of the tensors' own type, got aut"):
            egru(x, *parameters, surrogate=Triangle(), kernels="native")
    with pytest.raises(UnsupportedError, match="expected a surrogate whose spike is the step, got Relaxed"):
        egru(x, *parameters, surrogate=Relaxed(Triangle()), kernels="native")
    with pytest.raises(UnsupportedError, match="expected all float32 or all float64"):
        egru(x, *parameters, EGRUState(*torch.zeros(3, 2, 4)), surrogate=Triangle(), kernels="native")
    assert len(calls) == 1


@pytest.mark.parametrize("surrogate", [Triangle(), ATan()])
def test_it_runs_in_c_inside_what_torch_compiles(surrogate, monkeypatch):
    calls, made = [], native.function
    monkeypatch.setattr(native, "function", lambda name, *types: calls.append(name) or made(name, *types))
    tensors, weights = case((2, 6, 5))

    def layer(*tensors):
        trajectory, state = egru(*tensors[:6], EGRUState(*tensors[6:]), surrogate=surrogate, kernels="native")
        return *trajectory, *state

    results = []
    for way in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in tensors]
        outputs = way(*leaves)
        loss = sum((w * part).sum() for w, part in zip(weights, outputs, strict=True))
        results.append((*outputs, *torch.autograd.grad(loss, leaves)))
        assert "egru_forward_f64" in calls and "egru_backward_f64" in calls
        calls.clear()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_operators_keep_torchs_rules():
    tensors, _ = case((2, 6, 5))
    for kept in (None, torch.rand(2, 6, 5) < 0.5):
        y, c, o, _, gates, q_g = native.egru_forward(*tensors, kept, 0.2)
        torch.library.opcheck(native.egru_forward.operator, (*tensors, kept, 0.2))
        given = (tensors[2], tensors[5], tensors[7], kept, gates, q_g, y, c, o)
        gradients = (torch.ones_like(y), None, None, None)
        torch.library.opcheck(native.egru_backward.operator, (*given, None, *gradients, 0.2, 0.7, 1.0))
    torch.library.opcheck(native.egru_weight_gradient.operator, (y.flatten(0, 1), gates.flatten(0, 1)))


def test_what_is_added_may_be_of_another_type():
    tensors = from_product(case((2, 3, 4))[0])
    tensors[0] = tensors[0].float()
    run, _ = egru(*tensors[:6], EGRUState(*tensors[6:]), surrogate=Triangle())
    assert run.y.dtype == torch.float64


def test_a_state_of_another_type_is_named():
    layer = EGRU(3, 4).double()
    with pytest.raises(
        ShapeError, match="egru: expected .* of one type, or autocast, got torch.float32, torch.float64"
    ):
        layer(torch.zeros(1, 2, 3, dtype=torch.float64), layer.initial_state(1, dtype=torch.float32))
