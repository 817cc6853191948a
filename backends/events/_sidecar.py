"""The JSON beside a file of events, FILE.json: what the format itself cannot say, and what was lost on the way.

events, sha256   of the file, so that a cut or changed one is told from a whole one, whatever its format
sensor           [width, height] in pixels, or null
kind             "camera", or "model edge", whose `mapping` says how unit, step and sign became pixel, time, polarity
shift_us         what was taken off every time, where the format could not hold it; readers add it again
lost             lines, one a loss; empty where every event came through with all that it had
"""

import hashlib
import json
from pathlib import Path

from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import write_atomic

FORMAT = "rheobase-events/1"


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a file lies."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, table: dict, finished: Path | None = None) -> dict:
    """Write the sidecar of a file, which may still lie `finished` under another name; returns what it holds."""
    with open(finished or path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    table = {"format": FORMAT, "sha256": digest, **table}
    write_atomic(sidecar_path(path), json.dumps(table, indent=2).encode() + b"\n")
    return table


def read_sidecar(path: Path, file) -> dict:
    """The sidecar of an open file, {} where there is none; raises FormatError where it is another file's or damaged."""
    beside = sidecar_path(path)
    if not beside.exists():
        return {}
    try:
        table = json.loads(beside.read_bytes())
        sensor, shift, events, digest = (table[key] for key in ("sensor", "shift_us", "events", "sha256"))
        right = table["format"] == FORMAT and all(type(n) is int for n in (shift, events, *(sensor or (1, 1))))
        if (
            not right
            or len(sensor or (1, 1)) != 2
            or not 1 <= min(sensor or (1, 1)) <= max(sensor or (1, 1)) <= 1 << 16
            or not isinstance(table["lost"], list)
            or not 0 <= shift < 1 << 62
        ):
            raise ValueError("other fields")
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise FormatError(beside, FORMAT, f"{type(error).__name__}: {error}", "delete it, or convert anew") from None
    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
        raise FormatError(path, "the bytes that its sidecar names", "others", f"fetch it anew, or delete {beside.name}")
    file.seek(0)
    return table
