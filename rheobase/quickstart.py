"""The whole way on a CPU: two models from real text, their costs, an image, its verification and a report."""

import dataclasses
import json
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from rheobase import __version__
from rheobase.backends import count, export, price, simulate, verify
from rheobase.backends.artifact import open_artifact
from rheobase.backends.counting import break_even, overview, target_names
from rheobase.backends.exporters.spinnaker2 import run_machine
from rheobase.models.training import loop
from rheobase.models.training.corpus import Splits, encode_file
from rheobase.models.training.data import BUILT_IN, require_below
from rheobase.models.training.evaluate import Evaluation, bits_per_token, evaluate_part
from rheobase.models.training.event_corpus import Frames
from rheobase.models.training.event_task import as_pixels
from rheobase.models.training.run import Run, RunConfig, config_path
from rheobase.models.training.sample import sample
from rheobase.spiking.config import read_toml
from rheobase.spiking.errors import FormatError, UnsupportedError

SMALL = {"steps": 60, "batch": 16, "context": 32, "evaluate_every": 60, "checkpoint_every": 60, "warmup": 5}
SMALL_WIDTH = 48
INTEGER_TOKENS = 10_000
COUNT_TOKENS = 1000
RASTER_TOKENS = 1000
PROMPT = b"The "
BILLED = ("horowitz-45nm", "spinnaker2")
"""The targets whose bills are shown line by line; the others in sum."""


def test(run: Run) -> Evaluation:
    """The run's model on the test part of its text."""
    return evaluate_part(run.model(), run.splits(), "test", run.config.train)


def test_on(run: Run, path: str) -> Evaluation:
    """The run's model on a file of text, in as many streams as its test part; raises FormatError, ShapeError."""
    config, model = run.config, run.model()
    ids, n_bytes = encode_file(path, config.data, run.tokenizer())
    require_below(config.settings.vocabulary, ids, path)
    return evaluate_part(model, Splits({"test": ids}, {"test": n_bytes}), "test", config.train)


def test_tokens(run: Run, n: int) -> np.ndarray:
    """The first n tokens of the test part, [1, n]; of recordings, the first whole ones of n frames or fewer, at least
    one, [B, T, C, H, W]."""
    if run.config.sees:
        return _frames(run, run.corpus().test, n)
    part = run.tokens("test")
    if len(part) < n:
        raise FormatError("the test part of the text", f"{n} tokens", f"{len(part)}", f"lower --tokens to {len(part)}")
    return part[:n].astype(np.int64)[None]


def test_sentences(run: Run, n: int) -> list[np.ndarray]:
    """The first whole sentences that are judged, n tokens of them or fewer, at least one, each [1, T]."""
    rows = run.corpus().dev.tokens
    ends = np.cumsum([len(row) for row in rows])
    return [row.astype(np.int64)[None] for row in rows[: max(1, np.searchsorted(ends, n, "right"))]]


