"""Functional neurons over sequences. Each op's folder holds `reference.py`, the truth for every faster form;
`choice.py` says which form a call gets."""

from rheobase.spiking.ops.egru import EGRUState, EGRUTrajectory, egru
from rheobase.spiking.ops.lif import lif
from rheobase.spiking.ops.wkv import WKVState, wkv

__all__ = ["EGRUState", "EGRUTrajectory", "WKVState", "egru", "lif", "wkv"]
