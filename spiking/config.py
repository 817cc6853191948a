"""Frozen configuration records: from TOML, checked key by key, and back to TOML."""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import read_bytes
from rheobase.spiking.registry import nearest

C = TypeVar("C")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file into a table; raises FormatError where it is not TOML."""
    data = read_bytes(path, "a TOML file")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise FormatError(path, "TOML", str(error), "mend the file") from None


def _convert(where: str, value: Any, kind: Any) -> Any:
    """Check one value against its annotation; an int is taken for a float and a list for a tuple."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        problems = []
        for option in options:
            try:
                if option is not type(None):
                    return _convert(where, value, option)
            except ConfigError as problem:
                problems.append(problem)
        raise problems[0]
    if origin is typing.Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            raise ConfigError(where, "one of " + ", ".join(map(repr, options)), f"{value!r}", "choose one")
        return value
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if not isinstance(value, dict):
            raise ConfigError(where, "a table", repr(value), f"write [{where}]")
        return from_table(kind, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        item = typing.get_args(kind)[0]
        return tuple(_convert(f"{where}[{i}]", v, item) for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        item = typing.get_args(kind)[1]
        return {k: _convert(f"{where}.{k}", v, item) for k, v in value.items()}
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(
            where, "a whole number from -2^63 to below 2^63", f"one of {value.bit_length():,} bits", "mend the value"
        )
    if kind is float and type(value) is int:
        return float(value)
    if (origin or kind) is Any or type(value) is (origin or kind):
        return value
    wanted = "a list" if origin is tuple else getattr(kind, "__name__", str(kind))
    raise ConfigError(where, wanted, f"{value!r}", "mend the value")


def checked(table: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table of settings whose keys are all in `kinds`, each value converted to its kind.

    raises  ConfigError: an unknown key (with the nearest match), a value of the wrong type
    """
    if not isinstance(table, Mapping):
        raise ConfigError(where, "a table", repr(table)[:80], "write one")
    for key in table:
        if key not in kinds:
            raise ConfigError(where, "a known key", repr(key), nearest(key, kinds))
    return {key: _convert(f"{where}.{key}", value, kinds[key]) for key, value in table.items()}


def from_table(kind: type[C], table: dict[str, Any], where: str = "config") -> C:
    """Build the frozen dataclass `kind` from a table.

    raises  ConfigError: an unknown key (with the nearest match), a missing one, a value of the wrong type
    """
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    values = checked(table, {f.name: hints[f.name] for f in fields}, where)
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in table:
            raise ConfigError(where, f"the key {field.name!r}", "none", "add it")
    return kind(**values)


def to_table(config: Any) -> dict[str, Any]:
    """The plain table of a configuration record; fields that are None are left out."""
    table = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            table[field.name] = to_table(value)
        elif value is not None:
            table[field.name] = list(value) if isinstance(value, tuple) else value
    return table


def to_toml(table: dict[str, Any]) -> str:
    """TOML text of a table of scalars, lists and one level of sub-tables."""

    def text(value):
        plain = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(plain, plain)

    scalars = [f"{k} = {text(v)}" for k, v in table.items() if not isinstance(v, dict)]
    parts = ["\n".join(scalars)] if scalars else []
    for name, sub in table.items():
        if isinstance(sub, dict):
            parts.append(f"[{name}]\n" + "\n".join(f"{k} = {text(v)}" for k, v in sub.items()))
    return "\n\n".join(parts) + "\n"


def set_key(table: dict[str, Any], assignment: str) -> None:
    """Apply one `section.key=value` of the command line to a table; the value is TOML, or else a string."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError("--set", "key=value", repr(assignment), "write for instance --set train.steps=200")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        if text.strip() in ("True", "False", "None"):
            remedy = "TOML has true and false; to have none, leave the key out"
            raise ConfigError(key.strip(), "a value in TOML", text.strip(), remedy) from None
        value = text
    *path, last = key.strip().split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError("--set", "a section", repr(part), "name a key inside a section")
    table[last] = value
