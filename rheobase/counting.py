"""The command that counts and prices a token."""

import dataclasses
import textwrap
import time

import torch

from rheobase.answer import Answer
from rheobase.backends import count as count_operations
from rheobase.backends import price
from rheobase.backends.counting import (
    break_even,
    count_phases,
    measure,
    overview,
    show,
)
from rheobase.exchange import refuse_input, tally_of
from rheobase.models.training.run import Run
from rheobase.quickstart import test_sentences, test_tokens
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.graph.stored import is_graph
from rheobase.spiking.tally import Tally

MEASURE_SECONDS = 2.0
"""Forward passes are repeated for so long: counters of energy are coarse."""


def count(args) -> Answer:
    if args.device and not args.measure:
        raise ConfigError("count --device", "--measure beside it", "none", "the operations are the same on any device")
    args.device = args.device or "cpu"
    stored = is_graph(args.run)
    refuse_input(args, stored)
    if stored and (args.prefill or args.measure):
        raise ConfigError("count --prefill, --measure", "a run", "a stored graph", "leave it out")
    run = None if stored else Run.open(args.run)
    if stored:
        phases = {"all": tally_of(args.run, args.input, args.tokens)}
    elif run.config.classifies:
        phases = {"all": _sentence_by_sentence(run, args)}
    else:
        model, tokens = run.model(), torch.from_numpy(test_tokens(run, args.tokens))
        if args.prefill:
            both = count_phases(model, tokens, args.prefill, strict=args.strict)
            phases = dict(zip(("prefill", "decode"), both, strict=True))
        else:
            phases = {"all": count_operations(model, tokens, strict=args.strict)}
    tally = sum(phases.values(), Tally())
    lines = []
    for name, part in phases.items():
        title = f"{part.tokens:,} tokens" if name == "all" else f"{name}: {part.tokens:,} tokens"
        lines.append(f"{title}\n{show(part)}\n" if part.tokens else f"{title}\n")
    measured = _measure(model, tokens, args) if args.measure else None
    if measured:
        lines.append(_measured(measured))
    bills = [price(tally, name) for name in args.target]
    even = [break_even(tally, bill.target) for bill in bills]
    lines += [f"{bill}\n{rate}\n" for bill, rate in zip(bills, even, strict=True)]
    if len(bills) > 1:
        lines.append(overview(bills))
    table = {
        "tally": tally.to_table(),
        "phases": {name: part.to_table() for name, part in phases.items()} if args.prefill else None,
        "bills": [bill.to_table() for bill in bills],
        "break_even": [dataclasses.asdict(rate) for rate in even],
        "measured": measured,
    }
    return Answer(table, "\n".join(lines).rstrip())


def _sentence_by_sentence(run: Run, args) -> Tally:
    """What a classifier's sentences cost, each read alone: no padding is counted."""
    if args.prefill or args.measure:
        raise ConfigError("count --prefill, --measure", "a language model's run", "a classifier's", "leave it out")
    model, sentences = run.model(), test_sentences(run, args.tokens)
    return sum((count_operations(model, each, strict=args.strict) for each in sentences), Tally())


def _measure(model, tokens: torch.Tensor, args) -> dict:
    """Joules of the forward passes that were counted, again and again for some seconds, as a table."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("count --device", "a device that torch can use", "cuda", "take cpu")
    model, tokens = model.to(args.device), tokens.to(args.device)
    parts = tokens.split([args.prefill, *[1] * (tokens.shape[1] - args.prefill)], 1) if args.prefill else [tokens]
    passes = 0

    @torch.inference_mode()
    def once():
        state = None
        for part in parts:
            state = model(part, state)[1]

    def forward():
        nonlocal passes
        began = time.monotonic()
        while passes == 0 or time.monotonic() - began < MEASURE_SECONDS:
            once()
            passes += 1

    once()  # kernels are compiled, and memory is found, before what is measured
    measured = measure(forward, args.device)
    return {"tokens": passes * tokens.shape[0] * tokens.shape[1], **dataclasses.asdict(measured)}


def _measured(m: dict) -> str:
    ran = f"{m['tokens']:,} tokens run in {m['seconds']:.2f} s"
    if m["joules"] is None:
        return (
            textwrap.fill(f"not measured, {ran}: {m['why']}", 96, subsequent_indent="  ", break_on_hyphens=False) + "\n"
        )
    each = 1e9 * m["joules"] / m["tokens"]
    return (
        f"measured  {each:,.0f} nJ a token: {m['joules']:.2f} J, {ran}, {m['counter']}\n"
        f"          all that the device used meanwhile, idle power and other work too; no bill prices that\n"
    )
