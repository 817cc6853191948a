"""docs/claims.md is what benchmarks/claims.py writes, and its figures follow from what it says they follow from."""

from pathlib import Path

import pytest
import torch

from rheobase.backends import count, price
from rheobase.models import SpikeGPT, SpikeGPTConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "claims.md").read_text()


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_arithmetic_on_the_page_is_what_is_computed_now():
    import claims
    from _claims import flow

    for name, writers in claims.SECTIONS.items():
        assert flow(writers[0]()) in PAGE, f"python benchmarks/claims.py {name}"
    assert PAGE.startswith(claims.HEAD)


def test_the_paper_s_formula_by_hand():
    import claims_spikegpt as c

    every = sum(c.GPT[n][1] for n in c.GPT if n != "FFN, once")
    assert every == pytest.approx(4.5 * (12 * 3072 * 512**2 + 2 * 3072**2 * 512 + 3 * 3072**2), rel=1e-12)
    spiking = sum(c.SPIKEGPT[n][1] for n in ("R, K, V", "WKV, 7", "FFN, every token"))
    assert (round(every / 1e8), round(spiking / 1e7), round(every / spiking)) == (871, 135, 64)
    best = c.nearest(c.SPIKEGPT, 1.02e9, 1)[0]
    assert set(best) == {"WKV, 6", "FFN, every token"}
    assert c.total(c.SPIKEGPT, best) == pytest.approx(1.021e9, rel=1e-3)
    gpt = c.total(c.GPT, c.nearest(c.GPT, 3.29e10, 1)[0])
    assert abs(gpt / 3.29e10 - 1) > 0.003, "the published total was not reproduced"


def test_a_small_model_of_each_placement_does_what_the_formulas_say():
    tokens, counted = torch.arange(40)[None] % 31, {}
    for placement in ("reference", "spike_fed"):
        torch.manual_seed(1)
        model = SpikeGPT(SpikeGPTConfig(vocabulary=31, embedding=24, depth=2, placement=placement))
        model.wake(tokens)
        counted[placement] = count(model, tokens)
    for tally in counted.values():
        assert tally.dense_macs == 40 * (13 * 2 * 24**2 + 31 * 24)
    built, fed = counted.values()
    zeros = sum(c.dense_macs - c.macs for name, c in built.operators.items() if name.endswith("ffn.value"))
    assert built.acs == 0 and built.macs == built.dense_macs - zeros and zeros
    assert fed.macs == 40 * 31 * 24 and 0 < fed.acs < 0.3 * fed.dense_macs


def test_a_ratio_is_that_of_two_bills_and_its_interval_holds_all_prices():
    from _claims import ratio

    tokens, tallies = torch.arange(20)[None], []
    for embedding in (16, 24):
        torch.manual_seed(0)
        model = SpikeGPT(SpikeGPTConfig(vocabulary=20, embedding=embedding, depth=1, placement="spike_fed"))
        model.wake(tokens)
        tallies.append(count(model, tokens))
    found, bills = ratio(*tallies, "horowitz-45nm"), [price(t, "horowitz-45nm").priced_joules for t in tallies]
    for part in ("low", "central", "high"):
        quotient = getattr(bills[0], part) / getattr(bills[1], part)
        assert found.low <= quotient <= found.high
    assert found.central == pytest.approx(bills[0].central / bills[1].central)
    assert ratio(*tallies, "yan-22nm") is None
    assert ratio(*tallies, "yan-22nm", ("weight_bytes",)).low == pytest.approx(
        tallies[0].weight_bytes / tallies[1].weight_bytes
    )


def test_products_of_an_egru_are_dense_x_activity_exactly():
    import claims_egru

    rows = claims_egru.run()
    assert len(rows) == 5
    for row in rows:
        assert row["macs"] * row["in"] * claims_egru.TOKENS == row["dense"] * row["events"] > 0


def test_dense_and_pruned_egrus_by_hand():
    from claims_egru import LM, macs

    assert macs(LM) == 3 * (1350 * (750 + 1350) + 1350 * 2700 + 750 * (1350 + 750)) == 24_165_000
    assert macs((4096, 1024)) == pytest.approx(15.73e6, rel=1e-3)
    assert macs(LM, 0.203, weights=0.05) == pytest.approx(0.05 * (3_037_500 + 0.203 * 21_127_500))


def test_the_chip_s_idle_power_and_the_tokens_that_the_rest_pays_for():
    import claims_spinnaker2 as c

    assert 0.39 * 0.17025 == pytest.approx(c.JOULES, rel=0.02)
    assert c.IDLE["asleep, 0.8 V, 300 MHz"] > c.WATTS
    each = c.dynamic(1.0)
    assert each.central == pytest.approx(1_208_250 * 25 * 15e-12, rel=0.01)
    left = c.JOULES - 0.0752 * c.SECONDS
    assert c.consistent(left, each).startswith(f"{left / each.central:.0f} (")
    assert "65 mJ a token" not in PAGE and "65.3 mJ a token" not in PAGE
