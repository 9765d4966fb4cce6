"""Small tables from the host to where they are used, without waiting for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device.

    A GPU copies from page-locked memory in its turn while the host goes on. From other memory the host waits until all
    that was asked for before is done, and the GPU then for the host.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
