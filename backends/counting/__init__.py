"""Counts, bills and break-even rates."""

from rheobase.backends.counting.bill import Bill, overview, price
from rheobase.backends.counting.breakeven import BreakEven, break_even
from rheobase.backends.counting.dispatch import count
from rheobase.backends.counting.target import Interval, Quantity, Target, load_target, target_names

__all__ = [
    "Bill",
    "BreakEven",
    "Interval",
    "Quantity",
    "Target",
    "break_even",
    "count",
    "load_target",
    "overview",
    "price",
    "target_names",
]
