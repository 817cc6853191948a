"""The firing rate below which an event-driven run costs less than a dense, quantised twin.

Two answers: `break_even`, from a tally and a target's own prices, and `analytic_break_even`, from the model of
Yan, Bai, Tang and Wong, "Reconsidering the energy efficiency of spiking neural networks", arXiv 2409.08290.
"""

import itertools
import math
import textwrap
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rheobase.backends.counting.bill import WIDTH, counted, figure
from rheobase.backends.counting.target import TERMS, Interval, Target, load_target
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.registry import nearest
from rheobase.spiking.tally import Counts, Tally

PRODUCTS = ("macs", "acs")
APART = (*PRODUCTS, "events", "deliveries", "weight_bytes", "state_bytes", "activation_bytes")


@dataclass(frozen=True)
class BreakEven:
    """Where an event-driven run and its dense twin cost the same. Below it the events are cheaper, above it the twin.

    rate      events a synapse and step at break-even; 0 where even silence costs more than the twin, None where a
              product has no price, no event was read, or the target skips no zeros
    ran       events a synapse and step in the tally, over the operators that read events; None if there are none
    steps     steps an inference: `steps` x `rate` is in spikes a synapse an inference
    twin      name of the target that the twin is priced on
    counted   terms that both sides are charged for
    missing   terms that ran, lack a price, and so are on neither side
    """

    rate: Interval | None
    ran: float | None
    steps: int
    twin: str
    counted: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        left = ", ".join(TERMS.get(term, term) for term in self.missing)
        if self.ran is None:
            said = "no operator reads events"
        elif self.rate is None:
            said = "unknown"
        else:
            low, central, high = (figure(x) for x in (self.rate.low, self.rate.central, self.rate.high))
            said = f"{central} ({low} to {high}) events a synapse and step; {figure(self.ran)} ran"
        text = f"  break-even with a dense twin on {self.twin}: {said}" + (
            f"; left out for want of a price: {left}" if left else ""
        )
        return textwrap.fill(text, WIDTH, subsequent_indent="      ")


def break_even(
    tally: Tally,
    target: Target | str,
    *,
    twin: Target | str | None = None,
    steps: int = 1,
    bits: int = 8,
    neurons: Collection[str] = (),
) -> BreakEven:
    """The rate at which the bill of the events equals the bill of the twin, all firing scaled by one factor s.

        events  fixed + shared + s variable        twin  dense        s = (dense - fixed - shared) / variable

    variable  products and weights of the operators that read events: those with accumulates, with events delivered
              to them, or with no product where the dense form has some; and all events sent and delivered
    shared    products and weights of the other operators, which run on the machine of the twin
    fixed     elementwise work, comparisons, transcendentals and state
    dense     every product of a step as a multiply-accumulate with its weight, and the rest of the work, once an
              inference where the events take `steps` steps

    Each product reads one weight, each state update reads and writes one value, of `bits` bits in both. Traffic of
    activations is left out, and so is whatever lacks a price on either side. The interval is exact over all prices
    within theirs, a constant that both sides use being the same on both: the quotient is extreme at corners.

    twin     the machine of the twin; unless given, the one that the target names as such, or itself
    neurons  names of operators that the twin lacks; it keeps their comparisons, as its activation function

    raises  ConfigError: no such target or operator, no steps or bits;  FormatError: a constant that has no source
    """
    _check(steps)
    _check(bits, "bits", "a value")
    for name in neurons:
        if name not in tally.operators:
            raise ConfigError("neurons", "operators of the tally", repr(name), nearest(name, tally.operators))
    target = target if isinstance(target, Target) else load_target(target)
    twin = twin or target.twin or target
    twin = twin if isinstance(twin, Target) else load_target(twin)
    fixed, variable, shared, dense = _sides(tally, steps, bits, neurons)
    here, there = ({t for side in part for t, n in side.items() if n} for part in ((fixed, variable), (shared, dense)))
    used = [t for t in dict.fromkeys((*TERMS, *counted(tally.total))) if t in here | there]
    missing = tuple(t for t in used if (t in here - target.terms.keys()) or (t in there - twin.terms.keys()))
    priced = tuple(t for t in used if t not in missing)
    driven = [c for c in tally.operators.values() if _reads_events(c) and c.dense_macs]
    ran = sum(c.macs + c.acs for c in driven) / sum(c.dense_macs for c in driven) if driven else None
    rate = None
    if ran and not target.dense and not set(PRODUCTS) & set(missing):
        prices = {t: target.terms[t].interval for t in priced if t in here}
        its = {t: twin.terms[t].interval for t in priced if t in there}
        if twin != target:
            its, shared, dense = ({f"twin {t}": x for t, x in side.items()} for side in (its, shared, dense))
        rate = _solve(fixed | shared, variable, dense, prices | its) * ran
    return BreakEven(rate, ran, steps, twin.name, priced, missing)


def _reads_events(counts: Counts) -> bool:
    return counts.deliveries > 0 or counts.acs > 0 or counts.macs + counts.acs == 0 < counts.dense_macs


