"""Bills by hand: intervals, what is unknown, and targets that cite every constant or do not load."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from rheobase.backends import price
from rheobase.backends.counting import Interval, load_target, overview, target_names
from rheobase.backends.counting.target import FOLDER, TERMS
from rheobase.spiking import Counts, Tally
from rheobase.spiking.errors import ConfigError, FormatError

CITED = 'unit = "pJ"\nsource = "here"\nconfidence = "none"\nnode = "1 nm"\nprecision = "int8"\nscope = "all"\n'


@pytest.fixture
def mine(tmp_path):
    """Writes a target of one's own."""

    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def near(interval: Interval):
    return pytest.approx(
        (interval.low, interval.central, interval.high), rel=1e-9, abs=0
    )  # its own 1e-12 is a joule too many


def test_a_bill_by_hand():
    tally = Tally(10, {"x": Counts(macs=1000, dense_macs=4000, acs=100, products=10, events=5, weight_bytes=8)})
    bill = price(tally, "horowitz-45nm")
    joules = {line.term: line.joules for line in bill.lines}
    assert near(joules["macs"]) == (4600e-12,) * 3 and near(joules["acs"]) == (90e-12,) * 3
    assert near(joules["weight_bytes"]) == (10e-12, 100e-12, 2600e-12), (
        "8 KB of SRAM, 1 MB, DRAM: 8 bytes are an access"
    )
    assert joules["events"] is None and bill.unpriced == ("events",)
    products = 4600e-12 + 90e-12 + 37e-12
    assert near(bill.priced_joules) == (products + 10e-12, products + 100e-12, products + 2600e-12)
    assert bill.formula_joules.central == pytest.approx(4690e-12)
    assert bill.dense_joules.central == pytest.approx(18400e-12)
    assert bill.traffic_bytes == 8


def test_published_figures_that_disagree_span_the_interval():
    tally = Tally(1, {"x": Counts(acs=1000, dense_macs=1000)})
    for name, *expected in (
        ("spinnaker2", 10e-9, 375e-9, 450e-9),
        ("truenorth", 2.3e-9, 2.5e-9, 26e-9),
        ("spinnaker1", 45e-9, 13.3e-6, 13.3e-6),
    ):
        assert near(price(tally, name).formula_joules) == tuple(expected)


def test_the_text_shows_intervals_unknowns_and_sources_within_a_terminal():
    tally = Tally(2, {"x": Counts(macs=8, dense_macs=8, acs=4, events=6, state_updates=2)}, ("aten.odd",))
    text = str(price(tally, "loihi1"))
    lines = text.splitlines()
    row = next(line for line in lines if "accumulates  " in line and "multiply" not in line).split()
    assert row == "accumulates 2 23.6 pJ 0.0472 0.0472 to 0.071 [1]".split()
    assert next(line for line in lines if "multiply-acc" in line).split() == ["multiply-accumulates", "4", "unknown"]
    assert "unknown here: multiply-accumulates" in text and "not counted: aten.odd" in text
    assert "idle power 0.104 W" in text and "depend on how long a token takes" in text
    assert "pre-silicon" in text and "14 nm" in text and max(map(len, lines)) <= 100
    assert "nan" not in text and "one figure" in str(price(tally, "horowitz-45nm"))


def test_the_table_has_every_interval_and_what_qualifies_it():
    table = json.loads(json.dumps(price(Tally(1, {"x": Counts(acs=1, macs=1)}), "truenorth").to_table()))
    macs, acs = table["lines"]
    assert macs["quantity"] is None and macs["joules"] is None and table["unpriced"] == ["macs"]
    assert acs["joules"] == {
        k: pytest.approx(v, abs=0) for k, v in (("low", 2.3e-12), ("central", 2.5e-12), ("high", 26e-12))
    }
    assert {"source", "confidence", "node", "precision", "scope", "unit"} <= set(acs["quantity"])
    assert table["idle_watts"]["central"] == 0.042 and table["formula_joules"] is None


