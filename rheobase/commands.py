"""What each command does: it takes the parsed arguments and gives an Answer, for people and for programs."""

import dataclasses
import functools
import json
import platform
import sys
import textwrap
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from rheobase import __version__
from rheobase import quickstart as quick
from rheobase.backends import count as count_operations
from rheobase.backends import export as export_model
from rheobase.backends import price
from rheobase.backends import simulate as simulate_graph
from rheobase.backends import verify as verify_artifact
from rheobase.backends.artifact import MANIFEST, Artifact, open_artifact
from rheobase.backends.counting import (
    Quantity,
    break_even,
    count_phases,
    load_target,
    measure,
    overview,
    show,
    target_names,
)
from rheobase.backends.events import described, event_writer, from_edge, open_events, write_events
from rheobase.backends.exporters import spinnaker2
from rheobase.backends.exporters.spinnaker2 import overview as image_overview
from rheobase.backends.exporters.spinnaker2 import picture
from rheobase.backends.exporters.spinnaker2.calibrate import calibrate
from rheobase.backends.exporters.spinnaker2.estimate import LEVELS, level_toml, read_levels
from rheobase.backends.exporters.spinnaker2.firmware import COMPILER
from rheobase.backends.exporters.spinnaker2.firmware import missing as missing_tool
from rheobase.backends.exporters.spinnaker2.firmware.memory import footprint
from rheobase.backends.exporters.spinnaker2.frames import as_tokens
from rheobase.backends.exporters.spinnaker2.host import library as host_library
from rheobase.backends.exporters.spinnaker2.quantise import quantise, refuse_other_ops
from rheobase.backends.trace import StoredTrace, artifact_trace, compare, expand, load_trace, save_trace
from rheobase.exchange import feed, import_to, tally_of
from rheobase.faulty import with_faults
from rheobase.models import SpikeGPT
from rheobase.models.training import loop
from rheobase.models.training.bag_of_words import bag_of_words
from rheobase.models.training.classify import judge
from rheobase.models.training.event_task import judge_frames
from rheobase.models.training.run import Run, RunConfig, config_names, config_path
from rheobase.models.training.sample import SampleConfig, Writer, stream
from rheobase.models.training.sentence_sets import read_parts
from rheobase.spiking import registry
from rheobase.spiking.config import read_toml, set_key
from rheobase.spiking.errors import ConfigError, FormatError, RheobaseError, UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.files import new_folder, write_atomic
from rheobase.spiking.graph.stored import is_graph, load_graph
from rheobase.spiking.ops.choice import explain
from rheobase.spiking.ops.native import library
from rheobase.spiking.tally import Tally

MEASURE_SECONDS = 2.0
"""Forward passes are repeated for so long: counters of energy are coarse."""


@dataclass(frozen=True)
class Answer:
    """What a command found: a table for --json, text for a person, and whether it is good news."""

    table: dict = field(default_factory=dict)
    text: str = ""
    ok: bool = True


def quickstart(args) -> Answer:
    table = quick.quickstart(Path(args.out), small=args.small, text=args.text, say=_quiet if args.json else print)
    return Answer(table, ok=table["verified"]["ok"])


def train(args) -> Answer:
    if args.resume:
        if not args.out or args.config or args.set:
            raise ConfigError("train --resume", "--out RUN alone", "other arguments", "the run's own config decides")
        run = loop.resume(args.out)
    else:
        if not args.config:
            raise ConfigError("train", "a CONFIG", "none", f"give a TOML file or one of {', '.join(config_names())}")
        table = read_toml(config_path(args.config))
        for assignment in args.set:
            set_key(table, assignment)
        config = RunConfig.from_table(table, args.config)
        run = loop.start(args.out or Path("runs") / Path(args.config).stem, config)
    m = run.metrics()
    if run.config.sees:
        events = run.config.events
        own = events.fit_all or events.folds == 1
        which = "recordings that it was trained on" if own else "the recordings held out"
        valid = f"{100 * m['valid']['accuracy']:.1f} % right on {which}"
    elif run.config.classifies:
        which = "a tenth of its training sentences" if run.config.sentences.fit_all else "the sentences held out"
        valid = f"{100 * m['valid']['accuracy']:.1f} % right on {which}"
    else:
        tokenizer = run.tokenizer()
        valid = f"{m['valid'][tokenizer.measure]:.4f} bits a {tokenizer.unit} on the validation part"
    text = f"{run.folder}: {valid}, best at step {m['best_step']}, {m['train_seconds']:.0f} s"
    return Answer({"run": str(run.folder), **m}, "\n".join([text, *_sparsity(run)]))


