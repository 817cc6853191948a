"""Structured arrays in a .npy file, as tonic and others save them, read only and never as a whole."""

import numpy as np

from rheobase.backends.events._record import Recording, array_chunks
from rheobase.spiking.errors import FormatError

SUFFIXES = (".npy",)


def read(file, where: object) -> Recording:
    """A recording from an open file; the fields' order and types are free, time is in microseconds."""
    try:
        array = np.lib.format.open_memmap(file.name, mode="r")
    except Exception as error:  # a damaged header goes through Python's tokenizer and parser, which raise many kinds
        raise FormatError(where, "a NumPy array", repr(error), "the file is cut or damaged") from None
    return Recording(array_chunks(array, where))
