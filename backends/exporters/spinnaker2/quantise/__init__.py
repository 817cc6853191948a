"""Quantisation: from an EventGraph in floating point to one in the integers of `arithmetic` and `arithmetic_rwkv`."""

from rheobase.backends.exporters.spinnaker2.quantise.errors import errors, sensitivity
from rheobase.backends.exporters.spinnaker2.quantise.graph import quantise, refuse_other_ops
from rheobase.backends.exporters.spinnaker2.quantise.ops import (
    Format,
    IntegerEGRUCell,
    IntegerEmbedding,
    IntegerLinear,
    embed,
    formats,
)
from rheobase.backends.exporters.spinnaker2.quantise.writer import Deviation

__all__ = [
    "Deviation",
    "Format",
    "IntegerEGRUCell",
    "IntegerEmbedding",
    "IntegerLinear",
    "embed",
    "errors",
    "formats",
    "quantise",
    "refuse_other_ops",
    "sensitivity",
]