def _frames(run: Run, part: Frames, n: int) -> np.ndarray:
    """The first whole recordings of n frames or fewer, at least one, as the model reads them."""
    events = run.config.events
    pixels = as_pixels(part[: max(n // events.steps, 1)].frames, run.config.settings, events)
    return (pixels.double() if run.config.train.precision == "float64" else pixels).numpy()


def calibration(run: Run) -> np.ndarray:
    """Up to 8 stretches of 256 tokens of the validation part, [8, 256], or 8 recordings held out of training."""
    if run.config.sees:
        return _frames(run, run.corpus().held_out, 8 * run.config.events.steps)
    part = run.tokens("valid")
    length = min(256, len(part) // 8)
    return part[: 8 * length].astype(np.int64).reshape(8, length)


def integer_bits(image: str | Path, tokens: np.ndarray) -> float:
    """Bits a token of an exported image over one stream of them [n], by the interpreter that reads its bytes."""
    from tqdm import tqdm

    def progress(stream):
        return tqdm(stream, desc="integers", unit="token", disable=None, leave=False)

    artifact = open_artifact(image)
    logits = run_machine(artifact, tokens[:-1], progress)[artifact.manifest["logits"]][0]
    return bits_per_token(logits / 2.0 ** artifact.manifest["arithmetic"]["logit_frac"], tokens[1:])


def quickstart(out: Path, *, small: bool = False, text: str | None = None, say=print) -> dict:
    """Train the EGRU and the LSTM, test them, count, export, verify and report into the folder `out`.

    One thread: at this size a second gains little, and costs much where the machine is busy.

    small    a few seconds of training: the way, not the quality
    text     a text file instead of the built-in text
    say      called with each line for a person
    returns  a table of all figures
    raises   FormatError: `out` exists;  errors of the text as in `training.data`
    """
    with loop.threads(1):
        return _quickstart(out, small, text, say)


def _quickstart(out: Path, small: bool, text: str | None, say) -> dict:
    began = time.monotonic()
    if out.exists():
        raise FormatError(
            out, "a folder that does not exist yet", "an existing one", "choose another --out or remove it"
        )
    configs = {name: _config(name, small, text) for name in ("egru", "lstm")}
    corpora = {name: config.corpus() for name, config in configs.items()}
    parts = {name: len(part) for name, part in corpora["egru"].splits.parts.items()}
    n_bytes = sum(parts.values())
    names = {"train": "training", "valid": "validation", "test": "test"}
    shares = ", ".join(f"{100 * n / n_bytes:.0f} % {names[part]}" for part, n in parts.items())
    source = text or "Python's language reference (pydoc_data.topics)"
    say(f"rheobase {__version__}: an EGRU language model, from text to a verified SpiNNaker 2 image")
    say(f"text      {source}, {n_bytes:,} bytes: {shares}")
    for name, config in configs.items():
        loop.prepare(config, corpora[name])

    runs, tested = {}, {}
    for name, config in configs.items():
        t = config.train
        say(f"train     {name.upper()}: {t.steps} steps of {t.batch} x {t.context} bytes ...")
        runs[name] = loop.start(out / name, config)
        tested[name] = test(runs[name])
        runs[name].add_metrics(test=tested[name])
        m = runs[name].metrics()
        say(f"          {m['parameters']:,} parameters, {m['train_seconds']:.0f} s")
    egru, lstm = tested["egru"], tested["lstm"]
    gap = egru.bits_per_byte / lstm.bits_per_byte
    say(f"test      EGRU {egru.bits_per_byte:.3f} bits a byte, LSTM {lstm.bits_per_byte:.3f}: {gap:.3f} x the LSTM,")
    say(f"          on {egru.tokens:,} bytes used for nothing else")
    for i, rate in enumerate(egru.rates):
        say(f"events    layer {i}: {100 * rate:.1f} % active, {egru.dead[i]} units dead, {egru.saturated[i]} saturated")

    model = runs["egru"].model()
    tokens = test_tokens(runs["egru"], min(COUNT_TOKENS, len(configs["egru"].splits().test)))
    tallies = {name: count(run.model(), torch.from_numpy(tokens)) for name, run in runs.items()}
    per = tokens.size
    for name, tally in tallies.items():
        macs, dense = tally.macs / per, tally.dense_macs / per
        say(f"count     {name.upper()}: {macs:,.0f} of {dense:,.0f} dense MACs a token, {100 * macs / dense:.1f} %")
    bills = {target: price(tallies["egru"], target) for target in target_names()}
    for target in BILLED:
        say(f"bill      {bills[target]}\n{break_even(tallies['egru'], target)}".replace("\n", "\n  "))
    for name, tally in tallies.items():
        beside = overview([price(tally, target) for target in target_names()])
        say(f"bills     {name.upper()} on every target\n{beside}".replace("\n", "\n  "))

    image = out / "spinnaker2"
    artifact = export(model, "spinnaker2", image, calibration=calibration(runs["egru"]))
    size = sum(f["bytes"] for name, f in artifact.manifest["files"].items() if name.endswith(".bin"))
    n_pes = sum(name.startswith("pe/") for name in artifact.manifest["files"])
    say(f"export    {image}: {size:,} bytes on {n_pes} processing element{'s' * (n_pes != 1)} and in DRAM")
    stretch = configs["egru"].splits().test[: (INTEGER_TOKENS if not small else COUNT_TOKENS) + 1].astype(np.int64)
    floats = simulate(model.lower(), stretch[None, :-1], on="torch").outputs["logits"][0]
    float_bits, int_bits = bits_per_token(floats, stretch[1:]), integer_bits(image, stretch)
    loss = 100 * (int_bits / float_bits - 1)
    say(
        f"          {int_bits:.4f} bits a byte in integers, {float_bits:.4f} in float32, "
        f"{loss:+.2f} % ({len(stretch) - 1:,} bytes)"
    )
    verified = verify(image)
    say(
        f"verified  {verified.compared:,} integers compared, {verified.mismatches:,} mismatches"
        if verified.ok
        else f"NOT VERIFIED: {verified.problem}"
    )
    command = "rheobase quickstart" + (" --small" if small else "") + (f" --text {text}" if text else "")
    runs["egru"].add_metrics(integer={"float_bits": float_bits, "integer_bits": int_bits, "tokens": len(stretch) - 1})
    page = out / "report.html"
    make_report(page, list(runs.values()), image, command=command)
    seconds = time.monotonic() - began
    say(f"report    {page}")
    say(f"done in {seconds:.0f} s")
    return {
        "seconds": seconds,
        "test": {name: dataclasses.asdict(e) for name, e in tested.items()},
        "gap": gap,
        "tallies": {name: tally.to_table() for name, tally in tallies.items()},
        "bills": {name: bill.to_table() for name, bill in bills.items()},
        "image": {"path": str(image), "bytes": size, "pes": n_pes},
        "integer": {"bits_per_byte": int_bits, "float_bits_per_byte": float_bits, "tokens": len(stretch) - 1},
        "verified": dataclasses.asdict(verified),
        "report": str(page),
    }


def _config(name: str, small: bool, text: str | None) -> RunConfig:
    table = read_toml(config_path(f"quickstart_{name}"))
    if text is not None:
        table.setdefault("data", {})["text"] = text
    if small:
        table["train"] |= SMALL
        table["model"] |= {"embedding": SMALL_WIDTH, "layers": [SMALL_WIDTH]}
    return RunConfig.from_table(table, f"quickstart_{name}.toml")


def make_report(path: Path, runs: list[Run], image: str | Path | None, *, command: str) -> str | None:
    """Write the HTML report of the first run, beside the others; all figures are measured or read off the runs here.

    returns  why it has no raster of events, where the model has no graph to be simulated
    """
    from rheobase.backends.report import ReportData, ReportImage, ReportModel, write_report

    first = runs[0]
    for run in runs[1:]:
        if run.metrics().get("text_sha256") != first.metrics().get("text_sha256"):
            raise FormatError(run.folder, "a run on the same text", "another text", "compare runs of one text")
        if run.tokenizer().digest != first.tokenizer().digest:
            raise FormatError(run.folder, f"the tokens of {first.folder}", "others", "compare runs of one tokenizer")
    if image and open_artifact(image).manifest["graph"] != first.model().lower().hash():
        raise FormatError(image, f"an export of {first.folder}", "of another model", "export this run")
    models = []
    for run in runs:
        tokens, trained = test_tokens(run, min(COUNT_TOKENS, len(run.splits().test))), run.model()
        evaluation = run.figures(trained).get("test") or dataclasses.asdict(test(run))
        tally = count(trained, torch.from_numpy(tokens))
        models.append(
            ReportModel(
                name=run.config.model.removesuffix("_lm").upper(),
                parameters=trained.n_parameters,
                log=run.log(),
                evaluation=evaluation,
                layers=trained.event_layers,
                tally=tally,
                bills=tuple(price(tally, target) for target in target_names()),
            )
        )
    model, tokenizer = first.model(), first.tokenizer()
    stretch = test_tokens(first, min(RASTER_TOKENS, len(first.splits().test)))
    prompt = tokenizer.encode(PROMPT).tolist() if tokenizer.unit == "byte" else stretch[0, :4].tolist()
    events, lacking = {}, None
    try:
        events = simulate(model.lower(), stretch).events
    except UnsupportedError as error:
        lacking = str(error)
    written = sample(model, [prompt], 500, vocabulary=tokenizer.vocabulary)[0]
    shown = None
    if image:
        artifact = open_artifact(image)
        integer = first.metrics().get("integer", {})
        shown = ReportImage(
            manifest=artifact.manifest,
            partition=json.loads(artifact.read("partition.json")),
            verified=verify(image),
            float_bits=integer.get("float_bits"),
            integer_bits=integer.get("integer_bits"),
            integer_tokens=integer.get("tokens"),
        )
    text = "the Python language reference" if first.config.data.text == BUILT_IN else first.config.data.text
    write_report(
        path,
        ReportData(
            title=f"An event-based language model of {text}",
            command=command,
            machine=f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
            f"Python {platform.python_version()}, torch {torch.__version__}",
            date=date.today().isoformat(),
            models=tuple(models),
            events=events,
            text=[tokenizer.decode([token]).decode(errors="replace") for token in stretch[0]],
            image=shown,
            sample=tokenizer.decode(written.tolist()).decode(errors="replace"),
            prompt=tokenizer.decode(prompt).decode(errors="replace"),
            unit=tokenizer.unit,
            measure=tokenizer.measure,
            billed=BILLED,
        ),
    )
    return lacking
