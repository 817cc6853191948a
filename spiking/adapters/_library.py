"""How an adapter comes by its library."""

import importlib
import warnings
from types import ModuleType

from rheobase.spiking.errors import UnsupportedError


def load(module: str, requirement: str) -> ModuleType:
    """Import a module of an optional library; raises UnsupportedError with the pip command where it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated")  # Norse uses it on import
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name != library:
            raise
        raise UnsupportedError(library, "the library", "none installed", f'pip install "{requirement}"') from None
