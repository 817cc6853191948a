"""Counts, bills, break-even rates, and what a machine's own counters say."""

from rheobase.backends.counting.bill import Bill, overview, price
from rheobase.backends.counting.breakeven import BreakEven, break_even
from rheobase.backends.counting.dispatch import count
from rheobase.backends.counting.measure import Measured, measure
from rheobase.backends.counting.phases import count_phases
from rheobase.backends.counting.table import show
from rheobase.backends.counting.target import Interval, Quantity, Target, load_target, target_names

__all__ = [
    "Bill",
    "BreakEven",
    "Interval",
    "Measured",
    "Quantity",
    "Target",
    "break_even",
    "count",
    "count_phases",
    "load_target",
    "measure",
    "overview",
    "price",
    "show",
    "target_names",
]
