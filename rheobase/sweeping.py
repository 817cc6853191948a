"""A sweep: which runs a SWEEP.toml asks for, and what their figures come to. Nothing here trains."""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rheobase.models.training.run import RunConfig, config_path
from rheobase.spiking import registry
from rheobase.spiking.config import read_toml
from rheobase.spiking.errors import ConfigError

KEYS = ("base", "seeds", "set", "grid", "random", "ablate")
MOST_RUNS = 10_000
LARGEST = 1e300
"""no end of a range: two of it still have a difference"""
LONGEST_NAME = 160
DIGITS = 3
"""significant ones of a number drawn at random, so that a run's name says it in full"""


@dataclass(frozen=True)
class Point:
    """Settings that differ from the base's, and the seed: one run."""

    settings: dict[str, Any]
    seed: int
    table: dict
    """the run's whole configuration"""

    @property
    def label(self) -> str:
        """The settings in a line."""
        return label(self.settings)

    @property
    def name(self) -> str:
        """The run's folder."""
        name = f"{self.label},seed={self.seed}"
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[:LONGEST_NAME]},{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def label(settings: Mapping[str, Any]) -> str:
    """ "learning_rate=0.01,layers=64-48", each key without its section; "base" where there is none."""
    return ",".join(f"{key.rpartition('.')[2]}={_word(value)}" for key, value in settings.items()) or "base"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"


def read_sweep(path: str | Path) -> list[Point]:
    """The runs of a SWEEP.toml, in the order of its points and then of its seeds.

        base = "quickstart_egru"      a built-in configuration, or a TOML file beside the sweep
        seeds = [0, 1, 2]             of train.seed; [0] if not given
        [set]                         settings of every run:              train.steps = 200
        [grid]                        every combination of the lists:     train.learning_rate = [1e-2, 2e-2]
        [random]                      as many draws as `samples`, from the seed `seed`: a list to choose from, or
                                      {low, high}, a whole number if both are; by the logarithm if log = true
        [ablate]                      the base, and for each setting one run with it reverted to what stands here

    The points are every combination of the grid's, the draws and the ablations. Each run has one thread.

    raises  ConfigError: an unknown key, two runs of the same settings or name, or settings that no training takes
    """
    sweep = read_toml(path)
    for key, value in sweep.items():
        if key not in KEYS:
            raise ConfigError(path, "a known key", repr(key), registry.nearest(key, KEYS))
        if key in KEYS[2:] and not isinstance(value, dict):
            raise ConfigError(path, f"a section [{key}]", repr(value), "write a table")
    base = sweep.get("base")
    if not isinstance(base, str):
        raise ConfigError(path, 'a base, such as base = "quickstart_egru"', repr(base), "name one")
    table = read_toml(Path(path).parent / base if base.endswith(".toml") else config_path(base))
    seeds = sweep.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"{path}: seeds", "a list of whole numbers", repr(seeds), "such as [0, 1, 2]")
    fixed, grid, ablate = (_flat(sweep.get(part, {}), f"{path}: {part}") for part in ("set", "grid", "ablate"))
    parts = [_grid(grid, path), _draws(dict(sweep.get("random", {})), path), [{}, *({k: v} for k, v in ablate.items())]]
    if math.prod(map(len, [*parts, seeds])) > MOST_RUNS:
        raise ConfigError(path, f"at most {MOST_RUNS:,} runs", "more", "shorten its lists")
    points = []
    for *some, seed in itertools.product(*parts, seeds):
        settings = {k: v for part in some for k, v in part.items()}
        if len(settings) < sum(map(len, some)) or "train.seed" in {**settings, **fixed}:
            raise ConfigError(path, "each setting in one of grid, random and ablate", "one twice", "keep one of them")
        if "train.threads" in {**settings, **fixed}:
            raise ConfigError(path, "one thread a run", "train.threads", "leave it out; --jobs says how many at once")
        own = {**fixed, **settings, "train.seed": seed, "train.threads": 1}
        points.append(Point(settings, seed, _with(table, own)))
    _check(points, path)
    return points


def _flat(table: dict[str, Any], where: str) -> dict[str, Any]:
    """{"train.steps": 3} of that, or of {"train": {"steps": 3}}, as TOML reads a key without quotes."""
    found = {}
    for key, value in table.items():
        if "." in key:
            found[key] = value
        elif isinstance(value, dict):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            raise ConfigError(where, "settings by section, such as train.steps", repr(key), "write section.key = ...")
    return found


