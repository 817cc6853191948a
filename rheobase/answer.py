"""What a command gives back."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What a command found: a table for --json, text for a person, and whether it is good news."""

    table: dict = field(default_factory=dict)
    text: str = ""
    ok: bool = True


def by_layer(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """Names of nodes, with those that every layer has as one, "blocks.*.ffn"."""

    def of_all(name: str) -> str:
        return re.sub(r"\.\d+(?=\.|$)", ".*", name, count=1)

    names = list(names)
    found, whole = Counter(map(of_all, names)), Counter(map(of_all, among))
    return list(dict.fromkeys(of_all(n) if found[of_all(n)] == whole[of_all(n)] > 1 else n for n in names))
