"""The SpiNNaker 2 language model's 0.39 W, 170.25 ms and 65.3 mJ, for docs/claims.md, beside an estimate."""

from _claims import span, table, words
from claims_egru import LM, elementwise, macs

from rheobase.backends import price
from rheobase.backends.counting import Interval, load_target
from rheobase.spiking.tally import Counts, Tally

WATTS, SECONDS, JOULES, ELEMENTS = 0.39, 0.17025, 0.0653, 150
"""published for one "inference"; processing elements used"""
DENSITY, VOCABULARY = 0.05, 33_278
SEQUENCE = 70
"""tokens of a segment in the published evaluation, at batch 1"""
ACTIVITIES = (0.203, 1.0)
"""of EGRU-1350 on PTB as published, and every unit sending: no more is possible"""
CYCLES, CLOCKS = 25, (150e6, 300e6)
"""a synaptic event on a core; both clocks"""
IDLE = {
    "cores switched off": 0.0752,
    "asleep, 0.5 V, 150 MHz": 0.2354,
    "asleep, 0.8 V, 300 MHz": 0.5647,
}
"""W of the whole chip, arXiv 2607.24396, measured, at second hand"""


def token(activity: float) -> Tally:
    """What the network does for a token by formula: its products, and its units' work in a step."""
    units = sum(LM[1:])
    each = {name: n * units for name, n in elementwise().items()}
    work = {name: each.pop(name) for name in [*each] if name not in Counts.__dataclass_fields__}
    done = round(macs(LM, activity, weights=DENSITY))
    return Tally(1, {"egru": Counts(macs=done, dense_macs=round(macs(LM)), transcendentals=work, **each)})


def dynamic(activity: float) -> Interval:
    """Joules of what is priced of a token on the cores."""
    return price(token(activity), "spinnaker2").priced_joules


def consistent(joules: float, each: Interval) -> str:
    """How many tokens this energy pays for."""
    if joules <= 0:
        return "none: idle alone is more than was measured"
    low, central, high = (joules / x for x in (each.high, each.central, each.low))
    return f"{central:,.0f} ({low:,.0f} to {high:,.0f})"


