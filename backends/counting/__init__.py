"""Counts and bills."""

from rheobase.backends.counting.bill import Bill, Quantity, Target, load_target, price, target_names
from rheobase.backends.counting.dispatch import count

__all__ = ["Bill", "Quantity", "Target", "count", "load_target", "price", "target_names"]
