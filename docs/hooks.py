"""What mkdocs is given beside the pages: the command line's page, the notebooks, linked sources, a tree to read
docstrings in. All of it is made at each build, so that none of it can go stale."""

import argparse
import base64
import json
import os
import posixpath
import re
import shutil
from pathlib import Path

from mkdocs.structure.files import File

from rheobase.cli import parser

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
TREE = ROOT / "build" / "docs"
FOLDERS = ("spiking", "models", "backends")
LINK = re.compile(r"(\]\()((?!https?:|mailto:|#)[^)\s#]+)(#[^)\s]*)?(\))")
HIDDEN = ("help", "json", "debug")


def on_startup(command, dirty):
    """Copy the sources to the names that they are imported by: a static reader knows no import hook, and follows no
    links to folders. Before the reader starts, which drops a folder that is not there."""
    shutil.rmtree(TREE, ignore_errors=True)
    for path in [path for name in ("rheobase", *FOLDERS) for path in (ROOT / name).rglob("*.py")]:
        inside = path.relative_to(ROOT)
        copy = TREE / inside if inside.parts[0] == "rheobase" else TREE / "rheobase" / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def on_files(files, config):
    """Add the generated pages."""

    def add(uri: str, content):
        files.append(File.generated(config, uri, content=content))

    add("reference/cli.md", command_line())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = notebook(path)
        add(f"notebooks/{path.stem}.md", relink(text, path.parent, f"notebooks/{path.stem}.md"))
        for name, data in pictures.items():
            add(f"notebooks/{name}", data)
    linked = {target for page in DOCS.rglob("*.md") for target in _sources(page)}
    for path in sorted(linked):
        name = path.relative_to(ROOT).as_posix()
        add(f"source/{name}.md", f"# {name}\n\n````{_language(path)}\n{path.read_text()}\n````\n")
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ lead to the pages made of what they name."""
    path = DOCS / page.file.src_uri
    return relink(markdown, path.parent, page.file.src_uri) if path.is_file() else markdown


def relink(text: str, folder: Path, uri: str) -> str:
    """The text of a file in `folder` with its links as they are from the page `uri`."""

    def swap(found):
        before, target, anchor, after = found.groups()
        there = posixpath.relpath(_page(folder, target), posixpath.dirname(uri))
        return f"{before}{there}{anchor or ''}{after}"

    return LINK.sub(swap, text)


def command_line() -> str:
    """Every command of `rheobase` with its options, from the parser itself."""
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# Command line\n",
        "`rheobase COMMAND`, or `python -m rheobase COMMAND`. Every command takes `--json`, one JSON object instead of "
        "text, and `--debug`, the traceback of a failure. The status is 0 when done, 1 after a failure that is stated "
        "in one line, 2 where the command was not understood. [Training configurations](training.md) have a page.\n",
    ]
    for name, sub in commands.choices.items():
        rows = [action for action in sub._actions if action.dest not in HIDDEN]
        parts.append(f"## {name}\n\n{sub.description[0].upper()}{sub.description[1:]}.\n")
        if rows:
            parts.append("| | |\n|---|---|\n" + "".join(map(_row, rows)))
    return "\n".join(parts)


def _row(action: argparse.Action) -> str:
    given = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    if action.choices:
        given = ", ".join(action.choices)
    elif not given and action.nargs != 0:
        given = action.dest.upper()
    names = f"`{', '.join(action.option_strings)}`" if action.option_strings else ""
    shown = f"{names} {f'`{given}`' if given else ''}".strip()
    note = " **Required.**" if action.required and action.option_strings else ""
    return f"| {shown} | {(action.help or '').replace('|', chr(92) + '|')}{note} |\n"


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook, as it was last run, in Markdown, and its pictures by name."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"````python\n{source}\n````")
        printed = ""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![]({name})")
            else:
                printed += "".join(output.get("text", data.get("text/plain", "")))
        if printed:
            parts.append(f"````text\n{printed.rstrip()}\n````")
    return "\n\n".join(parts), pictures


def _target(folder: Path, target: str) -> Path:
    path = Path(os.path.normpath(folder / target))
    return path / "__init__.py" if path.is_dir() else path


def _page(folder: Path, target: str) -> str:
    """The page, as mkdocs names it, that a link leads to."""
    path = _target(folder, target)
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path.suffix == ".ipynb":
        return f"notebooks/{path.stem}.md"
    if path.parent == ROOT / "notebooks":  # a picture of a notebook's page
        return path.relative_to(ROOT).as_posix()
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def _sources(page: Path) -> set[Path]:
    found = {_target(page.parent, match[2]) for match in LINK.finditer(page.read_text())}
    return {p for p in found if p.is_file() and not p.is_relative_to(DOCS) and p.suffix != ".ipynb"}


def _language(path: Path) -> str:
    return {".py": "python", ".toml": "toml", ".md": "markdown", ".c": "c", ".h": "c"}.get(path.suffix, "text")
