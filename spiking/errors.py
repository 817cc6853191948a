"""Typed errors. Every message is one line: where, expected, got, remedy."""

from collections.abc import Mapping
from types import MappingProxyType


class RheobaseError(Exception):
    """A failure that is stated: the command line prints its line and exits with status 1.

    where     the name of the thing at fault (a file, a node, an argument)
    expected  what would have been right
    got       what was found
    remedy    what the reader can do about it
    fields    what --json gives beside the line, set after it was made
    """

    fields: Mapping = MappingProxyType({})

    def __init__(self, where: object, expected: str, got: str, remedy: str):
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy
        line = f"{where}: expected {expected}, got {got}; {remedy}"
        super().__init__(" ".join(line.split()))

    def __reduce__(self):
        return type(self), (str(self.where), self.expected, self.got, self.remedy), {"fields": dict(self.fields)}


class ShapeError(RheobaseError, ValueError):
    """A tensor, a token id or a state has the wrong shape, size, range or type."""


class ConfigError(RheobaseError, ValueError):
    """A setting is unknown or has a value that cannot work."""


class GraphError(RheobaseError, ValueError):
    """An EventGraph breaks its own rules."""


class UnsupportedError(RheobaseError):
    """A backend does not offer what the graph asks for."""


class LossyExportError(RheobaseError):
    """An export would change what the model computes beyond its recorded bounds."""


class FormatError(RheobaseError, ValueError):
    """A file is missing, damaged, foreign, or not in the format it should be in."""
