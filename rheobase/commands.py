"""What each command does: it takes the parsed arguments and gives an Answer, for people and for programs."""

import dataclasses
import functools
import json
import os
import textwrap
from pathlib import Path

from rheobase import quickstart as quick
from rheobase import sharing
from rheobase.answer import Answer, by_layer
from rheobase.backends import export as export_model
from rheobase.backends import verify as verify_artifact
from rheobase.backends.artifact import Report
from rheobase.backends.counting import (
    Quantity,
    load_target,
    target_names,
)
from rheobase.backends.exporters import open_exported, refuse_options
from rheobase.backends.exporters.spinnaker2.calibrate import calibrate
from rheobase.backends.exporters.spinnaker2.estimate import level_toml
from rheobase.counting import count as count
from rheobase.doctor import doctor as doctor
from rheobase.dry_run import dry_run
from rheobase.exchange import feed, refuse_input
from rheobase.exchange import import_ as import_
from rheobase.inspecting import diff as diff
from rheobase.inspecting import inspect as inspect
from rheobase.models.training import loop
from rheobase.models.training.bag_of_words import bag_of_words
from rheobase.models.training.classify import judge, judge_apart
from rheobase.models.training.event_task import judge_frames
from rheobase.models.training.run import Run, RunConfig, config_path
from rheobase.models.training.sample import SampleConfig, Writer, stream
from rheobase.models.training.sentence_sets import read_parts
from rheobase.quickstart import calibration, test, test_on, test_tokens
from rheobase.simulating import convert as convert
from rheobase.simulating import simulate as simulate
from rheobase.spiking import registry
from rheobase.spiking.config import read_toml, set_key
from rheobase.spiking.errors import ConfigError, FormatError, RheobaseError, UnsupportedError
from rheobase.spiking.files import new_folder, write_atomic
from rheobase.spiking.graph.stored import is_graph, load_graph
from rheobase.sweep_runs import sweep as sweep


def quickstart(args) -> Answer:
    table = quick.quickstart(Path(args.out), small=args.small, text=args.text, say=_quiet if args.json else print)
    return Answer(table, ok=table["verified"]["ok"])


def train(args) -> Answer:
    if args.resume and (args.dry_run or (args.set and not args.config)):
        raise ConfigError("train --resume", "--out RUN, or its CONFIG too", "other arguments", "leave them out")
    config, out = None, args.out
    if args.config:
        table = read_toml(config_path(args.config))
        for assignment in args.set:
            set_key(table, assignment)
        config, out = RunConfig.from_table(table, args.config), out or Path("runs") / Path(args.config).stem
    if args.dry_run:
        return dry_run(config)
    if args.resume and config:
        _require_its_own(Run.open(out), config)
    run = loop.resume(out) if args.resume else loop.start(out, config)
    if int(os.environ.get("RANK", "0")):
        return Answer()  # of the ranks that trained together, the first one speaks
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


def _require_its_own(run: Run, config: RunConfig) -> None:
    """Refuse to go on with a run by another configuration than its own."""
    own, given = run.config.to_table(), config.fitted(None if config.sees else run.tokenizer()).to_table()
    for section, settings in own.items():
        for key in settings | given[section]:
            was, now = settings.get(key), given[section].get(key)
            if was != now:
                where, remedy = f"{section}.{key}", "leave CONFIG out, or train another run"
                raise ConfigError(where, f"{was!r}, as the run {run.folder} has it", repr(now), remedy)


def eval(args) -> Answer:
    run = Run.open(args.run)
    own = args.text is not None
    if own and (run.config.classifies or run.config.sees):
        raise ConfigError("eval --text", "a language model's run", f"a classifier's, {args.run}", "leave it out")
    if run.config.classifies:
        return _eval_sentences(run, [Run.open(other) for other in args.beside])
    if args.beside:
        raise ConfigError("eval --beside", "a run that classifies sentences", str(args.run), "leave it out")
    if run.config.sees:
        result = judge_frames(run.model(), run.corpus().test, run.config.events, run.config.train.evaluate_batch)
        quality = f"{100 * result.accuracy:.1f} % of {result.recordings:,} recordings right"
    else:
        result = test_on(run, args.text) if own else test(run)
        quality = _quality(result, run.tokenizer().unit)
    lost = [] if run.shipped or own else _add_metrics(run, test=result)
    lines = [quality, *_layers(result, run.model()), *_sparsity(run), *lost]
    return Answer(dataclasses.asdict(result), "\n".join(lines))