def eval(args) -> Answer:
    run = Run.open(args.run)
    if run.config.classifies:
        return _eval_sentences(run, [Run.open(other) for other in args.beside])
    if args.beside:
        raise ConfigError("eval --beside", "a run that classifies sentences", str(args.run), "leave it out")
    if run.config.sees:
        result = judge_frames(run.model(), run.corpus().test, run.config.events, run.config.train.evaluate_batch)
        quality = f"{100 * result.accuracy:.1f} % of {result.recordings:,} recordings right"
    else:
        result = test(run)
        quality = _quality(result, run.tokenizer().unit)
    run.add_metrics(test=result)
    lines = [quality, *_layers(result, run.model()), *_sparsity(run)]
    return Answer(dataclasses.asdict(result), "\n".join(lines))


def _sparsity(run: Run) -> list[str]:
    """A line on the weights that training left at 0, if there are any."""
    found = run.metrics().get("sparsity")
    if not found or not found["zeros"]:
        return []
    share, layers = 100 * found["zeros"] / found["weights"], found["layers"]
    least, most = min(layers, key=layers.get), max(layers, key=layers.get)
    ends = f"{100 * layers[least]:.1f} % of {least} to {100 * layers[most]:.1f} % of {most}"
    return [f"{share:.1f} % of {found['weights']:,} weights are 0: {ends}"]


def _layers(result, model) -> list[str]:
    """A line for each event-based layer of an evaluation."""
    shown = zip(model.event_layers, result.rates, result.dead, result.saturated, strict=True)
    return [
        f"{name}: {100 * rate:.1f} % active, {dead} dead, {saturated} saturated units"
        for name, rate, dead, saturated in shown
    ]


def _eval_sentences(run: Run, beside: list[Run]) -> Answer:
    """Accuracy on the dev part: of the run, of others on the same sentences, and of a bag of words."""
    table, lines = {}, []
    sentences = run.config.sentences
    parts = read_parts(sentences)
    for other in beside:
        if not other.config.classifies or read_parts(other.config.sentences).dev.texts != parts.dev.texts:
            wanted = f"a run that judges the sentences of {run.folder}"
            raise ConfigError("eval --beside", wanted, f"{other.folder}", "leave it out")
    for each in (run, *beside):
        result = judge(each.model(), each.corpus().dev, each.config.train.evaluate_batch)
        each.add_metrics(test=result)
        table[str(each.folder)] = dataclasses.asdict(result)
        lines.append(f"{100 * result.accuracy:.1f} % of {result.sentences:,} sentences right: {each.folder}")
        if each is run:
            layers = _layers(result, each.model())
    floor = bag_of_words(parts.train, parts.held_out, parts.dev, sentences.labels)
    run.add_metrics(bag_of_words=floor)
    lines.append(f"{100 * floor:.1f} %: a bag of words")
    return Answer({"bag_of_words": floor, "runs": table}, "\n".join(lines + layers + _sparsity(run)))


def _quality(result, unit: str) -> str:
    bits = f"{result.bits_per_token:.4f} bits a {unit}, perplexity {result.perplexity:.3f}"
    if unit != "byte":
        bits += f" a {unit}"
        if result.bits_per_byte is not None:
            bits += f", {result.bits_per_byte:.4f} bits a byte"
    return f"{bits}, {result.tokens:,} predictions"


