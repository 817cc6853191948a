"""Counts checked by hand."""

import pytest
import torch
from torch import nn

from rheobase.backends import count, price
from rheobase.spiking import EGRU, LIF, Counts, Tally
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.tally import BINARY, GRADED, TERNARY, mark


class Marked(nn.Module):
    """Marks its input, and multiplies it by a matrix."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.linear(mark(x, self.kind))


X = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("kind", "macs", "acs"), [(BINARY, 0, 6 * 3), (TERNARY, 0, 6 * 3), (GRADED, 6 * 3, 0), ("DENSE", 12 * 3, 0)]
)
def test_a_product_is_counted_by_what_its_operand_was_declared_to_be(kind, macs, acs):
    """The same values, all 0 or 1, in each case: values never decide what counts as a spike."""
    total = count(Marked(kind), X).total
    assert (total.dense_macs, total.macs, total.acs) == (36, macs, acs)


def test_lif_then_linear_by_hand():
    """Two units, three steps, drive 3 and 0: unit 0 fires at every step (h = 1.5), unit 1 never."""
    net = nn.Sequential(LIF(2), nn.Identity())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.out = LIF(2), nn.Linear(2, 5)

        def forward(self, x):
            return self.out(self.lif(x)[0])

    x = torch.tensor([[[3.0, 0.0]] * 3])
    tally = count(Net(), x)
    lif, out = tally.operators["lif"], tally.operators["out"]
    assert (lif.events, lif.comparisons, lif.state_updates) == (3, 6, 6)
    assert (out.dense_macs, out.acs, out.macs, out.rows) == (3 * 2 * 5, 3 * 5, 0, 3)
    assert tally.tokens == 3 and tally.uncounted == ()
    assert count(net, x).acs == 0


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_an_operator_without_a_rule_is_named_and_not_a_silent_zero():
    tally = count(Call(torch.erfinv), X)
    assert tally.uncounted == ("aten.erfinv",)
    assert "not counted: aten.erfinv" in str(price(tally, "horowitz-45nm"))
    with pytest.raises(UnsupportedError, match="count: expected operators with a rule alone, got aten.erfinv"):
        count(Call(torch.erfinv), X, strict=True)
    assert count(Call(torch.sin), X, strict=True).transcendentals == {"sin": 12}


def test_fused_and_decomposed_recurrences_count_the_same():
    x = torch.randn(2, 7, 5)
    for cell, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
        net = cell(5, 6, batch_first=True)
        fused, decomposed = count(net, x).total, count(net.double(), x.double()).total
        assert fused.dense_macs == fused.macs == 2 * 7 * gates * 6 * (5 + 6)
        assert (fused.macs, fused.products, fused.transcendentals) == (
            decomposed.macs,
            decomposed.products,
            decomposed.transcendentals,
        )


def test_tallies_add():
    a = Tally(2, {"x": Counts(macs=3, transcendentals={"exp": 1})}, ("b",))
    b = Tally(5, {"x": Counts(macs=4, transcendentals={"tanh": 2}), "y": Counts(acs=1)}, ("a",))
    both = a + b
    assert (both.tokens, both.macs, both.acs, both.uncounted) == (7, 7, 1, ("a", "b"))
    assert both.transcendentals == {"exp": 1, "tanh": 2}
    assert sum([a, b]) == both


def test_writing_in_place_takes_the_mark_away():
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            s = mark((x > 0).float(), BINARY)
            s += 0.5
            return self.linear(s)

    total = count(Spoilt(), X).total
    assert (total.macs, total.acs) == (36, 0)


def test_weight_bytes_are_rows_and_biases():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(mark(x, BINARY))

    assert count(Net(), X).weight_bytes == (6 * 3 + 3 * 3) * 4
    lstm = count(nn.LSTM(5, 6, batch_first=True), torch.randn(2, 7, 5))
    assert lstm.weight_bytes == 14 * 24 * (5 + 6 + 2) * 4


def test_a_product_of_an_egru_trace_is_dense_from_the_first_step_on():
    """The trace of a silent unit still fades: it is no event, even where it starts from nothing."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.egru, self.out = EGRU(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.egru(x, whole=True)[0].trace)

    out = count(Net(), torch.randn(3, 7, 4)).operators["out"]
    assert (out.macs, out.dense_macs, out.deliveries) == (3 * 7 * 5 * 2,) * 2 + (0,)