def test_targets_side_by_side(mine):
    tally, without = Tally(1, {"x": Counts(acs=100, events=1)}), mine("[terms.products]\nvalue = 1.0\n" + CITED)
    lines = overview([price(tally, load_target(t)) for t in ("loihi1", without, "horowitz-45nm")]).splitlines()
    assert lines[1].split() == "loihi1 2.36 2.36 to 3.55 2.36 2.36 to 3.56 0 of 2".split()
    assert lines[2].split()[-3:] == ["1", "of", "2"] and max(map(len, lines)) <= 100
    assert lines[3] == "no price for its products: mine"


def test_where_no_product_that_ran_is_counted_its_energy_is_unknown():
    tally = Tally(1, {"x": Counts(adds=3)}, ("quantized.linear",))
    bill = price(tally, "horowitz-45nm")
    assert bill.formula_joules is bill.dense_joules is None and bill.priced_joules.central > 0
    assert str(bill).count("unknown") == 2 and "not counted: quantized.linear" in str(bill)
    assert overview([bill]).splitlines()[1:] == ["no product counted: horowitz-45nm", "not counted: quantized.linear"]
    some = price(Tally(1, {"y": Counts(macs=1, dense_macs=1)}, tally.uncounted), "horowitz-45nm")
    assert overview([some]).splitlines()[2:] == ["not counted: quantized.linear"]


@pytest.mark.parametrize("name", target_names())
def test_the_columns_of_a_bill_stand_apart(name):
    """Of figures as long as they come: each is read by itself."""
    counts = {term: 123_456_789 for term in ("macs", "acs", "adds", "comparisons", "products", "events")}
    bill = price(Tally(1, {"x": Counts(**counts, dense_macs=987_654_321)}), name)
    rows = {row[2:30].strip(): row[30:].split() for row in reversed(str(bill).splitlines())}
    for line in bill.lines:
        found = rows[TERMS[line.term]]
        assert found[0] == f"{line.count:,}"
        assert not line.quantity or " ".join(found[1:3]) == line.quantity.each


def test_a_machine_that_skips_no_zeros_is_billed_for_every_product(mine):
    """Events spare nothing there: 1,000 products of each, whatever the operands held."""
    tally = Tally(1, {"x": Counts(macs=100, dense_macs=1000), "y": Counts(acs=5, dense_macs=1000)})
    bill = price(tally, load_target(mine("dense = true\n[terms.macs]\nvalue = 2.0\n" + CITED)))
    assert [(line.term, line.count) for line in bill.lines] == [("macs", 2000)] and bill.unpriced == ()
    assert bill.formula_joules == bill.dense_joules and near(bill.dense_joules) == (4000e-12,) * 3
    assert price(tally, "spinnaker2-mla").formula_joules.central == pytest.approx(2000 * 0.97e-12)


def test_where_nothing_has_a_price_the_sum_is_unknown():
    bill = price(Tally(1, {"x": Counts(macs=3, weight_bytes=8)}), "odin")
    assert bill.priced_joules is None and bill.to_table()["priced_joules"] is None
    assert " 0 " not in str(bill) and "sum of what is priced                                  unknown" in str(bill)


@pytest.mark.parametrize("name", target_names())
def test_every_target_loads_and_cites(name):
    target = load_target(name)
    assert target.terms and target.note
    for q in (*target.terms.values(), *([target.idle_watts] if target.idle_watts else [])):
        assert all((q.source, q.confidence, q.node, q.precision, q.scope))
        assert q.value == q.central and 0 < q.interval.low <= q.interval.central <= q.interval.high
    given = tomllib.loads((FOLDER / f"{name}.toml").read_text())["terms"]
    assert given.keys() == target.terms.keys()
    assert price(Tally(1, {"x": Counts(acs=2, macs=3, dense_macs=9)}), target).lines


def test_the_known_targets_are_there_and_a_wrong_name_is_helped():
    assert {"horowitz-45nm", "spinnaker2", "spinnaker2-mla", "loihi1", "truenorth", "yan-22nm"} <= set(target_names())
    with pytest.raises(ConfigError, match="did you mean 'spinnaker2'"):
        load_target("spinaker2")


def test_a_whole_target_of_ones_own_loads(mine):
    target = load_target(mine("[terms.macs]\nlow = 1\nvalue = 2.0\nhigh = 4\n" + CITED))
    assert near(target.terms["macs"].interval) == (1e-12, 2e-12, 4e-12) and target.idle_watts is None