def arithmetic() -> str:
    """All of it is formulas; the elementwise work of a unit is counted in section 2."""
    usual, most = ACTIVITIES
    tokens = {a: token(a) for a in ACTIVITIES}
    each = {a: dynamic(a) for a in ACTIVITIES}
    names = {a: f"activity {100 * a:.1f} %" for a in ACTIVITIES}
    bills = {a: price(t, "spinnaker2") for a, t in tokens.items()}
    nnz = macs(LM, weights=DENSITY)
    seconds = {a: [t.macs * CYCLES / ELEMENTS / clock for clock in CLOCKS] for a, t in tokens.items()}
    priced = {t: load_target("spinnaker2").terms[t] for t in ("macs", "products", "adds", "comparisons")}
    constants = "; ".join(f"{words([name])} {q.each}, {q.span}" for name, q in priced.items())
    one = [
        ["MACs, 0.05 x (first input + activity x the rest)", *(f"{t.macs:,}" for t in tokens.values())],
        ["elementwise products", *(f"{t.products:,}" for t in tokens.values())],
        ["elementwise additions", *(f"{t.adds:,}" for t in tokens.values())],
        ["energy of the MACs, µJ", *(span(b.formula_joules, 1e6) for b in bills.values())],
        ["energy of all that is priced, µJ", *(span(e, 1e6) for e in each.values())],
        ["unknown", *(words(b.unpriced) for b in bills.values())],
        *(
            [f"time of the MACs alone at {clock / 1e6:.0f} MHz, ms", *(f"{1e3 * s[i]:.2f}" for s in seconds.values())]
            for i, clock in enumerate(CLOCKS)
        ),
    ]
    idle = [
        [
            name,
            f"{watts:g} W",
            f"{1e3 * watts * SECONDS:.1f} mJ",
            f"{1e3 * (JOULES - watts * SECONDS):+.1f} mJ",
            *(consistent(JOULES - watts * SECONDS, e) for e in each.values()),
        ]
        for name, watts in IDLE.items()
    ]
    readings = []
    for n in (1, SEQUENCE):
        for a in ACTIVITIES:
            ours = each[a] * n
            quiet = IDLE["asleep, 0.5 V, 150 MHz"] * SECONDS
            whole = ours + Interval(IDLE["cores switched off"] * SECONDS, quiet, quiet)
            readings.append(
                [
                    f"{n} token{'s' * (n > 1)}",
                    names[a],
                    f"{1e3 * SECONDS / n:.2f} ms",
                    f"{n * seconds[a][1] / SECONDS:.1%} to {n * seconds[a][0] / SECONDS:.1%}".replace("%", " %"),
                    span(ours, 1e3),
                    span(whole, 1e3),
                    f"{1e3 * JOULES:.1f}",
                ]
            )
    paid = [
        left / joules
        for left in (JOULES - w * SECONDS for w in IDLE.values())
        if left > 0
        for e in each.values()
        for joules in (e.low, e.high)
    ]
    held = {a: [SECONDS / s for s in row] for a, row in seconds.items()}
    decoder = LM[-1] * VOCABULARY
    mac = priced["macs"].interval
    return f"""## 3 A language model on SpiNNaker 2: 0.39 W, 170.25 ms, 65.3 mJ

Published (arXiv 2312.09084, table II, read at second hand): an EGRU language model on WikiText-2, 3 layers, embedding
750, hidden 1350, 95 % of the weights pruned, on {ELEMENTS} processing elements in float32, batch 1. An inference takes
{WATTS} W, {1e3 * SECONDS:g} ms and {1e3 * JOULES:g} mJ; {WATTS} W x {1e3 * SECONDS:g} ms =
{1e3 * WATTS * SECONDS:.1f} mJ. What an inference is, the sources at hand do not say. It is probably a sequence, not a
token, so this page gives no energy a token as a fact. It says what follows under each reading.

```
python benchmarks/claims.py spinnaker2
```

### 3.1 What is assumed

{
        table(
            ("assumed", "from", "what it changes"),
            [
                [
                    f"widths {'-'.join(map(str, LM))}",
                    "the published training code; the page on the chip names 3 layers, 750 and 1350",
                    f"the products: {macs(LM) / 1e6:.2f} M dense MACs a token",
                ],
                [
                    "5 % of the weights in every matrix",
                    "published as 95 % overall; how it is spread is not at hand",
                    f"{nnz / 1e6:.3f} M weights; if the first input's are pruned less, a token costs more",
                ],
                [
                    "activity 20.3 %, and 100 % as the ceiling",
                    "EGRU-1350 on PTB, ICLR 2023, second hand; that of the pruned model on WikiText-2 is not at hand",
                    f"MACs a token: {tokens[usual].macs:,} or {tokens[most].macs:,}",
                ],
                [
                    "the embedding's vector is read densely",
                    "a look-up gives real values",
                    f"the first input's {round(DENSITY * 3 * LM[0] * LM[1]):,} MACs run in every step",
                ],
                [
                    "no decoder, no embedding table on the chip",
                    f"{decoder / 1e6:.1f} M weights do not fit beside the layers; where they ran is not at hand",
                    f"a decoder pruned alike adds {span(mac * (DENSITY * decoder), 1e6)} µJ a token at activity 100 %",
                ],
                [
                    "one MAC costs one synaptic event",
                    f"target spinnaker2: {constants}",
                    "nearly the whole bill; the interval spans the published figures",
                ],
                [
                    f"{CYCLES} cycles a MAC, evenly over {ELEMENTS} elements",
                    "arXiv 2607.24396: 12 M synaptic events a second and core at 300 MHz, at second hand",
                    "the time by formula; uneven slices, waiting and the network come on top",
                ],
                [
                    "idle power of the whole chip for the whole time",
                    "arXiv 2607.24396, three states of the chip; the state in the experiment is not at hand",
                    "12.8 to 96.1 mJ of the 65.3: the largest uncertainty",
                ],
                [
                    "network and DRAM cost nothing",
                    "no figure is published",
                    "the estimate is too low by what they take",
                ],
            ],
        )
    }

### 3.2 A token by formula

{table(("", *names.values()), one)}

### 3.3 What idle power leaves

Idle power times {1e3 * SECONDS:g} ms, what is left of {1e3 * JOULES:g} mJ, and how many tokens that pays for at the
energies of 3.2 (central, and interval over the published constants):

{table(("chip", "idle power", "idle energy", "left", *(f"tokens, {name}" for name in names.values())), idle)}

Asleep at 0.8 V the chip takes more than the {WATTS} W that were measured while it worked. So it was not in that state:
the voltage was lower, or elements were switched off, if those figures hold for the chip that was used. The low price of
a MAC is that of 0.5 V and goes with the second row. The central idle figure of target spinnaker2 does not fit this
experiment, and its low figure does.

By time: {1e3 * SECONDS:g} ms hold {held[usual][0]:,.0f} to {held[usual][1]:,.0f} tokens at activity 20.3 %, and
{held[most][0]:,.0f} to {held[most][1]:,.0f} at 100 %, at 150 and 300 MHz, if nothing but MACs takes time.

### 3.4 What follows under each reading

Idle is taken as {IDLE["cores switched off"]} to {IDLE["asleep, 0.5 V, 150 MHz"]} W, central and high the latter.

{
        table(
            (
                "an inference is",
                "at",
                "time a token",
                "of it MACs by formula, 300 to 150 MHz",
                "dynamic, mJ",
                "with idle, mJ",
                "published, mJ",
            ),
            readings,
        )
    }

- One token: MACs would fill at most {
        100 * seconds[most][0] / SECONDS:.1f} % of the time even if no unit were silent, and what is
  not idle would exceed the dynamic estimate {min(paid):.0f} to {max(paid):.0f} times. The reading is hard to believe.
- A segment of {SEQUENCE} tokens, the length of the published evaluation: {1e3 * SECONDS / SEQUENCE:.2f} ms and
  {
        1e3
        * JOULES
        / SEQUENCE:.2f} mJ a token would follow. Idle power is then the larger part at 20.3 %, and the rest of the
  time waits for something else than MACs; the authors name memory as the bottleneck.
- Other lengths: the energy balances somewhere between {min(paid):.0f} and {
        max(paid):.0f} tokens (3.3). The time, if only
  MACs took any, would be filled by {held[most][0]:.0f} to {held[usual][1]:.0f}. The estimate cannot tell 70 from 300.
- The published comparison, 1.19 J and 19.9 ms on an A100 (60 W x 19.9 ms = {60 * 0.0199:.2f} J), holds for whatever an
  inference is: {1.1935 / JOULES:.1f} times less energy, {
        SECONDS / 0.0199:.1f} times slower, at batch 1. No ratio a token
  follows from it.
"""
