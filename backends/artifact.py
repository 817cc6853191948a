"""Artefacts: directories written whole, that list every file with its hash and are checked before they are read."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import new_folder, read_bytes, sha256

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_FIELDS = dict.fromkeys(("format", "exporter", "version", "graph", "not_claimed"), str) | {
    "coverage": dict,
    "deviations": list,
}
"""What every manifest holds, and `export` and `inspect` show"""
LONGEST_NAME, MOST_BYTES = 200, 1 << 30


@dataclass(frozen=True)
class Artifact:
    """An exported directory and its manifest."""

    path: Path
    manifest: Mapping

    def read(self, name: str) -> bytes:
        """A listed file, after checking its size and hash."""
        if name not in self.manifest["files"]:
            raise FormatError(self.path / MANIFEST, f"the file {name!r} listed", "no such entry", "export it anew")
        return _checked(self.path, name, self.manifest["files"][name])


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    ok          every file is as listed, and no number differs but for those that the manifest tells of
    compared    numbers compared with the recorded trace
    mismatches  how many of them differ
    problem     the first thing wrong, in one line; None if ok
    notes       what else was checked, a line each
    first       the first difference for a program to read, None without one: step, stream, node, unit, expected and got
                as far as they are known, and where it lies
    """

    ok: bool
    compared: int
    mismatches: int
    problem: str | None = None
    notes: tuple[str, ...] = ()
    first: Mapping | None = None


def write_artifact(out: str | Path, files: Mapping[str, bytes], manifest: Mapping) -> Artifact:
    """Write files, `manifest.json` with the sha256 of each, and `manifest.sha256` of the manifest itself.

    manifest  JSON, with at least
              format       what the directory is, with a version: "mine/1"
              exporter     the name of the exporter's file, by which `verify` finds it
              version      as `export` was given it
              graph        `graph.hash()`
              coverage     node -> where it is; "outside: why" where it is left out
              deviations   changes, a table each: node, field, wanted, written, and bound, the most that a number moved
              not_claimed  what nobody checked, a sentence
              notes        lines to be shown, if there are any
    raises    FormatError: a field lacks, a file would lie outside, or `out` exists
    """
    for field, kind in _FIELDS.items():
        if type(manifest.get(field)) is not kind:
            got = repr(manifest[field])[:80] if field in manifest else "none"
            raise FormatError(f"{out} manifest", f"{field}, as {kind.__name__}", got, "see write_artifact")
    for name in files:
        if not _is_safe(name) or name in (MANIFEST, SEAL):
            remedy = "name it by letters, digits, _, - and ."
            raise FormatError(f"{out} files", "paths inside the directory", repr(name), remedy)
    listed = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in sorted(files.items())}
    manifest = {**manifest, "files": listed}
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    with new_folder(out) as folder:
        for name, data in {**files, MANIFEST: text, SEAL: _seal(text)}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return Artifact(Path(out), manifest)


def _is_safe(name: str) -> bool:
    """Whether a file of this name lies inside the directory, on any system."""
    return len(name) <= LONGEST_NAME and bool(_SAFE.fullmatch(name))


def reseal(path: str | Path) -> None:
    """Recompute every hash of an artefact that was edited by hand on purpose."""
    folder = Path(path)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_bytes(_seal(text))


def open_artifact(path: str | Path) -> Artifact:
    """Read the manifest and check that the directory holds the listed files, whole and unchanged, and no others.

    raises  FormatError: names the file that is missing, unlisted, changed, or outside the directory
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FormatError(folder, "an exported directory", "none", "check the path")
    text, seal = _plain(folder, MANIFEST), _plain(folder, SEAL)
    if seal != _seal(text):
        which = f"{folder / MANIFEST} and {SEAL}"
        raise FormatError(which, "a hash that fits", "another: one of the two was changed", "export it anew")
    try:
        manifest = json.loads(text.decode())
        files = manifest["files"]
        sound = all(type(entry["bytes"]) is int and type(entry["sha256"]) is str for entry in files.values())
        sound &= all(type(manifest[field]) is kind for field, kind in _FIELDS.items())
        notes = manifest.get("notes", [])
        sound &= type(notes) is list and all(type(line) is str for line in notes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise FormatError(folder / MANIFEST, "JSON with the fields of a manifest", "other", "export it anew")
    for name in files:
        if not _is_safe(name):
            raise FormatError(folder / MANIFEST, "paths inside the directory", repr(name), "do not use this artefact")
    for name in _present(folder, files):
        raise FormatError(folder / name, "only files that the manifest lists", "an unlisted one", "remove it")
    artifact = Artifact(folder, manifest)
    for name, entry in manifest["files"].items():
        _checked(folder, name, entry)
    return artifact


def require_format(artifact: Artifact, own: str) -> None:
    """Raise FormatError where an artefact is of another format, or version of it, than its exporter's own."""
    if artifact.manifest["format"] != own:
        where, got = artifact.path / MANIFEST, repr(artifact.manifest["format"])[:80]
        raise FormatError(where, f"the format {own}", got, "use the version that wrote it, or export it anew")


def foreign(artifact: Artifact, own: Mapping[str, bytes], names: Iterable[str]) -> list[str]:
    """A note on the programs that this version would not have written, empty if there are none.

    own    what it writes, by name
    names  the programs of the artefact, which nobody runs to verify it
    """
    others = [name for name in names if artifact.read(name) != own.get(name)]
    return [f"not this version's, read before you run: {', '.join(others)}"] if others else []


def _seal(text: bytes) -> bytes:
    return f"{sha256(text)}  {MANIFEST}\n".encode()


def _present(folder: Path, files: Iterable[str]) -> list[str]:
    """What lies in the directory and in the folders of the listed files, and is neither of them."""
    folders = {".", *(str(parent) for name in files for parent in PurePosixPath(name).parents)}
    inside = [f for f in folders if (folder / f).is_dir() and not _is_link(folder, f)]
    present = {str(PurePosixPath(f) / name) for f in inside for name in os.listdir(folder / f)}
    return sorted(present - folders - {*files, MANIFEST, SEAL})


def _is_link(folder: Path, name: str) -> bool:
    return any((folder / p).is_symlink() for p in (PurePosixPath(name), *PurePosixPath(name).parents) if str(p) != ".")


def _plain(folder: Path, name: str) -> bytes:
    """The bytes of a plain file inside the directory: no link, no pipe or device, nothing too large for memory."""
    path = folder / name
    if _is_link(folder, name):
        raise FormatError(path, "a plain file", "a link", "do not use this artefact")
    if not path.is_file():
        raise FormatError(path, "a listed file", "none", "export it anew")
    if path.stat().st_size > MOST_BYTES:
        raise FormatError(path, f"at most {MOST_BYTES} bytes", str(path.stat().st_size), "do not use this artefact")
    return read_bytes(path, "a file that can be read")


def _checked(folder: Path, name: str, entry: Mapping) -> bytes:
    data = _plain(folder, name)
    if len(data) != entry["bytes"]:
        raise FormatError(folder / name, f"{entry['bytes']} bytes", f"{len(data)}", "export it anew")
    if sha256(data) != entry["sha256"]:
        found = f"{sha256(data)[:12]}…"
        raise FormatError(folder / name, f"sha256 {entry['sha256'][:12]}…", found, "export it anew")
    return data
