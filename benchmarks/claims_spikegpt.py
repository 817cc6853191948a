"""SpikeGPT's 32.2x and 20x, for docs/claims.md: the paper's formula recomputed, and its model counted."""

import dataclasses
import itertools
from collections.abc import Mapping

import torch
from _claims import power, ratio, sample, span, table, times, words

from rheobase.backends import count, price
from rheobase.backends.counting.target import ZERO
from rheobase.models.spikegpt import PUBLISHED, SpikeGPT
from rheobase.spiking.tally import Tally

E_MAC, E_AC, RATE, T, D = 4.5, 0.9, 0.15, 3072, 512
"""the paper's energies in pJ, firing rate, length of a sequence and width"""
PUBLISHED_PJ = {"GPT": 3.29e10, "SpikeGPT": 1.02e9}
SPIKE = E_AC * RATE

GPT = {
    "Q, K, V": ("E_MAC 3 T d²", E_MAC * 3 * T * D**2),
    "attention": ("E_MAC 2 T² d", E_MAC * 2 * T**2 * D),
    "scale": ("E_MAC T²", E_MAC * T**2),
    "softmax": ("E_MAC 2 T²", E_MAC * 2 * T**2),
    "FFN, every token": ("E_MAC 9 T d²", E_MAC * 9 * T * D**2),
    "FFN, once": ("E_MAC 9 d²", E_MAC * 9 * D**2),
}
SPIKEGPT = {
    "R, K, V": ("E_AC R 3 T d²", SPIKE * 3 * T * D**2),
    "WKV, 7": ("E_MAC 7 T d", E_MAC * 7 * T * D),
    "WKV, 6": ("E_MAC 6 T d", E_MAC * 6 * T * D),
    "FFN, every token": ("E_AC R 9 T d²", SPIKE * 9 * T * D**2),
    "FFN, once": ("E_AC R 9 d²", SPIKE * 9 * D**2),
}
"""the rows of the paper's table: formula, pJ; rows of one name before a comma exclude each other"""

PAIRS = (
    ("Q, K, V", "R, K, V"),
    ("attention", "WKV, 7"),
    (None, "WKV, 6"),
    ("scale", None),
    ("softmax", None),
    ("FFN, every token", "FFN, every token"),
    ("FFN, once", "FFN, once"),
)

PLACEMENTS = {"reference": "as built", "spike_fed": "spike-fed", "continuous": "RWKV-4"}
TOKENS = 64
PRODUCTS = ("macs", "acs")
MEMORY = ("weight_bytes", "state_bytes", "activation_bytes")
TARGETS = ("horowitz-45nm", "yan-22nm")


def total(terms: Mapping, names) -> float:
    return sum(terms[name][1] for name in names)


def nearest(terms: Mapping, wanted: float, n: int) -> list[tuple[str, ...]]:
    """The n sets of terms whose sums come nearest, alternatives of one row never together."""
    chosen = itertools.chain.from_iterable(itertools.combinations(terms, k) for k in range(1, len(terms) + 1))
    fair = [names for names in chosen if len({name.split(",")[0] for name in names}) == len(names)]
    return sorted(fair, key=lambda names: abs(total(terms, names) - wanted))[:n]


