"""The commands that run a graph and that turn event files into others."""

import functools
import time
from pathlib import Path

from rheobase.answer import Answer
from rheobase.backends import simulate as simulate_graph
from rheobase.backends.events import described, edge_writer, open_events, write_edge, write_events
from rheobase.backends.exporters.spinnaker2.frames import as_tokens
from rheobase.backends.exporters.spinnaker2.quantise import quantise, refuse_other_ops
from rheobase.backends.trace import StoredTrace, expand, save_trace
from rheobase.exchange import feed, refuse_input
from rheobase.faulty import with_faults
from rheobase.models.training.run import Run
from rheobase.quickstart import calibration, test_tokens
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.graph.stored import is_graph, load_graph


def simulate(args) -> Answer:
    if bool(args.record) != bool(args.out):
        raise ConfigError("simulate", "--record and --out together", "one of them", "give both or neither")
    if args.device and args.on != "torch":
        raise ConfigError("simulate --device", "--on torch", f"--on {args.on}", "leave --device out")
    if args.fault and (args.on != "integer" or args.out):
        raise ConfigError("simulate --fault", "--on integer, and no --record", f"--on {args.on}", "leave one out")
    as_events = bool(args.out) and Path(args.out).suffix not in (".h5", ".hdf5")
    if as_events:
        edge_writer(args.out)
    elif args.sensor or args.dt is not None:
        raise ConfigError("simulate --sensor, --dt", "an event file as --out", str(args.out), "leave them out")
    where = {"device": args.device} if args.device else {}
    recorded = [] if as_events else args.record
    stored = is_graph(args.run)
    refuse_input(args, stored)
    if stored and args.on in ("integer", "firmware"):
        raise ConfigError("simulate --on", "event or torch for a stored graph", args.on, "choose one")
    run = None if stored else Run.open(args.run)
    if args.fault:
        from tqdm import tqdm

        bar = functools.partial(tqdm, desc="faults", unit="token", disable=True if args.json else None, leave=False)
        table, text = with_faults(run, test_tokens(run, args.tokens)[0], args.fault, args.seed, bar)
        return Answer(table, text)
    if stored:
        graph = load_graph(args.run)
        tokens, whose = feed(graph, args.input, args.tokens)
        whose = f", {whose}"
    else:
        tokens, whose = test_tokens(run, args.tokens), ""
        graph = run.model().lower()
    steps = tokens.shape[0] * tokens.shape[1]
    if args.on in ("integer", "firmware"):
        refuse_other_ops(graph)
        graph, (text, tokens) = as_tokens(graph, calibration(run), tokens)
        graph, _ = quantise(graph, text)
    began = time.monotonic()
    try:
        form = "firmware" if args.on == "integer" else args.on
        trace = simulate_graph(graph, tokens, on=form, record=recorded, **where)
        whose += ", by the firmware's C" if args.on == "integer" else ""
    except UnsupportedError as why:
        if args.on != "integer":
            raise
        trace = simulate_graph(graph, tokens, on="integer", record=recorded)
        whose = f", by its specification in NumPy ({str(why).partition('; ')[0]})"
    seconds = time.monotonic() - began
    kinds = {f"{n.name}.{port}": kind for n in graph.nodes for port, kind in n.op.outputs.items()}
    if as_events:
        sidecar = _write_edge(trace.events, kinds, args)
    elif args.out:
        save_trace(args.out, StoredTrace(tokens, trace.recorded, trace.state, kinds, graph.hash(), args.on))
    rates = {name: events.rate for name, events in trace.events.items()}
    unit = "steps" if stored else "frames" if run.config.sees else "tokens"
    speed = f"{seconds:.2f} s, {steps / seconds:,.0f} {unit} a second"
    lines = [f"{steps:,} {unit} on {args.on} in {speed}{whose}"]
    active = {name: f", {100 * rate:.1f} % active" if steps else "" for name, rate in rates.items()}
    lines += [f"{name}: {len(e):,} events{active[name]}" for name, e in trace.events.items()]
    if as_events:
        lines.append(described(args.out, sidecar))
    elif args.out:
        lines.append(f"recorded {', '.join(trace.recorded)} in {args.out}")
    tally = trace.tally.to_table() if trace.tally else None
    return Answer({"tokens": steps, "seconds": seconds, "rates": rates, "tally": tally}, "\n".join(lines))


def _write_edge(sent: dict[str, Events], kinds: dict[str, str], args) -> dict:
    """Write the one node's events that --record names as an event file; returns its sidecar."""
    found = expand(args.record, sent)
    if len(found) != 1:
        raise ConfigError("simulate --record", "one output for an event file", ", ".join(found), "name one")
    return write_edge(args.out, found[0], sent[found[0]], kinds[found[0]], sensor=args.sensor, dt_s=args.dt)


def convert(args) -> Answer:
    from tqdm import tqdm

    bar = tqdm(desc="convert", unit=" events", unit_scale=True, disable=True if args.json else None, leave=False)
    with bar, open_events(args.source, sensor=args.sensor, sample=args.sample, signal=args.signal) as recording:

        def passing(chunks=recording.chunks):
            for chunk in chunks:
                bar.update(len(chunk))
                yield chunk

        recording.chunks = passing()
        sidecar = write_events(args.out, recording, shift=args.shift)
    return Answer({"out": args.out, "sidecar": sidecar}, described(args.out, sidecar))