def sample(args) -> Answer:
    run = Run.open(args.run)
    if run.config.classifies or run.config.sees:
        raise UnsupportedError(run.folder, "a language model's run", "a classifier's", "sample from the former")
    names = [f.name for f in dataclasses.fields(SampleConfig)]
    config = SampleConfig(**{name: getattr(args, name) for name in names})
    seeds = range(args.seed, args.seed + args.trials)
    titles = [f"--- seed {seed} ---\n" if args.trials > 1 else "" for seed in seeds]
    model, tokenizer = run.model(), run.tokenizer()
    prompt = tokenizer.encode(args.prompt.encode(errors="surrogateescape")).tolist()
    show = _quiet if args.json else functools.partial(print, end="", flush=True)
    show(titles[0])
    writers = [Writer(tokenizer, prompt) for _ in seeds]
    show(writers[0].fresh())
    for tokens in stream(model, [prompt] * len(seeds), args.length, config, seeds):
        for writer, token in zip(writers, tokens.tolist(), strict=True):
            writer.add(token)
        show(writers[0].fresh())
    for writer in writers:
        writer.flush()
    show(writers[0].fresh() + "\n")
    texts = [writer.text for writer in writers]
    rest = "\n".join(title + text for title, text in zip(titles[1:], texts[1:], strict=True))
    return Answer({"seeds": list(seeds), "texts": texts}, rest)


def count(args) -> Answer:
    stored = is_graph(args.run)
    _refuse_input(args, stored)
    if stored and (args.prefill or args.measure):
        raise ConfigError("count --prefill, --measure", "a run", "a stored graph", "leave it out")
    if not stored:
        run = Run.open(args.run)
        model, tokens = run.model(), torch.from_numpy(test_tokens(run, args.tokens))
    if stored:
        phases = {"all": tally_of(args.run, args.input, args.tokens)}
    elif args.prefill:
        phases = dict(
            zip(("prefill", "decode"), count_phases(model, tokens, args.prefill, strict=args.strict), strict=True)
        )
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


def _refuse_input(args, stored: bool) -> None:
    if args.input and not stored:
        raise ConfigError("--input", "a graph stored by import", f"the run {args.run}", "leave it out")


def _measure(model, tokens: torch.Tensor, args) -> dict:
    """Joules of the forward passes that were counted, again and again for some seconds, as a table."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("count --device", "a device that torch can use", "cuda", "take cpu")
    model, tokens = model.to(args.device), tokens.to(args.device)
    parts = tokens.split([args.prefill, *[1] * (tokens.shape[1] - args.prefill)], 1) if args.prefill else [tokens]
    passes = 0

    @torch.inference_mode()
    def forward():
        nonlocal passes
        began = time.monotonic()
        while passes == 0 or time.monotonic() - began < MEASURE_SECONDS:
            state = None
            for part in parts:
                state = model(part, state)[1]
            passes += 1

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


def simulate(args) -> Answer:
    if bool(args.record) != bool(args.out):
        raise ConfigError("simulate", "--record and --out together", "one of them", "give both or neither")
    if args.device and args.on != "torch":
        raise ConfigError("simulate --device", "--on torch", f"--on {args.on}", "leave --device out")
    if args.fault and (args.on != "integer" or args.out):
        raise ConfigError("simulate --fault", "--on integer, and no --record", f"--on {args.on}", "leave one out")
    as_events = bool(args.out) and Path(args.out).suffix not in (".h5", ".hdf5")
    if as_events:
        event_writer(args.out)
    elif args.sensor or args.dt:
        raise ConfigError("simulate --sensor, --dt", "an event file as --out", str(args.out), "leave them out")
    where = {"device": args.device} if args.device else {}
    recorded = [] if as_events else args.record
    stored = is_graph(args.run)
    _refuse_input(args, stored)
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
        graph, tokens, whose = run.model().lower(), test_tokens(run, args.tokens), ""
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
    if as_events:
        sidecar = _write_edge(trace.events, args)
    elif args.out:
        kinds = {f"{n.name}.{port}": kind for n in graph.nodes for port, kind in n.op.outputs.items()}
        save_trace(args.out, StoredTrace(tokens, trace.recorded, trace.state, kinds, graph.hash(), args.on))
    rates = {name: events.rate for name, events in trace.events.items()}
    unit = "steps" if stored else "frames" if run.config.sees else "tokens"
    speed = f"{seconds:.2f} s, {steps / seconds:,.0f} {unit} a second"
    lines = [f"{steps:,} {unit} on {args.on} in {speed}{whose}"]
    lines += [f"{name}: {len(e):,} events, {100 * e.rate:.1f} % active" for name, e in trace.events.items()]
    if as_events:
        lines.append(described(args.out, sidecar))
    elif args.out:
        lines.append(f"recorded {', '.join(trace.recorded)} in {args.out}")
    tally = trace.tally.to_table() if trace.tally else None
    return Answer({"tokens": steps, "seconds": seconds, "rates": rates, "tally": tally}, "\n".join(lines))


def _write_edge(sent: dict[str, Events], args) -> dict:
    """Write the one node's events that --record names as an event file; returns its sidecar."""
    found = expand(args.record, sent)
    if len(found) != 1:
        raise ConfigError("simulate --record", "one output for an event file", ", ".join(found), "name one")
    recording = from_edge(sent[found[0]], args.sensor, args.dt)
    recording.about["edge"] = found[0]
    return write_events(args.out, recording)


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