def arithmetic() -> str:
    """Formulas alone: no model is run."""
    every, once = (
        ([n for n in GPT if n != leave], [n for n in SPIKEGPT if n not in (leave, "WKV, 6")])
        for leave in ("FFN, once", "FFN, every token")
    )
    short = (["scale", "softmax", "FFN, every token"], ["WKV, 6", "FFN, every token"])
    readings = {
        "all rows, the FFN for every token": every,
        "all rows, the FFN once": once,
        "without Q, K, V and attention; WKV at 6": short,
    }
    rows = [["published", *(power(x) for x in PUBLISHED_PJ.values()), f"{3.29e10 / 1.02e9:.1f}"]]
    for name, (a, b) in readings.items():
        gpt, spiking = total(GPT, a), total(SPIKEGPT, b)
        rows.append([name, power(gpt), power(spiking), f"{gpt / spiking:.1f}"])
    tries = []
    for name, terms in (("GPT", GPT), ("SpikeGPT", SPIKEGPT)):
        wanted = PUBLISHED_PJ[name]
        for names in nearest(terms, wanted, 3):
            sum_ = total(terms, names)
            tries.append([name, " + ".join(names), power(sum_), f"{100 * (sum_ / wanted - 1):+.2f} %"])
    c = PUBLISHED["46m"]
    blocks, head = 13 * c.depth * D**2, c.vocabulary * D
    gpt_token, spiking_token = 12 * D**2 + 2 * T * D + 3 * T, RATE * 12 * D**2 + 7 * D
    return f"""## 1 SpikeGPT: 32.2 times less energy, 20 times fewer operations

The paper (Zhu et al., arXiv 2302.13939) publishes {power(3.29e10)} pJ for a GPT and {power(1.02e9)} pJ for SpikeGPT,
and calls the ratio 32.2; of the rounded totals it is {
        3.29e10 / 1.02e9:.1f}. Its table gives a formula a row. The table was read at second hand, in a transcription.

### 1.1 The formula, recomputed

E_MAC = {E_MAC} pJ, E_AC = {E_AC} pJ, R = {RATE}, T = {T}, d = {D}, all the paper's. FFN is 4 d² + d² + 4 d². Whether it
is meant once or for every token is not said, so both stand here. An earlier version of the paper has 6 T d for WKV.

{
        table(
            ("row of GPT", "formula", "pJ", "row of SpikeGPT", "formula", "pJ"),
            [[*cells(GPT, a), *cells(SPIKEGPT, b)] for a, b in PAIRS],
        )
    }

{table(("reading", "GPT, pJ", "SpikeGPT, pJ", "ratio"), rows)}

The published totals are not the sum of the published rows, however the FFN is read. Which sums come nearest, of all
sets of rows, with no constant changed:

{table(("total", "rows", "sum, pJ", "off the published total by"), tries)}

- Reproduced: 1.02e9 pJ, as 9 T d² E_AC R + 6 T d E_MAC. That leaves out R, K and V.
- Not reproduced: 3.29e10 pJ. The nearest sum leaves out Q, K, V and attention, and still is not it.
- Not reproduced: 32.2. All rows together give {rows[1][3]} or {rows[2][3]}.
- The ratio of any row of matrix products to its spiking twin is E_MAC / (E_AC R) = {E_MAC / SPIKE:.1f}, two constants
  and an assumed rate. It holds for no network in particular.
- The formula has no W_o (d² a token), no norm, no token shift, no neuron, no head and no memory.

### 1.2 20 times fewer operations

An earlier version claims this for synaptic operations. Its formula was dropped and is not at hand, so it cannot be
recomputed. What can be said:

- With the rows above, every product fed by spikes at R = {RATE}: GPT does 12 d² + 2 T d + 3 T = {
        gpt_token:,} a token and
  layer, SpikeGPT R 12 d² + 7 d = {spiking_token:,.0f}: {gpt_token / spiking_token:.1f} times fewer.
- Against its own dense twin, spikes alone spare 1 / R = {
        1 / RATE:.1f}. 20 needs a rate of 5 % in front of every product.
- In the published code spikes spare none (1.3).

### 1.3 What the published code does

In the code the neurons stand after the linear layers. Each linear layer reads dense numbers, so no product with a
weight becomes an addition. The 46M model (L = {c.depth}, d = {D}, V = {c.vocabulary:,}) does, a token:

{
        table(
            ("part", "formula", "MACs a token", "reads"),
            [
                ["R, K, V, O of time mixing", "4 L d²", f"{4 * c.depth * D**2:,}", "dense"],
                ["FFN key and receptance", "5 L d²", f"{5 * c.depth * D**2:,}", "dense"],
                ["FFN value", "4 L d²", f"{4 * c.depth * D**2:,}", "squared ReLU: graded, partly zero"],
                ["head", "V d", f"{head:,}", "dense"],
                ["sum", "13 L d² + V d", f"{blocks + head:,}", ""],
            ],
        )
    }

Against the paper's own GPT at T = {T}, a layer and token: (12 d² + 2 T d) / 13 d² =
{(12 * D**2 + 2 * T * D) / (13 * D**2):.2f} times fewer; {(12 * D**2 + T * D) / (13 * D**2):.2f} times with causal
attention, which sees T / 2 on average. RWKV-4, which has no spikes, saves the same: the saving is linear attention's.
"""


def cells(terms: Mapping, name: str | None) -> list[str]:
    return [name, terms[name][0], power(terms[name][1])] if name else ["", "", ""]


