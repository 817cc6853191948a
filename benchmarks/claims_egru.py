"""The EGRU's effective multiply-accumulates, for docs/claims.md: published figures recomputed, and a run counted."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import torch
from _claims import sample, table, words

from rheobase.backends import count, simulate
from rheobase.models import EGRULM, EGRULMConfig

LM = (750, 1350, 1350, 750)
"""widths of the published language model, the embedding's first"""

PUBLISHED = (
    ("PTB, EGRU-1350, draft", LM, 0.880, 4.7),
    ("PTB, EGRU-2000, draft", (750, 2000, 2000, 750), 0.904, 6.6),
    ("PTB, EGRU-2700, draft", (750, 2700, 2700, 750), 0.932, 8.1),
    ("sequential MNIST, EGRU-590", (1, 590), 0.721, 0.226),
    ("DVS gesture, EGRU-512", (4096, 512), 0.838, 4.19),
    ("DVS gesture, EGRU-1024", (4096, 1024), 0.825, 10.54),
    ("DVS gesture, EGRU-1024, augmented", (4096, 1024), 0.788, 10.77),
)
"""task and model, widths, published activity sparsity, published effective MACs in millions"""
DENSE = (("PTB, GRU-1350", LM, 24), ("sequential MNIST, GRU-590", (1, 590), 1), ("DVS, GRU-1024", (4096, 1024), 15.73))
PRUNED = (("EGRU-1350", LM, 0.797), ("EGRU-2000", (750, 2000, 2000, 750), 0.848))
"""PTB models of the conference version, and their activity sparsity"""

WIDTHS, TOKENS = (48, 96, 96, 48), 256
"""of the model that is counted here"""


def macs(widths: Sequence[int], activity: float = 1.0, *, first: float = 1.0, weights: float = 1.0) -> float:
    """Effective MACs a token of stacked GRUs: three gates, dense x activity of what is read x density of the weights.

    activity  of every layer's output, hence of each recurrent product and of each input but the first
    first     density of the first layer's input
    """
    inputs = (first, *[activity] * (len(widths) - 2))
    pairs = zip(itertools.pairwise(widths), inputs, strict=True)
    return weights * sum(3 * h * (read * i + activity * h) for (i, h), read in pairs)


def arithmetic() -> str:
    """Published figures by their formula: no model is run."""
    dense = [[name, "-".join(map(str, w)), f"{macs(w) / 1e6:.2f} M", f"{m:g} M"] for name, w, m in DENSE]
    rows, over = [], defaultdict(list)
    for name, widths, sparsity, published in PUBLISHED:
        ours, activity = macs(widths, 1 - sparsity) / 1e6, 1 - sparsity
        input_ = 3 * widths[0] * widths[1] / 1e6
        first = (published - macs(widths, activity, first=0) / 1e6) / input_
        shape = "-".join(map(str, widths))
        off = 100 * (ours / published - 1)
        cells = [f"{100 * activity:.1f} %", f"{ours:.3g} M", f"{published:g} M"]
        rows.append([name, shape, *cells, f"{off:+.0f} %", f"{first:.2f}" if first >= 0 else "none"])
        over[name.split()[0]].append(off)
    rest = over["PTB,"] + over["sequential"]
    least, most = f"{min(rest):.0f}", f"{max(rest):.0f}"
    pruned = []
    for name, widths, sparsity in PRUNED:
        for density in (0.15, 0.05):
            kept = macs(widths, 1 - sparsity, weights=density)
            cells = (f"{100 * (1 - sparsity):.1f} %", f"{100 * density:.0f} %", f"{kept / 1e6:.3f} M")
            pruned.append([name, *cells, f"{macs(widths) / kept:.0f}x"])
    return f"""## 2 The EGRU's effective multiply-accumulates

The papers' rule: a recurrent product costs its dense MACs times the activity, the part of the units that sent; an
input product its dense MACs times the density of its input; pruned weights multiply on top. Elementwise work is not
counted. For a layer of width h with input i: 3 h (density x i + activity x h).

### 2.1 The published figures, recomputed

Dense sizes first, 3 h (i + h) a layer:

{table(("model", "widths", "by formula", "published"), dense)}

The 4,096 inputs of DVS gesture are the width at which the published 15.73 M comes out, not a published width. The
widths of the language model are those of the published training code; the draft's are not at hand.

Effective MACs, with the published activity in every layer and a dense first input:

{
        table(
            (
                "model",
                "widths",
                "activity",
                "by formula",
                "published",
                "off by",
                "input density that would give the published figure",
            ),
            rows,
        )
    }

- The dense figures are reproduced.
- The effective figures are not, with the activity published beside them. The formula gives {least} to {most} % more on
  PTB and MNIST, and {min(over["DVS"]):.0f} to {max(over["DVS"]):.0f} % more on DVS gesture.
- On DVS the difference may be zeros of the convolutions' output, whose density is not published. On PTB and MNIST the
  first input is dense, so it must lie elsewhere: in activities that differ by layer, or in other widths.
- The last column is what the formula would need. It is no finding about the papers' networks.

Pruned and event-based, PTB: the later papers claim "up to 20 times fewer MACs" below a perplexity of 60, with weights
pruned to about 15 %. Their tables are not at hand. By the formula, at the unpruned models' published activity:

{table(("model", "activity", "weights kept", "MACs a token", "fewer than dense"), pruned)}

The claim of 20 times is near what 15 % of the weights and EGRU-1350's activity give: the factor is plausible. That the
activity stays the same in a pruned network is assumed here.
"""