def export(args) -> Answer:
    own = {"dram": False if args.no_dram else None, "chips": args.chips, "dt_s": args.dt, "gain": args.gain}
    own |= {"relay": args.relay or None, "legacy": args.legacy or None}
    options = {name: value for name, value in own.items() if value is not None}
    if is_graph(args.run):
        source, tokens = load_graph(args.run), None
    else:
        run = Run.open(args.run)
        source, tokens = run.model(), calibration(run)
    made = export_model(source, args.to, args.out, calibration=tokens, allow_lossy=args.allow_lossy, **options)
    size = sum(f["bytes"] for f in made.manifest["files"].values())
    worst = [
        f"{d['node']} {d['field']} to {d['written']} (at most {d['bound']:.2g})" for d in made.manifest["deviations"]
    ]
    lines = [f"{made.path}: {len(made.manifest['files'])} files, {size:,} bytes", *made.manifest.get("notes", ())]
    if outside := [name for name, place in made.manifest["coverage"].items() if place.startswith("outside")]:
        lines.append(f"outside: {', '.join(outside)}")
    text = "\n".join([*lines, "changed: " + ("; ".join(worst) or "nothing")])
    return Answer({"path": str(made.path), "manifest": made.manifest}, text)


def import_(args) -> Answer:
    return Answer(*import_to(args))


def verify(args) -> Answer:
    report = verify_artifact(args.path, **({"emulation": args.emulate} if args.emulate else {}))
    text = "\n".join(
        [f"verified: {report.compared:,} integers compared, {report.mismatches:,} mismatches", *report.notes]
    )
    if not report.ok:
        raise RheobaseError(args.path, "a whole artefact that replays its trace", report.problem, "export it anew")
    if not args.against:
        return Answer(dataclasses.asdict(report), text)
    other = verify_artifact(args.path, against=args.against)
    if not other.ok:
        raise RheobaseError(args.against, f"the integers of {args.path}", other.problem, "look for the cause there")
    text += f"\n{args.against}: {other.compared:,} integers compared, 0 mismatches"
    return Answer({**dataclasses.asdict(report), "against": dataclasses.asdict(other)}, text)


def inspect(args) -> Answer:
    path = Path(args.path)
    if (path / MANIFEST).is_file():
        return _inspect_artefact(open_artifact(path), args.out, args.target)
    if args.out or args.target:
        raise ConfigError("inspect --out, --target", "an exported directory", str(path), "leave it out")
    if path.suffix in (".pt", ".pth"):
        lines = []
        model = SpikeGPT.from_reference(path, binary_embedding=True, say=lines.append)
        lines.append("a SpikeGPT of the original; whether its embedding is binary the file does not say")
        return Answer({"kind": "spikegpt", "config": dataclasses.asdict(model.config)}, "\n".join(lines))
    if path.suffix in (".h5", ".hdf5"):
        trace = load_trace(path)
        lines = [f"trace of {trace.tokens.shape[1]} tokens on {trace.simulator}, graph {trace.graph[:12]}"]
        lines += [f"  {name:<28}{a.dtype!s:<10}{a.shape}" for name, a in trace.signals.items()]
        shapes = {name: a.shape for name, a in trace.signals.items()}
        return Answer({"kind": "trace", "tokens": trace.tokens.shape, "signals": shapes}, "\n".join(lines))
    if is_graph(path):
        graph = load_graph(path)
        lines = [f"graph {graph.hash()[:12]}", *(f"  {n.name:<28}{n.op}" for n in graph.nodes)]
        return Answer({"kind": "graph", "graph": graph.hash()}, "\n".join(lines))
    run = Run.open(path)
    m = run.metrics()
    return Answer(
        {"kind": "run", "config": run.config.to_table(), "metrics": m}, run.config_path.read_text() + f"\n{m}"
    )


