"""What stays an event on its way to a product, and work that a counter could miss."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from rheobase.backends import count
from rheobase.backends.counting import count_phases
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError

X = torch.tensor([[-1.0, 0.2, 0.7, 1.5], [0.9, -0.3, 0.1, -2.0]])
"""5 above 0, 3 of them above 0.5"""


class Fed(nn.Module):
    """A linear layer that reads a function of the input."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 3, bias=False), function

    def forward(self, x):
        return self.linear(self.function(x))


def up(x):
    return (x > 0).float()


def far(x):
    return (x > 0.5).float()


def recorded(part):
    """Rows written one by one into zeros."""

    def record(x):
        rows = torch.zeros(2, 4)
        for i in range(2):
            rows[i] = part(x, i)
        return rows

    return record


def apart(*pairs):
    return pytest.mark.parametrize(("function", "n"), [pytest.param(f, n, id=name) for name, f, n in pairs])


@apart(
    ("difference", lambda x: up(x) - far(x), 2),
    ("of equal sizes", lambda x: 2 * up(x) - far(x) * 2.0, 2),
    ("by a quotient", lambda x: up(x) / 4 - 0.25 * far(x), 2),
    ("scaled after", lambda x: (up(x) - far(x)) * 0.1, 2),
    ("a tensor's number", lambda x: up(x) * torch.tensor(2.0), 5),
    ("divided by one", lambda x: up(x) / torch.tensor(2.0), 5),
    ("joined", lambda x: torch.cat([up(x)[:, :2], far(x)[:, 2:]], 1), 4),
    ("copied", lambda x: torch.zeros(2, 4).copy_(up(x)), 5),
    ("recorded", recorded(lambda x, i: up(x)[i]), 5),
)
def test_these_are_added(function, n):
    total = count(Fed(function), X, strict=True).total
    assert (total.acs, total.macs, total.deliveries) == (3 * n, 0, n)


@apart(
    ("difference of other sizes", lambda x: up(x) - 0.5 * far(x), 5),
    ("of two factors", lambda x: 2 * up(x) - 3 * far(x), 5),
    ("by alpha", lambda x: torch.sub(up(x), far(x), alpha=0.5), 5),
    ("of a negative", lambda x: up(x) - -far(x), 5),
    ("in place", lambda x: up(x).mul_(3.0) - far(x), 5),
    ("joined sizes", lambda x: torch.cat([up(x)[:, :2], 2 * far(x)[:, 2:]], 1), 4),
    ("sum", lambda x: up(x) + far(x), 5),
    ("over time", lambda x: up(x)[:, None].repeat(1, 3, 1).mean(1), 5),
    ("pooled", lambda x: nn.functional.avg_pool2d(up(x)[None, None], 1)[0, 0], 5),
    ("values recorded last", recorded(lambda x, i: x[i] if i else up(x)[i]), 8),
    ("values recorded first", recorded(lambda x, i: up(x)[i] if i else x[i]), 8),
)
def test_these_are_multiplied(function, n):
    total = count(Fed(function), X, strict=True).total
    assert (total.acs, total.macs) == (0, 3 * n)


def test_a_number_kept_beside_the_parameters_is_a_constant():
    net = Fed(lambda x: up(x) * net.gain)
    net.gain = torch.tensor(1.5)
    assert count(net, X, strict=True).acs == 3 * 5


class Threads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x):
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(lambda part: part(x), (self.a, self.b)))


def test_what_a_model_runs_in_threads_of_its_own_is_named():
    assert count(Threads(), X).uncounted == ("a in another thread", "b in another thread")
    with pytest.raises(UnsupportedError, match="got a in another thread, b in another thread; count without strict"):
        count(Threads(), X, strict=True)


@pytest.mark.parametrize("learns", [False, True])
def test_a_weight_that_changes_as_it_runs_is_work(learns):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            for row in x.split(1):
                self.weight.mul_(0.9)
                y = row @ self.weight
                if learns:
                    self.weight.add_(row.t() @ y)
            return y

    net, halves = Changing(), Changing()
    total = count(net, X, strict=True).total
    assert (total.products, total.adds, total.dense_macs) == (2 * 12, 2 * 12 * learns, 2 * 12 * (1 + learns))
    assert sum(count(halves, row, strict=True).products for row in X.split(1)) == total.products


class Scanned(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return scan(lambda carry, row: (carry + row, self.linear(row)), torch.zeros(4), x)[1]


def test_operators_made_of_functions_are_named():
    assert count(Scanned(), X).uncounted == ("scan",)
    with pytest.raises(UnsupportedError, match="operators with a rule alone, got scan"):
        count(Scanned(), X, strict=True)


@pytest.mark.parametrize("placement", ["reference", "spike_fed"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model_is_counted_as_it_was(placement, warm):
    model = SpikeGPT(SpikeGPTConfig(vocabulary=9, embedding=8, depth=1, placement=placement)).eval()
    tokens = torch.arange(8)[None]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if warm:
        compiled(tokens)
    assert count(compiled, tokens).total == count(model, tokens).total
    net = Fed(up)
    assert count(torch.compile(net, fullgraph=True, backend="eager"), X).total == count(net, X).total


def test_kernels_that_count_does_not_choose_are_refused():
    with pytest.raises(ConfigError, match="count kernels: expected auto or reference, got 'triton'"):
        count(Fed(up), X, kernels="triton")


def test_phases_need_a_state():
    with pytest.raises(ShapeError, match=r"count_phases model: expected \(logits, state\), got Tensor; give a model"):
        count_phases(Fed(up), X, 4)


def test_a_neuron_of_spikingjelly_without_a_membrane_is_named():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    net = nn.Sequential(neuron.PSN(T=2), nn.Linear(4, 3))
    nn.init.constant_(net[0].bias, 100.0)
    tally = count(net, X.view(2, 1, 4))
    assert tally.uncounted == ("state of PSN",) and (tally.events, tally.acs) == (8, 24)
