"""What a command gives back."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What a command found: a table for --json, text for a person, and whether it is good news."""

    table: dict = field(default_factory=dict)
    text: str = ""
    ok: bool = True
