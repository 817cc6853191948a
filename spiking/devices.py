"""Devices that this machine has."""

import torch


def is_here(device: str) -> bool:
    """Whether this machine has a device, "cpu", "cuda" or "cuda:N"."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return kind == "cpu"
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return there > 0 and (not number or (number.isdecimal() and int(number) < there))