def _add_metrics(run: Run, **entries) -> list[str]:
    """Add to a run's metrics.json; a line if that cannot be written, as in somebody else's folder."""
    try:
        run.add_metrics(**entries)
    except OSError as error:
        return [f"not kept in {run.folder}/metrics.json: {error.strerror}"]
    return []


def _sparsity(run: Run) -> list[str]:
    """A line on the weights that training left at 0, if there are any."""
    found = run.metrics().get("sparsity")
    if not found or not (found["zeros"] and found["weights"] and found["layers"]):
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
    table, lines, lost = {}, [], []
    sentences = run.config.sentences
    parts = read_parts(sentences)
    for other in beside:
        if not other.config.classifies or read_parts(other.config.sentences).dev.texts != parts.dev.texts:
            wanted = f"a run that judges the sentences of {run.folder}"
            raise ConfigError("eval --beside", wanted, f"{other.folder}", "leave it out")
    for each in (run, *beside):
        model, dev, batch = each.model(), each.corpus().dev, each.config.train.evaluate_batch
        result = judge(model, dev, batch)
        found, line = dataclasses.asdict(result), f"{100 * result.accuracy:.1f} % of {len(dev):,} sentences right"
        if model.counted is not None:
            network, counts = judge_apart(model, dev, batch)
            found |= {"network_alone": network, "counts_alone": counts}
            line += f" ({100 * network:.1f} % by its network alone, {100 * counts:.1f} % by its counted words alone)"
        lost += _add_metrics(each, test=found)
        table[str(each.folder)] = found
        lines.append(f"{line}: {each.folder}")
        if each is run:
            layers = _layers(result, model)
    floor = bag_of_words(parts.train, parts.held_out, parts.dev, sentences.labels)
    lost += _add_metrics(run, bag_of_words=floor)
    lines.append(f"{100 * floor:.1f} %: a bag of words")
    lines += [*layers, *_sparsity(run), *dict.fromkeys(lost)]
    return Answer({"bag_of_words": floor, "runs": table}, "\n".join(lines))


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
    prompt = tokenizer.encode(args.prompt.encode(errors="surrogateescape"), where="prompt").tolist()
    show = _quiet if args.json else functools.partial(print, end="", flush=True)
    writers = [Writer(tokenizer, prompt) for _ in seeds]
    for i, tokens in enumerate(stream(model, [prompt] * len(seeds), args.length, config, seeds, tokenizer.vocabulary)):
        for writer, token in zip(writers, tokens.tolist(), strict=True):
            writer.add(token)
        show((titles[0] if i == 0 else "") + writers[0].fresh())
    for writer in writers:
        writer.flush()
    show(writers[0].fresh() + "\n")
    texts = [writer.text for writer in writers]
    rest = "\n".join(title + text for title, text in zip(titles[1:], texts[1:], strict=True))
    return Answer({"seeds": list(seeds), "texts": texts}, rest)


def export(args) -> Answer:
    own = {"dram": False if args.no_dram else None, "chips": args.chips, "dt_s": args.dt, "gain": args.gain}
    own |= {"relay": args.relay or None, "legacy": args.legacy or None, "format": args.format}
    options = {name: value for name, value in own.items() if value is not None}
    stored = is_graph(args.run)
    refuse_input(args, stored)
    if stored:
        source = load_graph(args.run)
        tokens = feed(source, args.input, 0)[0] if args.input else None
    else:
        run = Run.open(args.run)
        source, tokens = run.model(), calibration(run)
    made = export_model(source, args.to, args.out, calibration=tokens, allow_lossy=args.allow_lossy, **options)
    size = sum(f["bytes"] for f in made.manifest["files"].values())
    lines = [f"{made.path}: {len(made.manifest['files'])} files, {size:,} bytes", *made.manifest.get("notes", ())]
    coverage = made.manifest["coverage"]
    if outside := [name for name, place in coverage.items() if place.startswith("outside")]:
        lines.append(f"outside: {', '.join(by_layer(outside, coverage))}")
    text = "\n".join([*lines, *_changed(made.manifest["deviations"])])
    return Answer({"path": str(made.path), "manifest": made.manifest}, text)