def test_each_unit_is_a_power_of_ten(mine):
    for unit, joules in (("J", 1), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9), ("pJ", 1e-12), ("fJ", 1e-15)):
        target = load_target(mine("[terms.macs]\nvalue = 2.0\n" + CITED.replace("pJ", unit)))
        assert near(target.terms["macs"].interval) == (2 * joules,) * 3
    for unit, watts in (("W", 1), ("mW", 1e-3), ("uW", 1e-6)):
        target = load_target(mine("[terms]\n[idle_watts]\nvalue = 2.0\n" + CITED.replace("pJ", unit)))
        assert near(target.idle_watts.interval) == (2 * watts,) * 3


def test_the_documented_target_loads(mine):
    text = (Path(__file__).parent.parent / "docs" / "energy.md").read_text()
    target = load_target(mine(re.search(r"```toml\n(.*?)```", text, re.S)[1]))
    assert near(target.terms["acs"].interval) == (10e-12, 12.5e-12, 30e-12)


@pytest.mark.parametrize("key", ["source", "confidence", "node", "precision", "scope", "unit", "value"])
def test_a_constant_that_lacks_a_key_does_not_load(mine, key):
    lines = ["[terms.macs]", "value = 1.0", *CITED.splitlines()]
    with pytest.raises(FormatError, match=f"terms.macs: expected a {key}"):
        load_target(mine("\n".join(line for line in lines if not line.startswith(key))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[terms.macs]\nvalue = 1.0\n" + CITED.replace('"here"', '"  "'), "a source"),
        (f"[terms.macs]\nvalue = {'9' * 400}\n" + CITED, "a value, and low and high if any, above 0"),
        ("[terms.macs]\nvalue = 1e-320\n" + CITED, "a value, and low and high if any, above 0"),
        ("[terms.macs]\nlow = 2.0\nvalue = 1.0\nhigh = 3.0\n" + CITED, "low <= value <= high"),
        ("[terms.macs]\nlow = 1.0\nvalue = 4.0\nhigh = 3.0\n" + CITED, "low <= value <= high"),
        ("[terms.macs]\nlow = 1.0\nvalue = 1.0\n" + CITED, "low and high together"),
        ("[terms.macs]\nvalue = 0.0\n" + CITED, "above 0"),
        ("[terms.macs]\nvalue = -1.0\n" + CITED, "above 0"),
        ("[terms.macs]\nvalue = inf\n" + CITED, "above 0"),
        ("[terms.macs]\nvalue = nan\n" + CITED, "above 0"),
        ("[terms.macs]\nvalue = true\n" + CITED, "above 0"),
        ("[terms.macs]\nvalue = 1.0\nnodes = 3\n" + CITED, "did you mean 'node'"),
        ("[terms.macs]\nvalue = 1.0\n" + CITED.replace("pJ", "W"), "a unit among"),
        ("[idle_watts]\nvalue = 1.0\n" + CITED + "[terms]\n", "a unit among W"),
        ("[terms.mac]\nvalue = 1.0\n" + CITED, "did you mean 'macs'"),
        ("[terms]\nmacs = 3", "a table with value"),
        ("terms = 3", r"a table \[terms"),
        ('twin = "odim"\n[terms]', "did you mean 'odin'"),
        ("twin = 3\n[terms]", "a known target"),
        ("dense = 1\n[terms]", "true or false"),
        ("note = 3\n[terms]", "note: expected a text, got 3"),
        ("[terms]\n[idle_wats]", "did you mean 'idle_watts'"),
        ("dens = true\n[terms]", "did you mean 'dense'"),
        ("[model]", r"a table \[terms"),
        ("[terms", "a target in TOML"),
    ],
)
def test_a_malformed_target_is_refused(mine, text, said):
    with pytest.raises(FormatError, match=said):
        load_target(mine(text))


def test_a_target_without_a_price_for_products_says_unknown(mine):
    target = load_target(mine("[terms.products]\nvalue = 1.0\n" + CITED))
    bill = price(Tally(1, {"x": Counts(macs=5, dense_macs=9, products=2)}), target)
    assert bill.formula_joules is None and bill.dense_joules is None and "nan" not in str(bill)