def _inspect_artefact(artifact: Artifact, out: str | None, target: str | None) -> Answer:
    """Files and coverage; of a SpiNNaker 2 image its overview, the firmware's memory and a picture too."""
    m = artifact.manifest
    image = m["exporter"] == "spinnaker2"
    if (out or target) and not image:
        raise ConfigError("inspect --out, --target", "a SpiNNaker 2 image", m["format"], "leave it out")
    view = spinnaker2.describe(artifact, read_levels(target) if target else LEVELS) if image else None
    lines = [f"{m['format']} by rheobase {m['version']}, graph {m['graph'][:12]}", *m.get("notes", ())]
    lines += [f"  {n:<22}{entry['bytes']:>10,} bytes" for n, entry in m["files"].items() if not n.startswith("pe/")]
    lines += [f"  {node:<28}{where}" for node, where in m["coverage"].items()]
    table = {"kind": "artefact", "manifest": m}
    if view:
        lines.append(image_overview.text(view))
        table |= image_overview.table(view)
    if view and missing_tool() != COMPILER:
        table["firmware"] = dataclasses.asdict(memory := footprint())
        lines.append(str(memory))
    if out:
        picture.draw(view, out)
        lines.append(f"drawn in {out}")
    return Answer(table, "\n".join([*lines, f"not claimed: {m['not_claimed']}"]))


def diff(args) -> Answer:
    a, b = (_signals(Path(p)) for p in (args.a, args.b))
    compared, different, first = compare(a, b)
    text = f"{compared:,} numbers compared, {different:,} differ" + (f"\nfirst: {first}" if first else "")
    table = {"compared": compared, "different": different, "first": vars(first) if first else None}
    return Answer(table, text, ok=different == 0)


def _signals(path: Path) -> dict[str, np.ndarray]:
    """Signals [B, T, n] of a trace, of an artefact's trace, or of a run: its log by step, and its weights."""
    if path.suffix in (".h5", ".hdf5"):
        return dict(load_trace(path).signals)
    if (path / MANIFEST).is_file():
        return dict(artifact_trace(open_artifact(path)).signals)
    run = Run.open(path)
    losses = np.array([r[run.measure] for r in run.log() if run.measure in r])
    weights = {f"model.{k}": v.double().numpy().reshape(1, 1, -1) for k, v in run.model().state_dict().items()}
    return {f"log.{run.measure}": losses.reshape(1, -1, 1), **weights}


def report(args) -> Answer:
    runs = [Run.open(p) for p in (args.run, *args.beside)]
    path = Path(args.out or Path(args.run) / "report.html")
    quick.make_report(path, runs, args.image, command=f"rheobase report {args.run}")
    return Answer({"report": str(path)}, str(path))


