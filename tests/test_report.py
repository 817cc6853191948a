"""The geometry of the report's charts: bars that add up to the tally, dots and ranges on a logarithmic axis."""

import pytest

from rheobase.backends import price
from rheobase.backends.counting.table import BYTES, WORK
from rheobase.backends.counting.target import Interval
from rheobase.backends.report import ReportModel, _beside, _layer_bills, _ranges, _stack
from rheobase.spiking import Counts, Tally

TALLY = Tally(
    2,
    {
        "blocks.0.att.key": Counts(macs=60, dense_macs=80, weight_bytes=240),
        "blocks.0": Counts(adds=20, transcendentals={"exp": 6, "tanh": 2}, state_bytes=12),
        "blocks.10.lif2": Counts(comparisons=8, products=4, activation_bytes=40),
        "head": Counts(acs=100, dense_macs=200, weight_bytes=400),
    },
)


def model(name: str, tally: Tally, *bills) -> ReportModel:
    return ReportModel(name=name, parameters=1, log=(), evaluation={}, layers=(), tally=tally, bills=bills)


def test_the_bars_of_a_layer_hold_all_that_its_operators_did():
    (name, rows), _ = _stack([model("a", TALLY), model("b", Tally())], "Operations", WORK)["groups"]
    assert name == "a" and [(row["layer"], row["total"]) for row in rows] == [
        ("blocks.0", 44),
        ("blocks.10", 6),
        ("head", 50),
    ]
    assert [(kind, size) for *_, kind, size in rows[0]["parts"]] == [
        ("MACs", 30),
        ("additions", 10),
        ("transcendentals", 4),
    ]
    for row in rows:
        at = 0
        for _, x, width, _, size in row["parts"]:
            assert x == pytest.approx(at) and width == pytest.approx(100 * size / 50)
            at += width
    stack = _stack([model("a", TALLY)], "Bytes", BYTES)
    assert sum(row["total"] for row in stack["groups"][0][1]) == 2 * 173
    assert [kind for _, kind in stack["legend"]] == ["weights", "state", "activations"]


def test_the_layers_of_a_bill_add_up_to_it():
    whole = price(TALLY, "horowitz-45nm")
    (name, layers), (_, nothing) = _layer_bills(whole.target, [model("a", TALLY), model("b", Tally(1))])
    assert name == "a" and [layer for layer, _ in layers] == ["blocks.0", "blocks.10", "head"] and nothing == []
    for field in ("formula_joules", "dense_joules", "priced_joules"):
        parts = [getattr(bill, field) or Interval(0, 0, 0) for _, bill in layers]
        for end in ("low", "central", "high"):
            assert sum(getattr(p, end) for p in parts) == pytest.approx(
                getattr(getattr(whole, field), end), rel=1e-9, abs=0
            )


def test_layers_of_which_no_product_is_counted_are_unknown():
    whole = Tally(1, {"head": Counts(adds=3)}, ("quantized.linear",))
    ((_, [(layer, bill)]),) = _layer_bills(price(whole, "horowitz-45nm").target, [model("a", whole)])
    assert layer == "head" and bill.formula_joules is bill.dense_joules is None and bill.priced_joules.central > 0


def test_models_beside_each_other_are_told_by_their_own_tokens():
    short, long = (Tally(tokens, {"head": Counts(macs=10 * tokens, dense_macs=20 * tokens)}) for tokens in (100, 1000))
    models = [model(name, tally, price(tally, "horowitz-45nm")) for name, tally in (("a", short), ("b", long))]
    beside = _beside(models[0].bills[0], models)
    assert beside["names"] == ["a", "a, all dense", "b"]
    assert [x.central for x, _ in beside["rows"]["formula"]] == pytest.approx([0.046, 0.092, 0.046])


def test_ranges_lie_on_decades_and_only_where_products_have_a_price():
    names = ("horowitz-45nm", "spinnaker2", "odin", "spinnaker2-mla")
    bills = [price(TALLY, name) for name in names]
    ranges = _ranges(bills)
    assert [title for title, _ in ranges["rows"]] == [bills[i].target.title for i in (0, 1, 3)]
    places = [x for x, _ in ranges["ticks"]]
    steps = {round(b - a, 9) for a, b in zip(places, places[1:], strict=False)}
    assert places[0] == 0 and places[-1] == 100 and len(steps) == 1
    for _, marks in ranges["rows"]:
        for _, low, central, high, joules in marks:
            assert 0 <= low <= central <= high <= 100
            decades = (high - low) / steps.copy().pop()
            assert joules.high / joules.low == pytest.approx(10**decades)
    (_, *_, products) = ranges["rows"][0][1][1]
    assert products.central == pytest.approx(bills[0].formula_joules.central * 1e9 / 2)
    assert _ranges([price(TALLY, "odin")]) is None
