"""Every operator of the counter's table against a count by hand, and the laws that all counts obey."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rheobase.backends import count
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking import LIF
from rheobase.spiking.errors import ConfigError, ShapeError
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY

STEPS, BATCH, SIZES = 16, 4, (20, 30, 10)


class MLP(nn.Module):
    """Two linear layers, each before LIF units: 20 -> 30 -> 10."""

    def __init__(self, bias):
        super().__init__()
        self.l1, self.n1 = nn.Linear(SIZES[0], SIZES[1], bias=bias), LIF(SIZES[1], theta=0.3)
        self.l2, self.n2 = nn.Linear(SIZES[1], SIZES[2], bias=bias), LIF(SIZES[2], theta=0.3)

    def forward(self, x):
        return self.n2(self.l2(self.n1(self.l1(x))[0]))[0]


def spikes_by_hand(x, linear):
    """LIF units with theta 0.3 and hard reset, in NumPy, from one linear layer: [B, T, D] -> spikes [B, T, H]."""
    weight = linear.weight.detach().numpy()
    bias = 0.0 if linear.bias is None else linear.bias.detach().numpy()
    v, out = np.zeros((x.shape[0], weight.shape[0])), []
    for t in range(x.shape[1]):
        h = v + (x[:, t] @ weight.T + bias - v) / 2.0
        s = h - 0.3 >= 0
        v = np.where(s, 0.0, h)
        out.append(s)
    return np.stack(out, 1)


INPUTS = {
    "binary": (BINARY, False, lambda r: (r > 0.3).double()),
    "binary, biases": (BINARY, True, lambda r: (r > 0.3).double()),
    "analogue": (DENSE, False, lambda r: r),
    "ternary": (TERNARY, False, lambda r: (r > 0.4).double() - (r < -0.4).double()),
    "graded": (GRADED, False, lambda r: 2 * (r > 0.3).double()),
    "all zero": (BINARY, False, lambda r: 0.0 * r),
}


@pytest.mark.parametrize("name", INPUTS)
def test_six_inputs_of_a_lif_network_by_hand(name):
    kind, bias, make = INPUTS[name]
    torch.manual_seed(0)
    net = MLP(bias).double()
    x = make(torch.randn(BATCH, STEPS, SIZES[0]).double())
    hidden = spikes_by_hand(x.numpy(), net.l1)
    tally = count(net, x, kind=kind, strict=True)
    n, steps = int((x != 0).sum()), BATCH * STEPS
    first = x.numel() * SIZES[1] if kind == DENSE else n * SIZES[1]
    l1, l2 = tally.operators["l1"], tally.operators["l2"]
    assert (l1.macs, l1.acs) == ((0, first) if kind in (BINARY, TERNARY) else (first, 0))
    assert (l2.macs, l2.acs) == (0, int(hidden.sum()) * SIZES[2])
    assert (l1.dense_macs, l2.dense_macs) == (steps * 600, steps * 300)
    assert (l1.adds, l2.adds) == ((steps * 30, steps * 10) if bias else (0, 0))
    assert (l1.deliveries, l2.deliveries) == (0 if kind == DENSE else n, int(hidden.sum()))
    for path, units in (("n1", 30), ("n2", 10)):
        neurons = tally.operators[path]
        assert (neurons.state_updates, neurons.comparisons) == (steps * units,) * 2, "silent ones included"
        assert neurons.transcendentals == {"division": steps * units} and neurons.products == steps * units
        assert neurons.adds == 4 * steps * units, "leak 2, threshold 1, reset 1"
    reached = (x != 0).any(-1).sum().item() if kind != DENSE and not bias else steps
    assert tally.operators["n1"].event_updates == reached * 30
    assert tally.operators["n2"].event_updates == (steps if bias else int(hidden.any(-1).sum())) * 10
    assert tally.operators["n1"].events == hidden.sum() and tally.tokens == steps


W, X = torch.randn(5, 3), torch.randn(4, 5)


class Double(torch.autograd.Function):
    """A function of one's own, with a product inside."""

    @staticmethod
    def forward(ctx, x):
        return x @ W

    @staticmethod
    def backward(ctx, g):
        return g @ W.t()


class Rows(nn.Module):
    """The sum of some rows of a matrix: a product with events by another road."""

    def __init__(self, axis=None):
        super().__init__()
        self.weight, self.axis = nn.Parameter(torch.randn(5, 3)), axis

    def forward(self, i):
        return (self.weight[i] if self.axis is None else self.weight.index_select(self.axis, i)).sum(0)