def tallies() -> dict[str, Tally]:
    """The 46M model in each placement, at its start, over the sample."""
    tokens, found = sample(TOKENS), {}
    for placement in PLACEMENTS:
        torch.manual_seed(0)
        model = SpikeGPT(dataclasses.replace(PUBLISHED["46m"], placement=placement))
        model.wake(tokens)
        found[placement] = count(model, tokens, kernels="reference", strict=True)
    return found


def counted() -> str:
    """The models run and counted; takes a minute or two."""
    found = tallies()
    per = 1 / TOKENS
    c = PUBLISHED["46m"]
    head = c.vocabulary * D
    parameters = 2 * head + c.depth * (13 * D**2 + 11 * D) + 4 * D
    twin = found["continuous"]
    rows, bills, ratios = [], [], []
    for placement, name in PLACEMENTS.items():
        fields = ("dense_macs", "macs", "acs", *MEMORY)
        rows.append([name, *(f"{getattr(found[placement], field) * per:,.0f}" for field in fields)])
    for target, (placement, name) in itertools.product(TARGETS, PLACEMENTS.items()):
        bill = price(found[placement], target)
        memory = [line.joules for line in bill.lines if line.term in MEMORY and line.joules]
        sums = (bill.formula_joules, bill.dense_joules, sum(memory, ZERO), bill.priced_joules)
        bills.append([target, name, *(span(joules, 1e6 * per) for joules in sums), words(bill.unpriced)])
        if placement != "continuous":
            sides = (ratio(twin, found[placement], target, terms) for terms in (PRODUCTS, MEMORY, None))
            ratios.append([target, name, *map(times, sides)])
    value = [c for name, c in found["reference"].operators.items() if name.endswith("ffn.value")]
    zeros = 1 - sum(c.macs for c in value) / sum(c.dense_macs for c in value)
    fed = found["spike_fed"]
    rate = fed.acs / (fed.dense_macs - head * TOKENS)
    whole = {name: (t.macs + t.acs) * per for name, t in found.items()}
    return f"""### 1.4 The same models, counted

```
python benchmarks/claims.py spikegpt
```

Three models of the 46M size, each at its start (seed 0, `init = "live"`: every neuron layer fires at about 15 %; not
trained, so the rates are those of initialisation), over {
        TOKENS
    } characters of the LICENSE by `rheobase.backends.count`.
Nothing is scaled up: the whole model is run. "As built" is the published code's placement, "spike-fed" ours with a
neuron before every linear layer but the head, RWKV-4 the twin without neurons. A token:

{table(("model", "dense MACs", "MACs", "ACs", "bytes of weights", "of state", "of activations"), rows)}

- As built: no accumulation. What is spared, {
        100 * zeros:.0f} % of the FFN value products, is zeros of the squared ReLU.
  RWKV-4 spares them too. Operations: RWKV-4 / as built = {whole["continuous"] / whole["reference"]:.2f}.
- Spike-fed: {100 * rate:.1f} % of the blocks' 13 L d² products run, each as an addition; the dense head adds V d =
  {head:,} MACs. Operations: RWKV-4 / spike-fed = {whole["continuous"] / whole["spike_fed"]:.2f}.
- Bytes are those of float32 and of each torch operator; fused kernels move fewer activations. A weight is read anew
  for every token.

Bills in microjoules a token, central figure and interval over the published constants:

{
        table(
            (
                "target",
                "model",
                "products alone",
                "the same, all dense",
                "memory traffic",
                "all that is priced",
                "unknown",
            ),
            bills,
        )
    }

How many times less than RWKV-4, a price being the same on both sides; above 1 is a saving:

{table(("target", "model", "products alone", "memory traffic alone", "all that is priced"), ratios)}

- "Products alone" is what the paper's formula counts. yan-22nm has no citable multiply-accumulate, so no ratio of
  products or of the whole can be given there.
- Which end of the interval is near depends on where the weights lie. {parameters:,} parameters are
  {4e-6 * parameters:.0f} MB in float32, which no on-chip memory holds: the high figure, DRAM, is the nearer one.
- As built the honest ratio is 1.00 or less: the neurons come on top of the same products.
- Spike-fed saves several times, not 32. What it costs in quality, and the operations of trained models, is in
  [results.md](results.md).
"""
