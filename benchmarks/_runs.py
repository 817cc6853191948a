"""Runs of a benchmark: each trained once, in a process of its own, and kept."""

import json
import lzma
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from rheobase.models.training.run import FROM_TOKENIZER, Run, RunConfig
from rheobase.spiking.config import to_toml
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.files import write_atomic


def train(folder: Path, table: dict) -> Run:
    """Train a run, or go on with it, or keep it where it is finished.

    raises  ConfigError: the folder holds a run of other settings than the table's
    """
    run, arguments = Run(folder), ["--resume"]
    if run.config_path.exists():
        _require_settings(run, table)
        if "valid" in run.metrics():
            return run
    else:
        config = folder.with_name(f"{folder.name}.toml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(to_toml(table))
        arguments = [str(config)]
    subprocess.run([sys.executable, "-m", "rheobase", "train", *arguments, "--out", str(folder)], check=True)
    return run


def write_logs(runs: Iterable[Run], path: Path, root: Path) -> None:
    """All that the runs' folders say, as JSON, a run a line, packed by xz; the folder `root` is left out of paths."""
    lines = []
    for run in runs:
        name = str(run.folder.relative_to(root))
        said = {"run": name, "config": run.config.to_table(), "metrics": run.metrics(), "log": run.log()}
        lines.append(json.dumps(said).replace(f"{root}/", ""))
    write_atomic(path, lzma.compress("".join(f"{line}\n" for line in lines).encode()))


def _require_settings(run: Run, table: dict) -> None:
    """Refuse a run that is not what would be trained now; names the first setting that differs."""
    config = RunConfig.from_table(table)
    if getattr(config.settings, "vocabulary", None) == FROM_TOKENIZER:
        config = config.fitted(run.tokenizer())
    saved, wanted = run.config.to_table(), config.to_table()
    for section, part in wanted.items():
        for key in dict.fromkeys([*part, *saved[section]]):
            expected, got = part.get(key), saved[section].get(key)
            if expected != got:
                what, remedy = f"a run with {section}.{key} = {expected!r}", "delete it or choose another --out"
                raise ConfigError(run.folder, what, repr(got), remedy)
