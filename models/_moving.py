"""What the host has read, on its way to the device that computes."""

import torch
from torch import Tensor


def moved(x: Tensor, device) -> Tensor:
    """x on a device; to a GPU from pinned memory, so that neither it nor the host waits for the copy."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        return x.contiguous().pin_memory().to(device, non_blocking=True)  # else torch copies it, to memory not pinned
    return x.to(device)
