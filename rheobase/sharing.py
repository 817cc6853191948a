"""A run as others get it: its card, and the folder that goes to the hub or into the package."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rheobase import __version__
from rheobase.backends import count, price
from rheobase.models._sources import FILES, model_folder
from rheobase.models.training.datasets import DATA_SETS
from rheobase.models.training.run import Run
from rheobase.quickstart import COUNT_TOKENS, test_tokens
from rheobase.spiking.config import to_toml
from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.files import new_folder, write_atomic

TARGET = "horowitz-45nm"
NAMES = {"valid": "validation", "test": "test"}
EXCERPT = {"valid": 2048, "test": COUNT_TOKENS}
"""tokens of each part that a shipped model brings along: for a calibration, and for a count"""


def card(
    run: Run, *, licence: str = "unknown", notes: tuple[str, ...] = (), target: str = TARGET, text: str | None = None
) -> ModelCard:
    """The model card of a language model's run: what its configuration and its metrics say, and a count made now.

    licence  of the weights, as the hub writes licences
    notes    lines about the training that the run does not know, such as the machine
    target   whose bill is shown
    text     what the training text is called, if not as `data.text` calls it
    raises   UnsupportedError: a classifier's run
    """
    config, m = run.config, run.metrics()
    if config.classifies or config.sees:
        raise UnsupportedError(run.folder, "a language model's run", "a classifier's", "share model.save_pretrained's")
    model, tokenizer, given = run.model(), run.tokenizer(), config.data.text
    run.figures(model)
    text = text or (Path(given).name if Path(given).is_absolute() else given)
    title = f"{type(model).__name__}, {model.n_parameters:,} parameters"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=text,
            dataset_name=text,
            dataset_split=name,
            metric_type=measure,
            metric_value=m[part][measure],
        )
        for part, name in NAMES.items()
        if part in m
        for measure in (tokenizer.measure, "perplexity")
    ]
    data = ModelCardData(
        library_name="rheobase",
        license=licence,
        pipeline_tag="text-generation",
        tags=sorted({config.model, "event-based", "neuromorphic", "spiking-neural-network"}),
        datasets=[text] if text in DATA_SETS else None,
        metrics=sorted({r.metric_type for r in results}) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    parts = {
        title: _model(model, tokenizer),
        "Training": _training(run, m, text, notes),
        "Figures": _figures(run, m, tokenizer),
        "Operations and energy": _bill(run, model, target),
        "Limits": LIMITS,
        "Papers": "```bibtex\n" + "\n\n".join(model.citations) + "\n```" if model.citations else "None.",
        "Configuration": f"```toml\n{to_toml(shared_table(run))}```",
    }
    body = "\n\n".join(f"{'#' if head == title else '##'} {head}\n\n{part}" for head, part in parts.items())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def shipped_card(run: Run) -> ModelCard:
    """The card that a model of the package has."""
    return ModelCard.load(run.folder / "README.md")


LIMITS = """\
- It predicts text like its training text. What it writes is neither true nor safe because it is fluent, and nobody
  examined it for either.