def targets(args) -> Answer:
    if args.names[:1] == ["calibrate"]:
        return _calibrate(args)
    if len(args.names) > 1 or args.power or args.trace or args.out:
        raise ConfigError("targets", "one NAME, or calibrate NAME", "more", "see rheobase targets --help")
    if not args.names:
        found = [load_target(name) for name in target_names()]
        heads = {"macs": "a multiply-accumulate", "acs": "an accumulate", "weight_bytes": "a byte of weights"}
        rows = [f"{'central (low to high)':<21}" + "".join(f"{head:>25}" for head in heads.values())]
        for target in found:
            rows.append(f"{target.name:<21}" + "".join(f"{_span(target.terms.get(term)):>25}" for term in heads))
        rows.append("- no citable figure; rheobase targets NAME gives every constant and its source")
        return Answer({target.name: dataclasses.asdict(target) for target in found}, "\n".join(rows))
    target = load_target(args.names[0])
    lines = [target.title, textwrap.fill(target.note, 96)]
    quantities = {**target.terms, **({"idle_watts": target.idle_watts} if target.idle_watts else {})}
    for term, q in quantities.items():
        lines.append(f"  {term:<18}{q.each:>10}, {q.span}")
        lines.append(textwrap.fill(q.citation, 96, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return Answer(dataclasses.asdict(target), "\n".join(lines))


def _calibrate(args) -> Answer:
    """Measured constants of a level beside those that they replace, and the file that holds them."""
    if args.names[1:] != ["spinnaker2"]:
        raise ConfigError("targets calibrate", "spinnaker2", " ".join(args.names[1:]) or "none", "name it")
    if not args.power or len(args.power) != len(args.trace):
        got = f"{len(args.power)} and {len(args.trace)}"
        raise ConfigError("targets calibrate", "a --power and a --trace of each run", got, "give them in pairs")
    found = calibrate(list(zip(args.power, args.trace, strict=True)))
    table = dataclasses.asdict(found)
    if not args.out:
        return Answer(table, str(found))
    write_atomic(args.out, level_toml(found.after))
    return Answer({**table, "out": args.out}, f"{found}\n{args.out}: for rheobase inspect DIR --target {args.out}")


def _span(quantity: Quantity | None) -> str:
    if quantity is None:
        return "-"
    bounds = f" ({quantity.low:g} to {quantity.high:g})" if quantity.low < quantity.high else ""
    return f"{quantity.central:g}{bounds} {quantity.unit}"


def cite(args) -> Answer:
    citations = registry.get("rheobase.models", Run.open(args.run).config.model).Model.citations
    return Answer({"bibtex": list(citations)}, "\n\n".join(citations))


def bench(args) -> Answer:
    from tqdm import tqdm

    from rheobase.bench import Setting, show, time_parts
    from rheobase.bench.chart import draw

    trained = None
    if args.run:
        run = Run.open(args.run)
        if run.config.model != "egru_lm":
            raise UnsupportedError(run.folder, "an EGRU language model's run", run.config.model, "give another run")
        trained = run.model(), test_tokens(run, 1000)
    if args.out and Path(args.out).exists():
        raise FormatError(args.out, "a folder that does not exist yet", "an existing one", "choose another --out")
    setting = Setting(args.device, args.rounds, args.compile, args.small)
    bar = tqdm(bar_format="{desc} [{elapsed}]", disable=None, leave=False)
    with bar, loop.threads(args.threads):
        record = time_parts(args.parts, setting, bar.set_description_str, trained)
    if not args.out:
        return Answer(record, show(record))
    with new_folder(args.out) as folder:
        write_atomic(folder / "bench.json", json.dumps(record, indent=2).encode())
        draw(record, folder / "bench.png")
    return Answer(record, f"{show(record)}\n\n{args.out}: bench.json, bench.png")


def doctor(args) -> Answer:
    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def kernels(op, device):
        try:
            return explain(op, device)
        except RheobaseError as error:
            return str(error)

    cuda = torch.cuda.is_available()
    packages = "torch numpy h5py safetensors triton snntorch norse nir lz4 tonic tokenizers pooch".split()
    table = {
        "rheobase": __version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()} {platform.system()}",
        "threads": torch.get_num_threads(),
        "c_library": library() is not None,
        "firmware_on_host": host_library() is not None,
        "firmware_in_qemu": f"no: {tool} is not installed" if (tool := missing_tool()) else True,
        **{f"{op}_kernels": kernels(op, "cpu") for op in ("lif", "wkv", "egru")},
        "cuda": torch.cuda.get_device_name(0) if cuda else None,
        **{f"{op}_kernels_cuda": kernels(op, "cuda") if cuda else None for op in ("lif", "wkv", "egru")},
        **{name: version(name) for name in packages},
    }
    words = {True: "yes", False: "no: NumPy and torch are used; install a C compiler and reinstall", None: "not here"}
    return Answer(
        table,
        "\n".join(
            f"{k:<18}{words.get(v, v) if not isinstance(v, int) or isinstance(v, bool) else v}"
            for k, v in table.items()
        ),
    )


def _quiet(*_):
    pass


test, test_tokens, calibration = quick.test, quick.test_tokens, quick.calibration
