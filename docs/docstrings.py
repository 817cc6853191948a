"""Docstrings as Markdown: lines of a name, two spaces or more and what it means become a list."""

import re

import griffe

ENTRY = re.compile(r"(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*) {2,}(\S.*)")
ERROR = re.compile(r" +\w+Error: ")
WORDS = ("returns", "raises")


class Entries(griffe.Extension):
    """Rewrites each docstring before it is shown."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """The same with entries as a list, and examples and equations as code."""
    return "\n\n".join(_part(part) for part in re.split(r"\n\s*\n", text))


def _part(part: str) -> str:
    if part.lstrip().startswith(">>>"):
        return f"```pycon\n{part}\n```"
    lines = part.split("\n")
    if not ENTRY.fullmatch(lines[0]):
        return part
    out = []
    for line in lines:
        entry = ENTRY.fullmatch(line)
        if entry:
            name = f"*{entry[1]}*" if entry[1] in WORDS else f"`{entry[1]}`"
            out.append(f"- {name} {entry[2]}")
        elif line.startswith(" "):
            if ERROR.match(line) and out[-1][-1] not in ";,:":
                out[-1] += ";"  # lines of a docstring flow together on a page
            out.append(f"    {line.strip()}")
        else:
            out.append(f"\n{line}")
    return "\n".join(out)