- The figures are those of one seed, on the parts named; other texts give others.
- Operations are counted, energy is not measured: a bill prices operations by published constants, and says what it
  cannot price."""


def _model(model, tokenizer) -> str:
    what = f"A language model on {tokenizer.unit}s ({model.config.vocabulary} ids), by Rheobase {__version__}."
    use = (
        'Where FOLDER is this one:\n\n```\nrheobase sample FOLDER --prompt "The "\nrheobase count FOLDER\n```\n\n'
        '```python\nimport rheobase\n\nmodel = rheobase.load("FOLDER")  # logits, state = model(tokens, state)\n```'
    )
    layers = ", ".join(model.event_layers) or "none"
    return f"{what} Layers that send events: {layers}. Its settings stand at the end.\n\n{use}"


def _training(run: Run, m: dict, text: str, notes) -> str:
    c, t = run.config, run.config.train
    seconds = f"{m['train_seconds']:,.0f} s" if "train_seconds" in m else "not recorded"
    dated = datetime.fromtimestamp((model_folder(run.folder) / FILES[1]).stat().st_mtime, UTC)
    lines = [
        f"text: `{text}`, SHA-256 of what was read {m.get('text_sha256', 'not recorded')}",
        f"tokenizer: `{c.data.tokenizer or 'bytes'}`",
        "command: `rheobase train config.toml`, the configuration below",
        f"{t.steps:,} steps of {t.batch} x {t.context} tokens, seed {t.seed}, the best kept: "
        f"step {m.get('best_step', 'not recorded')}",
        f"time: {seconds}; the file of the weights is of {dated:%Y-%m-%d}",
        *(notes or ["machine: not recorded"]),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _figures(run: Run, m: dict, tokenizer) -> str:
    rows = ["| part | " + f"bits a {tokenizer.unit} | perplexity | predictions |", "|---|---|---|---|"]
    for part, name in NAMES.items():
        if part in m:
            e = m[part]
            rows.append(f"| {name} | {e[tokenizer.measure]:.4f} | {e['perplexity']:.3f} | {e['tokens']:,} |")
        else:
            rows.append(f"| {name} | not measured | not measured | |")
    lines = ["\n".join(rows)]
    best = m.get("test") or m.get("valid")
    names = run.model().event_layers
    if best and best.get("rates"):
        shown = zip(names, best["rates"], best["dead"], strict=True)
        lines.append("\n".join(f"- {n}: {100 * rate:.1f} % active, {dead} dead units" for n, rate, dead in shown))
    return "\n\n".join(lines)


def _bill(run: Run, model, target: str) -> str:
    try:
        tokens = test_tokens(run, COUNT_TOKENS)
    except FormatError as why:
        return f"Not counted: {why}."
    tally = count(model, tokens)
    head = f"Counted on the first {tally.tokens:,} tokens of the test part, read in one call from rest:"
    spent = f"{tally.macs / tally.tokens:,.0f} multiply-accumulates and {tally.acs / tally.tokens:,.0f} accumulates"
    dense = f"{tally.dense_macs / tally.tokens:,.0f}"
    return f"{head} {spent} a token, where dense products take {dense}.\n\n```\n{price(tally, target)}\n```"


def shared_table(run: Run) -> dict:
    """A language model's configuration, without folders of this machine and the sections of classifiers."""
    table = {name: part for name, part in run.config.to_table().items() if name not in ("sentences", "events")}
    for section in table.values():
        section.pop("folder", None)
        for key, value in section.items():
            if isinstance(value, str) and Path(value).is_absolute():
                section[key] = Path(value).name
    return table


def share(run: Run, out: str | Path, page: ModelCard, *, packed: bool = False) -> Path:
    """Write the folder to share: model, configuration, metrics, tokenizer and card; every command reads it as a run.

    packed  int8 weights (`save_packed`), and an excerpt of the text for counts and calibrations
    raises  FormatError: `out` exists; a weight or an excerpt that would not be read back as it is
    """
    with new_folder(out) as folder:
        if packed:
            run.model().save_packed(folder)
            _excerpts(run, Run(folder))
        else:
            for name in FILES:
                shutil.copyfile(model_folder(run.folder) / name, folder / name)
            for part in filter(lambda part: run.excerpt_path(part).is_file(), EXCERPT):
                shutil.copyfile(run.excerpt_path(part), Run(folder).excerpt_path(part))
        if run.tokenizer_path.is_file():
            shutil.copyfile(run.tokenizer_path, folder / "tokenizer.json")
        write_atomic(folder / "config.toml", to_toml(shared_table(run)).encode())
        metrics = run.metrics() | {"weights_sha256": Run(folder).weights()}
        write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2).encode())
        write_atomic(folder / "README.md", str(page).encode())
    return Path(out)


def _excerpts(run: Run, to: Run) -> None:
    tokenizer = run.tokenizer()
    for part, n in EXCERPT.items():
        ids = run.tokens(part)[:n]
        text = tokenizer.decode(ids)
        if tokenizer.encode(text).tolist() != ids.tolist():
            got = "others, since its start hangs on what stands before"
            raise FormatError(f"the {part} part's first {n} tokens", "ids that their text gives", got, "use bytes")
        write_atomic(to.excerpt_path(part), text)