BY_HAND = {
    "nn.Linear": (nn.Linear(5, 3), X, {"macs": 60, "adds": 12}),
    "F.linear": (lambda x: F.linear(x, W.t()), X, {"macs": 60}),
    "@": (lambda x: x @ W, X, {"macs": 60}),
    "@ of vectors": (lambda x: x[0] @ x[1], X, {"macs": 5}),
    "matrix @ vector": (lambda x: W.t() @ x[0], X, {"macs": 15}),
    "matrix @ vector, and a vector": (lambda x: torch.addmv(x[0, :3], W.t(), x[0]), X, {"macs": 15, "adds": 3}),
    "batched @": (lambda x: x.view(2, 2, 5) @ W, X, {"macs": 60}),
    "baddbmm": (
        lambda x: torch.baddbmm(x.new_ones(2, 2, 2), x.view(2, 2, 5), x.view(2, 5, 2)),
        X,
        {"macs": 40, "adds": 8},
    ),
    "einsum": (lambda x: torch.einsum("bi,io->bo", x, W), X, {"macs": 60}),
    "autograd.Function": (Double.apply, X, {"macs": 60}),
    "sparse.mm": (lambda x: torch.sparse.mm(x.to_sparse(), W), X.relu(), {"macs": 3 * int((X > 0).sum())}),
    "gather and add": (lambda i: W[i].sum(0), torch.tensor([0, 2, 3]), {"adds": 6}),
    "rows of a parameter": (Rows(), torch.tensor([0, 2, 3]), {"adds": 6, "rows": 3, "weight_bytes": 36}),
    "rows by an axis": (Rows(axis=0), torch.tensor([0, 2, 3]), {"adds": 6, "rows": 3, "weight_bytes": 36}),
    "columns by an axis": (Rows(axis=1), torch.tensor([0, 2]), {"adds": 8, "rows": 0, "weight_bytes": 40}),
    "index_add": (lambda x: torch.zeros(2, 5).index_add(0, torch.tensor([0, 1, 1, 0]), x), X, {"adds": 20}),
    "attention": (
        lambda x: F.scaled_dot_product_attention(*3 * [x[None, None]]),
        X,
        {"macs": 2 * 16 * 5, "exp": 16, "division": 16, "products": 16, "adds": 28, "comparisons": 12},
    ),
    "causal attention": (
        lambda x: F.scaled_dot_product_attention(*3 * [x[None, None]], is_causal=True),
        X,
        {"macs": 2 * 10 * 5, "exp": 10, "division": 10, "products": 10, "adds": 16, "comparisons": 6},
    ),
    "LayerNorm": (nn.LayerNorm(5), X, {"products": 60 + 8, "adds": 80 - 4, "rsqrt": 4}),
    "GroupNorm": (nn.GroupNorm(1, 5), X[..., None], {"products": 60 + 8, "adds": 80 - 4, "rsqrt": 4}),
    "BatchNorm": (nn.BatchNorm1d(5), X, {"products": 20, "adds": 20}),
    "InstanceNorm": (nn.InstanceNorm1d(4), X[None], {"products": 40 + 8, "adds": 60 - 4, "rsqrt": 4}),
    "BatchNorm of its own statistics": (
        nn.BatchNorm1d(5, track_running_stats=False),
        X,
        {"products": 60 + 10, "adds": 80 - 5, "rsqrt": 5},
    ),
    "embedding": (nn.Embedding(9, 3), torch.tensor([[1, 2, 8]]), {"rows": 3, "weight_bytes": 36}),
    "exp": (torch.exp, X, {"exp": 20}),
    "softmax": (lambda x: x.softmax(1), X, {"exp": 20, "division": 20, "adds": 36, "comparisons": 16}),
    "log_softmax": (lambda x: x.log_softmax(1), X, {"exp": 20, "log": 4, "adds": 56, "comparisons": 16}),
    "cumsum": (lambda x: x.cumsum(1), X, {"adds": 16}),
    "elementwise product": (lambda x: x * x, X, {"products": 20}),
    "sum": (torch.sum, X, {"adds": 19}),
    "mean": (lambda x: x.mean(1), X, {"adds": 16, "products": 4}),
    "largest": (lambda x: x.amax(1), X, {"comparisons": 16}),
    "clamp": (lambda x: x.clamp(-1, 1), X, {"comparisons": 40}),
    "relu": (torch.relu, X, {"comparisons": 20}),
    "square": (lambda x: x**2, X, {"products": 20}),
    "power of two": (lambda x: 2**x, X, {"exp": 20, "products": 20}),
    "gelu": (F.gelu, X, {"erf": 20, "products": 60, "adds": 20}),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), X, {"tanh": 20, "products": 120, "adds": 40}),
    "SiLU": (F.silu, X, {"sigmoid": 20, "products": 20}),
    "leaky relu": (F.leaky_relu, X, {"comparisons": 20, "products": 20}),
    "hardtanh": (F.hardtanh, X, {"comparisons": 40}),
    "ELU": (F.elu, X, {"comparisons": 20, "exp": 20, "adds": 20}),
    "softplus": (F.softplus, X, {"comparisons": 20, "exp": 20, "adds": 20, "log": 20}),
    "log sigmoid": (F.logsigmoid, X, {"exp": 20, "adds": 20, "log": 20}),
    "between": (lambda x: torch.lerp(x, 2 * x, x), X, {"products": 20 + 20, "adds": 40}),
    "product and sum": (lambda x: torch.addcmul(x, x, x), X, {"products": 20, "adds": 20}),
    "quotient and sum": (lambda x: torch.addcdiv(x, x, x), X, {"division": 20, "adds": 20}),
    "variance": (lambda x: x.var(1), X, {"products": 20 + 8, "adds": 16 + 20 + 16}),
    "cube": (lambda x: x**3, X, {"products": 40}),
    "roots": (lambda x: x.abs() ** 0.5 + x.abs() ** -0.5, X, {"sqrt": 20, "rsqrt": 20, "adds": 20}),
    "scaled sum": (lambda x: torch.add(x, x, alpha=0.5), X, {"adds": 20, "products": 20}),
    "scaled addmm": (
        lambda x: torch.addmm(x.new_ones(4, 3), x, W, beta=0.5, alpha=0.3),
        X,
        {"macs": 60, "adds": 12, "products": 24},
    ),
    "max pool": (nn.MaxPool2d(2), X.view(1, 1, 4, 5), {"comparisons": 12}),
    "max pool, padded": (nn.MaxPool2d(3, 1, padding=1), X.view(1, 1, 4, 5), {"comparisons": 10 * 13 - 20}),
    "average pool, padded": (
        nn.AvgPool2d(3, 1, padding=1, count_include_pad=False),
        X.view(1, 1, 4, 5),
        {"adds": 10 * 13 - 20, "products": 20},
    ),
    "max pool, sizes rounded up": (nn.MaxPool1d(2, ceil_mode=True), X, {"comparisons": 4 * 2}),
    "put and add": (
        lambda x: torch.zeros(4).index_put((torch.tensor([0, 1, 1]),), x[0, :3], accumulate=True),
        X,
        {"adds": 3},
    ),
    "long integers": (lambda x: x @ torch.ones(5, 3, dtype=torch.int64), (10 * X).long(), {"macs": 60}),
    "softmax of a number": (lambda x: x.sum().softmax(0), X, {"adds": 20, "exp": 1, "division": 1}),
    "average pool": (nn.AvgPool2d(2), X.view(1, 1, 4, 5), {"adds": 12, "products": 4}),
    "convolution": (
        nn.Conv2d(1, 2, 3, padding=1),
        X.view(1, 1, 4, 5),
        {"macs": 2 * (3 * 4 - 2) * (3 * 5 - 2), "adds": 40},
    ),
    "convolution, padded before": (
        nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(1, 2, 3, bias=False)),
        X.view(1, 1, 4, 5),
        {"macs": 2 * (1 + 2 + 3 + 3) * (3 + 3 + 3 + 2)},
    ),
    "convolution, padded twice before": (
        nn.Sequential(nn.ZeroPad2d(1), nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3, bias=False)),
        X.view(1, 1, 4, 5),
        {"macs": 2 * (1 + 2 + 3 + 3 + 2 + 1) * (1 + 2 + 3 + 3 + 3 + 2 + 1)},
    ),
    "largest of two": (lambda x: torch.max(x, -x), X, {"comparisons": 20}),
    "strided, grouped": (nn.Conv1d(4, 4, 2, stride=2, groups=2, bias=False), X[None], {"macs": 2 * 2 * 2 * 2 * 4 // 2}),
    "transposed": (nn.ConvTranspose1d(4, 6, 2, stride=2, groups=2, bias=False), X[None], {"macs": 20 * 3 * 2}),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_operator_by_hand(name):
    """Every field that is not given is 0, but for bytes and the rows and dense products that go with products."""
    function, x, wanted = BY_HAND[name]
    module = function if isinstance(function, nn.Module) else _module(function)
    total = count(module, x, strict=True).total
    done = {f: getattr(total, f) for f in ("macs", "acs", "products", "adds", "comparisons", "state_updates", "events")}
    done |= dict(total.transcendentals)
    assert {k: v for k, v in done.items() if v} == {
        k: v for k, v in wanted.items() if k not in ("rows", "weight_bytes")
    }
    for field in ("rows", "weight_bytes"):
        assert wanted.get(field) in (None, getattr(total, field))
    assert total.activation_bytes > 0


def _module(function):
    module = nn.Module()
    module.forward = function
    return module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_change_bytes_alone(dtype):
    net, x = nn.Sequential(nn.Linear(5, 3), nn.Sigmoid(), nn.LayerNorm(3)).to(dtype), X.to(dtype)
    total, wide = count(net, x).total, count(net.double(), X.double()).total
    assert total.without_bytes() == wide.without_bytes()
    assert total.weight_bytes * 8 == wide.weight_bytes * x.element_size()


def test_int8_products():
    x = torch.randint(-9, 9, (20, 16), dtype=torch.int8)
    weight = torch.randint(-9, 9, (16, 8), dtype=torch.int8)
    total = count(_module(lambda x: torch._int_mm(x, weight)), x, strict=True).total
    assert total.macs == 20 * 16 * 8 and total.weight_bytes == 20 * 16 * 8


def _written(spikes, x):
    spikes.view(-1).add_(x.flatten())
    return spikes


PRODUCTS = {
    "a test": (lambda x: (x > 0).float(), "acs", lambda x: x > 0),
    "a sign": (lambda x: x.sign(), "acs", lambda x: x != 0),
    "heaviside": (lambda x: torch.heaviside(x, torch.tensor(0.0)), "acs", lambda x: x > 0),
    "a scaled test": (lambda x: 3 * (x > 0).float() / 2, "acs", lambda x: x > 0),
    "a difference of tests": (lambda x: (x > 1).float() - (x < -1).float(), "acs", lambda x: x.abs() > 1),
    "a sum of tests": (lambda x: (x > 0).float() + (x > 1).float(), "macs", lambda x: x > 0),
    "a gated value": (lambda x: x * (x > 0), "macs", lambda x: x > 0),
    "a residual": (lambda x: x + (x > 0).float(), "macs", lambda x: x < 99),
    "half a difference": (lambda x: torch.sub((x > 0).float(), (x > 1).float(), alpha=0.5), "macs", lambda x: x > 0),
    "times a datum": (lambda x: (x > 0).float() * x.mean(), "macs", lambda x: x > 0),
    "padded": (lambda x: F.pad((x > 0).float(), (1, 0))[:, 1:], "acs", lambda x: x > 0),
    "padded with a value": (lambda x: F.pad((x > 0).float(), (1, 0), value=5.0)[:, 1:], "macs", lambda x: x < 99),
    "a step late": (lambda x: torch.cat([x.new_zeros(2, 5)[:1], (x > 0).float()[:-1]]), "acs", lambda x: x[:-1] > 0),
    "after ones": (lambda x: torch.cat([x.new_ones(1, 5), (x > 0).float()[:-1]]), "macs", lambda x: x < 99),
    "after zeros that were written": (
        lambda x: torch.cat([x.new_zeros(1, 5).add_(x[:1]), (x > 0).float()[:-1]]),
        "macs",
        lambda x: x < 99,
    ),
    "written through a view": (lambda x: _written((x > 0).float(), x), "macs", lambda x: x < 99),
    "one less": (lambda x: 1 - (x > 0).float(), "macs", lambda x: x < 99),
    "lucky values": (lambda x: x.clamp(0, 1).round(), "macs", lambda x: x < 99),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_an_operand_is_follows_from_what_made_it(name):
    make, field, events = PRODUCTS[name]
    x = torch.randn(4, 5)
    total = count(_module(lambda x: make(x) @ W), x).total
    assert {"macs": total.macs, "acs": total.acs} == {"macs": 0, "acs": 0} | {field: 3 * int(events(x).sum())}


def test_products_of_two_event_operands_are_the_pairs_that_meet():
    q, k = (torch.rand(2, 6, 5) > 0.6 for _ in range(2))
    total = count(_module(lambda x: (x > 0.5).float() @ k.float().transpose(1, 2)), q.float()).total
    assert total.acs == 6 * int(q.sum()), "k came ready made: nobody said that it holds events"
    total = count(_module(lambda x: (x > 0.5).float() @ (x > 0.5).float().transpose(1, 2)), q.float()).total
    assert total.acs == int(torch.einsum("bnk,bmk->", q.double(), q.double()))


@given(st.integers(0, 2**31), st.sampled_from([1, 2]), st.sampled_from([(1, 3), (2, 2)]), st.booleans())
def test_convolutions_of_events_by_brute_force(seed, stride, shape, bias):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(2, shape[0] * 2, 6, 5, generator=generator) > 0.7).float()
    layer = nn.Conv2d(shape[0] * 2, 4, 3, stride=stride, padding=1, groups=shape[0], bias=bias)
    total = count(layer, x, kind=BINARY).total
    ones = nn.Conv2d(shape[0] * 2, 4, 3, stride=stride, padding=1, groups=shape[0], bias=False)
    nn.init.ones_(ones.weight)
    assert (total.acs, total.macs) == (int(ones(x).sum()), 0) and total.deliveries == int(x.sum())
    assert total.dense_macs == int(ones(torch.ones_like(x)).sum())


def spikegpt():
    torch.manual_seed(0)
    config = SpikeGPTConfig(vocabulary=13, embedding=8, depth=2, placement="spike_fed", dropout=0.0)
    model = SpikeGPT(config).eval()
    model.wake(torch.randint(13, (2, 20)))
    return model


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.integers(0, 9))
def test_tallies_add_over_time_and_batch(seed, cut):
    model, tokens = spikegpt(), torch.randint(13, (3, 9), generator=torch.Generator().manual_seed(seed))
    whole = count(model, tokens)
    with torch.no_grad():
        _, state = model(tokens[:, :cut])
    assert count(model, tokens[:, :cut]) + count(model, tokens[:, cut:], state) == whole
    assert sum((count(model, row[None]) for row in tokens), start=count(model, tokens[:0])) == whole


@given(st.integers(0, 2**31))
def test_tallies_add_over_layers(seed):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    layers = nn.Linear(5, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)
    total, parts, value = count(nn.Sequential(*layers), x).total, [], x
    for layer in layers:
        parts.append(count(layer, value).total)
        value = layer(value).detach()
    assert sum(parts[1:], start=parts[0]) == total


@given(st.integers(0, 2**31), st.floats(0.01, 100), st.sampled_from([BINARY, TERNARY, GRADED, DENSE]))
def test_values_times_a_constant_are_counted_the_same(seed, factor, kind):
    least = 0 if kind == BINARY else -1
    x = torch.randint(least, 2, (4, 5), generator=torch.Generator().manual_seed(seed)).float()
    layer = nn.Linear(5, 3)
    once = count(layer, x, kind=kind).total
    assert count(layer, factor * x, kind=kind).total == once
    scaled = count(_module(lambda x: layer(factor * x)), x, kind=kind).total
    assert (scaled.macs, scaled.acs) == (once.macs, once.acs)


@pytest.mark.parametrize(("kind", "wanted"), [(BINARY, "0 and one number, got"), (TERNARY, "and its opposite, got")])
def test_values_that_are_none_of_the_kind(kind, wanted):
    x = torch.tensor([[0.0, 1, -1, 2, 0]])
    with pytest.raises(ShapeError, match=f"count: expected {kind} values, .*{wanted} others"):
        count(nn.Linear(5, 3), x, kind=kind)
    assert count(nn.Linear(5, 3), x.sign() * (kind == TERNARY or x > 0), kind=kind).acs == (9 if kind == TERNARY else 6)


@pytest.mark.parametrize("pack", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_kinds_of_sparse_values(pack):
    x = torch.eye(5)
    assert count(nn.Linear(5, 3), pack(x), kind=DENSE).dense_macs
    assert count(nn.Linear(5, 3), pack(2 * x), kind=BINARY).acs
    with pytest.raises(ShapeError, match="count: expected BINARY values"):
        count(nn.Linear(5, 3), pack(torch.diag(torch.arange(5.0))), kind=BINARY)


def test_a_kind_that_is_none():
    with pytest.raises(ConfigError, match="count kind: expected one of BINARY, TERNARY, GRADED, DENSE, got 'spikes'"):
        count(nn.Linear(5, 3), X, kind="spikes")