def _grid(lists: dict[str, Any], path) -> list[dict]:
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid.{key}", "a list of values", repr(values), "write [...]")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _draws(table: dict[str, Any], path) -> list[dict]:
    """The settings of each sample; a setting's draws do not depend on what else is drawn."""
    samples, seed = table.pop("samples", 1 if not table else None), table.pop("seed", 0)
    if type(samples) is not int or not 1 <= samples <= MOST_RUNS:
        wanted = f"how many to draw, 1 to {MOST_RUNS:,}"
        raise ConfigError(f"{path}: random.samples", wanted, repr(samples), "give a number")
    ranges = _flat(table, f"{path}: random")
    return [
        {
            key: _draw(given, random.Random(f"{seed} {key} {i}"), f"{path}: random.{key}")
            for key, given in ranges.items()
        }
        for i in range(samples)
    ]


def _draw(given: Any, rng: random.Random, where: str) -> Any:
    if isinstance(given, list) and given:
        return rng.choice(given)
    try:
        low, high, log = given["low"], given["high"], given.get("log", False)
        least = 0 if log else -LARGEST
        known = set(given) <= {"low", "high", "log"} and type(log) is bool and least < low < high < LARGEST
    except (TypeError, KeyError, AttributeError):
        known = False
    if not known:
        wanted = "a list, or {low = 1e-3, high = 1e-1, log = true}, low below high, and above 0 if log"
        raise ConfigError(where, wanted, repr(given), "mend it")
    whole = type(low) is type(high) is int
    if whole and not log:
        return rng.randint(low, high)
    drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return round(drawn) if whole else float(f"{drawn:.{DIGITS}g}")


def _with(table: dict, settings: dict[str, Any]) -> dict:
    """A copy of a configuration's table with some settings."""
    table = {section: dict(part) if isinstance(part, dict) else part for section, part in table.items()}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    return table


def _check(points: list[Point], path) -> None:
    """Refuse runs that no training takes, and two that are one."""
    names: dict[str, Point] = {}
    same: dict[str, Point] = {}
    for point in points:
        config = json.dumps(RunConfig.from_table(point.table, f"{path}: {point.name}").to_table(), sort_keys=True)
        other = same.setdefault(config, point)
        if other is not point:
            raise ConfigError(path, "runs that differ", f"{other.name} and {point.name}", "take one out")
        if names.setdefault(point.name, point) is not point:
            raise ConfigError(path, "names that differ", f"two runs {point.name!r}", "take one out")


@dataclass(frozen=True)
class Row:
    """What the runs of one point came to; the lists are by seed, of those that did not fail."""

    label: str
    settings: dict[str, Any]
    figures: list[float]
    """bits or accuracy on the validation part"""
    tests: list[float]
    """the same on the test part, where it was asked for"""
    operations: list[float]
    """accumulations and multiply-accumulates a token, of the validation part; empty where none are counted"""
    parameters: int
    rate: float | None
    """mean firing over layers and seeds"""
    seconds: float
    """of training, mean"""
    failed: dict[str, str]
    """run -> why it failed"""


def spread(values: list[float], digits: int) -> str:
    """Mean ± half of the range; of one value alone the value."""
    if not values:
        return "-"
    around = f" ± {(max(values) - min(values)) / 2:,.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):,.{digits}f}{around}"


def front(rows: list[Row], higher: bool) -> list[Row]:
    """The rows that no other beats: none has as few operations and as good a figure, by means; fewest first."""
    counted = [row for row in rows if row.figures and row.operations]
    sign = -1 if higher else 1
    best, found = math.inf, []
    for row in sorted(counted, key=lambda row: (mean(row.operations), sign * mean(row.figures))):
        if sign * mean(row.figures) < best:
            best = sign * mean(row.figures)
            found.append(row)
    return found


def ranked(rows: list[Row], higher: bool) -> list[Row]:
    """The best by the validation part first; those of which every run failed last."""
    return sorted(rows, key=lambda row: (not row.figures, (-1 if higher else 1) * mean(row.figures or [0.0])))


def show(rows: list[Row], measure: str, higher: bool) -> str:
    """The ranked rows as a table; * marks the front of figure against operations."""
    scale, digits = (100, 1) if higher else (1, 4)
    best = {row.label for row in front(rows, higher)}
    tested = any(row.tests for row in rows)
    head = ["", "settings", f"{measure}, validation", *([f"{measure}, test"] if tested else [])]
    cells = [[*head, "operations a token", "parameters", "active", "seconds"]]
    for i, row in enumerate(rows, 1):
        quality = [spread([scale * v for v in row.figures], digits)]
        quality += [spread([scale * v for v in row.tests], digits)] if tested else []
        rate = "-" if row.rate is None else f"{100 * row.rate:.1f} %"
        size = f"{row.parameters:,}" if row.figures else "-"
        seconds = f"{row.seconds:,.0f}" if row.figures else "-"
        mark = f"{i}{'*' if row.label in best else ' '}"
        cells.append([mark, row.label, *quality, spread(row.operations, 0), size, rate, seconds])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = ("<", "<", *">" * (len(widths) - 2))
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, left, widths, strict=True)).rstrip()
        for line in cells
    )