def run() -> list[dict]:
    """A small EGRU language model over the sample: for each product its dense and done MACs and the events it read.

    The MACs are the dispatch counter's; the events are the event simulator's. An input product reads what the layer
    below sent in every step, a recurrent one what its own layer sent in every step but the last.
    """
    torch.manual_seed(0)
    tokens = sample(TOKENS)
    model = EGRULM(EGRULMConfig(embedding=WIDTHS[0], layers=WIDTHS[1:], thr_mean=0.1)).eval()
    operators, events = count(model, tokens, strict=True).operators, simulate(model.lower(), tokens).events
    rows = []
    for i, (below, width) in enumerate(itertools.pairwise(WIDTHS)):
        own = events[f"layers.{i}.y"]
        read = {"recurrent_kernel": (int((own.step < TOKENS - 1).sum()), width)}
        if i:
            read["kernel"] = (len(events[f"layers.{i - 1}.y"]), below)
        for part, (n, size) in sorted(read.items()):
            c = operators[f"layers.{i}.{part}"]
            rows.append({"name": f"layers.{i}.{part}", "dense": c.dense_macs, "macs": c.macs, "events": n, "in": size})
    return rows


def counted() -> str:
    """The run, as a section."""
    rows = [
        [
            r["name"],
            f"{r['dense']:,}",
            f"{r['events']:,} of {r['in'] * TOKENS:,}",
            f"{100 * r['events'] / (r['in'] * TOKENS):.2f} %",
            f"{r['dense'] * r['events'] // (r['in'] * TOKENS):,}",
            f"{r['macs']:,}",
        ]
        for r in run()
    ]
    return f"""### 2.2 The rule, counted

```
python benchmarks/claims.py egru
```

An EGRU language model of widths {"-".join(map(str, WIDTHS))} at its start (seed 0, thresholds of mean 0.1, untrained),
over {TOKENS} characters of the LICENSE. The MACs are those of `count`, which watches torch's operators. The events are
those of `simulate`, which runs the lowered graph. A recurrent product does not read the last step's events.

{table(("product", "dense MACs", "events read", "activity", "dense x activity", "MACs counted"), rows)}

The last two columns are equal to the last digit. The rule holds for products. It leaves out the dense work of each unit
in each step, silent or not: {of_a_unit()}.
"""


def elementwise() -> dict[str, int]:
    """Work of one EGRU unit in one step besides its products, as fields of a tally, counted."""
    model, tokens = EGRULM(EGRULMConfig(embedding=8, layers=(8,))), sample(16)
    operators, each = count(model, tokens, kernels="reference", strict=True).operators, tokens.numel() * 8
    cell = operators["layers.0"]
    sums = sum(operators[f"layers.0.{part}"].adds for part in ("kernel", "recurrent_kernel"))
    return {
        "products": cell.products // each,
        "adds": (cell.adds + sums) // each,
        "comparisons": cell.comparisons // each,
        "state_updates": cell.state_updates // each,
        **{name: n // each for name, n in cell.transcendentals.items()},
    }


def of_a_unit() -> str:
    """The same in words."""
    return "; ".join(f"{words([name])}: {n}" for name, n in elementwise().items())
