"""The code blocks of the README and of docs/, and the commands of those that are for a shell.

Commands are written as usage lines: `a|b` is either, `[...]` may be left out, `--x | --y` is one option or the other,
two spaces or more part a command from the next one or from a remark. `text` blocks are what a program printed.
"""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KINDS = ("python", "toml", "shell", "text")
PROGRAMS = tuple("rheobase pip pytest python torchrun hf apt-get for do done mkdocs git ruff cd".split())
VALUES = {"WxH": "640x480", "N": "3", "S": "0.001", "SECONDS": "0.001", "C": "1", "H": "1", "W": "1"}
"""of placeholders that the parser takes a number for"""
FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)
WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|[^\s\[\]'\"])+|\[|\]")


@dataclass(frozen=True)
class Block:
    """A fenced block; `kind` is what stands behind its fence, "shell" where nothing does."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def name(path: Path) -> str:
    """A page's name in the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text()
    return [
        Block(
            name(path),
            text.count("\n", 0, m.start()) + 1,
            m[3].strip() or "shell",
            re.sub(rf"^{m[1]}", "", m[4], flags=re.M),
        )
        for m in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a shell block, in each of its forms; raises ValueError: a line that has none."""
    lines = re.sub(r" *\\\n *", " ", block.text).splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in filter(None, (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)):
        first, *rest = re.split(r" {2,}", line)
        parts = [first, *(part for part in rest if part.split()[0] in PROGRAMS)]
        for command in itertools.chain.from_iterable(re.split(r"&&|;", part) for part in parts):
            words = WORD.findall(command)
            while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("time", "do")):
                words.pop(0)
            if words[:2] == ["taskset", "-c"]:
                words = words[3:]
            if words and words[0] not in PROGRAMS:
                raise ValueError(f"{block.where}: {words[0]!r} is no program that is known; is this a text block?")
            found += forms(words) if words[:1] == ["rheobase"] else [words] if words else []
    return found


def forms(words: list[str]) -> list[list[str]]:
    """A usage line without and with what may be left out, each of its alternatives once."""
    if "|" in words:
        at = words.index("|")
        option = max(i for i in range(at) if words[i].startswith("--"))
        return forms(words[:at]) + forms(words[:option] + words[at + 1 :])
    lines = [[]]
    for optional in (False, True) if "[" in words else (True,):
        depth, chosen = 0, []
        for word in words:
            depth += (word == "[") - (word == "]")
            if word not in ("[", "]", "...") and (optional or not depth):
                chosen.append([word] if word[0] in "'\"" else word.split("|"))
        lines += [list(line) for line in itertools.product(*chosen)]
    return [[VALUES.get(unquoted(word), unquoted(word)) for word in line] for line in lines if line]


def unquoted(word: str) -> str:
    """A word as the shell gives it on; what is in braces or has a variable stays as it is."""
    return "".join(shlex.split(word))