def _changed(deviations: list[dict]) -> list[str]:
    """A line for each field that an exporter changed: of how many nodes, to what, and the most that a number moved."""
    fields: dict[str, list[dict]] = {}
    for change in deviations:
        fields.setdefault(change["field"], []).append(change)
    lines = []
    for field, same in fields.items():
        worst, formats = max(same, key=lambda d: d["bound"]), {d["written"] for d in same}
        nodes = len({d["node"] for d in same})
        whose = worst["node"] if nodes == 1 else f"{nodes} nodes"
        which = worst["written"] if len(formats) == 1 else f"{len(formats)} formats, such as {worst['written']}"
        where = f", {worst['node']}" if nodes > 1 and worst["bound"] else ""
        lines.append(f"  {field} of {whose} to {which} (at most {worst['bound']:.2g}{where})")
    return ["changed, node by node in the manifest:", *lines] if lines else ["changed: nothing"]


def verify(args) -> Answer:
    report = verify_artifact(args.path, **({"emulation": args.emulate} if args.emulate else {}))
    text = "\n".join(
        [f"verified: {report.compared:,} numbers compared, {report.mismatches:,} mismatches", *report.notes]
    )
    if not report.ok:
        raise _differs(args.path, "a whole artefact that replays its trace", report, "export it anew")
    if not args.against:
        return Answer(dataclasses.asdict(report), text)
    artifact, exporter = open_exported(args.path)
    refuse_options(artifact, exporter, {"against": args.against})
    other = exporter.verify(artifact, against=args.against)
    if not other.ok:
        raise _differs(args.against, f"the integers of {args.path}", other, "look for the cause there")
    text += f"\n{args.against}: {other.compared:,} integers compared, 0 mismatches"
    return Answer({**dataclasses.asdict(report), "against": dataclasses.asdict(other)}, text)


def _differs(where: str, expected: str, report: Report, remedy: str) -> RheobaseError:
    error = RheobaseError(where, expected, report.problem, remedy)
    error.fields = {name: getattr(report, name) for name in ("compared", "mismatches", "first")}
    return error


def report(args) -> Answer:
    runs = [Run.open(p) for p in (args.run, *args.beside)]
    path = Path(args.out or Path(args.run) / "report.html")
    lacking = quick.make_report(path, runs, args.image, command=f"rheobase report {args.run}")
    text = f"{path}\nno raster of events: {lacking}" if lacking else str(path)
    return Answer({"report": str(path), "no_raster": lacking}, text)


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


def card(args) -> Answer:
    run = Run.open(args.run)
    about = {"licence": args.licence, "notes": tuple(args.note), "target": args.target, "text": args.text}
    if not run.shipped:
        page = sharing.card(run, **about)
    elif about == {"licence": "unknown", "notes": (), "target": sharing.TARGET, "text": None}:
        page = sharing.shipped_card(run)
    else:
        raise ConfigError("card", f"no option but --out for {args.run}, which has a card", "others", "leave them out")
    if not args.out:
        return Answer({"card": str(page), "metadata": page.data.to_dict()}, str(page))
    sharing.share(run, args.out, page)
    return Answer({"out": args.out, "card": str(page), "metadata": page.data.to_dict()}, f"{args.out}: ready to share")


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
        record = time_parts(args.parts, setting, bar.set_description_str, trained, args.debug)
    if not args.out:
        return Answer(record, show(record), ok=not record["failed"])
    with new_folder(args.out) as folder:
        write_atomic(folder / "bench.json", json.dumps(record, indent=2).encode())
        draw(record, folder / "bench.png")
    return Answer(record, f"{show(record)}\n\n{args.out}: bench.json, bench.png", ok=not record["failed"])


def _quiet(*_):
    pass