def _sides(tally: Tally, steps: int, bits: int, neurons: Collection[str]) -> tuple[dict[str, float], ...]:
    """How often each term happens: fixed, variable, shared and dense of `break_even`."""
    fixed, variable, shared, dense = (defaultdict(float) for _ in range(4))
    for name, counts in tally.operators.items():
        products = counts.macs + counts.acs
        side = variable if _reads_events(counts) else shared
        side["macs"] += counts.macs
        side["acs"] += counts.acs
        side["weight_bytes"] += products * bits / 8
        variable["events"] += counts.events
        variable["deliveries"] += counts.deliveries
        dense["macs"] += counts.dense_macs / steps
        dense["weight_bytes"] += counts.dense_macs * bits / 8 / steps
        work = {term: n for term, n in counted(counts).items() if term not in APART}
        for term, n in (work | {"state_bytes": 2 * counts.state_updates * bits / 8}).items():
            fixed[term] += n
            if name not in neurons or term == "comparisons":
                dense[term] += n / steps
    return fixed, variable, shared, dense


def _solve(fixed: Mapping, variable: Mapping, dense: Mapping, prices: Mapping[str, Interval]) -> Interval:
    """(dense - fixed) / variable over all prices within their intervals, and at the central ones; not below 0.

    Source of the search: W. Dinkelbach, "On nonlinear fractional programming", Management Science 13(7), 1967: a
    quotient is largest where, for that value s, the most that surplus - s variable can be is 0.
    """
    surplus = {t: dense.get(t, 0) - fixed.get(t, 0) for t in prices}

    def scale(each: Mapping[str, float]) -> float:
        cost = sum(p * variable.get(t, 0) for t, p in each.items())
        left = sum(p * surplus[t] for t, p in each.items())
        return left / cost if cost else math.copysign(math.inf, left)

    def extreme(s: float, sign: int) -> float:
        while True:
            ends = {t: sign * (surplus[t] - s * variable.get(t, 0)) > 0 for t in prices}
            further = scale({t: joules.high if ends[t] else joules.low for t, joules in prices.items()})
            if sign * (further - s) <= 1e-12 * abs(s) or math.isinf(further):
                return further if sign * (further - s) > 0 else s
            s = further

    central = scale({t: joules.central for t, joules in prices.items()})
    low, high = extreme(central, -1), extreme(central, 1)
    return Interval(*(max(0.0, s) for s in (low, central, high)))


def _check(number: int, name: str = "steps", of: str = "an inference") -> None:
    if not isinstance(number, int) or number < 1:
        raise ConfigError(name, "a whole number, at least 1", repr(number), f"give the {name} of {of}")


def quantised_bits(steps: int) -> int:
    """Bits of the activations that match a rate code of `steps` steps: ceil(log2(steps + 1)).

    Source: arXiv 2409.08290, theorem 1: exact for neurons without leak that reset by subtraction.
    """
    _check(steps)
    return steps.bit_length()


def compute_break_even(steps: int, sparsity: float, mac_over_ac: float) -> float:
    """The rate at break-even of arithmetic alone: k (1 - gamma) / T, the fan-in being large.

    steps        T
    sparsity     gamma, the share of zeros among the twin's activations
    mac_over_ac  k, energy of a multiply-accumulate over that of an accumulate
    Source: arXiv 2409.08290, the compute-only condition T s <= k (1 - gamma).
    """
    _check(steps)
    return mac_over_ac * (1 - sparsity) / steps


def analytic_break_even(
    steps: int, *, layers: tuple[int, ...] = (256, 128, 10), weight_bits: int = 8, state_bits: int = 8
) -> Interval:
    """The spike rate at break-even of a fully connected network with memory, after arXiv 2409.08290.

        spiking  S T s (ACC + b_w W) + T H (CMP + s SUB) + 2 T M b_v D
        twin     S (MAC(b) + b W) + 2 M CMP + A b D          b = ceil(log2(T + 1)), bits of its weights too

    S synapses, H hidden neurons, M neurons with state, A activations; ACC, CMP, SUB and the energies a bit W of a
    weight (interval: moved on the chip to fetched from DRAM) and D of dense movement are those of the target
    yan-22nm, of the paper. MAC(b) = 3.7 (b/32)^2 + 0.9 (b/32) pJ scales Horowitz's 45 nm, 32-bit figures.

    This form, its MAC(b) and its default layers are those of spyx's research/new/honest_energy_accounting, whose
    mean over T = 5 ... 10 is 5.99 %; it charges the spiking side 8-bit weights and the twin b-bit ones. It is not the
    whole of the paper's model, whose 6.4 % (v3) and 5.7 % (v4, T = 5, 4-bit weights, fan-in 4096; 3.4 to 10.8 % as
    the cost of movement varies by half) cannot be recomputed: its MAC at each width in 22 nm, its on-chip memory by
    the bit and its hops were not found, and nothing is fitted in their place.
    """
    yan, horowitz = load_target("yan-22nm").terms, load_target("horowitz-45nm").terms
    bits = quantised_bits(steps)
    synapses = sum(a * b for a, b in itertools.pairwise(layers))
    hidden, neurons = sum(layers[1:-1]), sum(layers[1:])
    mac = horowitz["products"].interval * (bits / 32) ** 2 + horowitz["adds"].interval * (bits / 32)
    moved = yan["activation_bytes"].interval.low
    prices = {term: yan[term].interval for term in ("acs", "adds", "comparisons", "weight_bytes")}
    prices |= {"macs": mac, "moved": Interval(moved, moved, moved)}
    return _solve(
        fixed={"comparisons": steps * hidden, "moved": 2 * steps * neurons * state_bits / 8},
        variable={
            "acs": steps * synapses,
            "weight_bytes": steps * synapses * weight_bits / 8,
            "adds": steps * hidden,
        },
        dense={
            "macs": synapses,
            "weight_bytes": synapses * bits / 8,
            "comparisons": 2 * neurons,
            "moved": sum(layers) * bits / 8,
        },
        prices=prices,
    )
