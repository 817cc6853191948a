"""Counts and bills."""

from rheobase.backends.counting.bill import Bill, overview, price
from rheobase.backends.counting.dispatch import count
from rheobase.backends.counting.target import Interval, Quantity, Target, load_target, target_names

__all__ = ["Bill", "Interval", "Quantity", "Target", "overview", "count", "load_target", "price", "target_names"]
