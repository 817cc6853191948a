"""Functional neurons over sequences. Each op's folder holds `reference.py`, the truth for every faster form."""

from rheobase.spiking.ops.egru.reference import egru
from rheobase.spiking.ops.lif.reference import lif
from rheobase.spiking.ops.wkv.reference import WKVState, wkv

__all__ = ["WKVState", "egru", "lif", "wkv"]
