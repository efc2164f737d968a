"""Where the algebra of adapters runs, outside training and sampling."""

from __future__ import annotations

import comfy.model_management
import torch

__all__ = ["algebra_device"]

_ROOM = 1 << 30  # bytes: the dense methods on SDXL's widest layers, with room


def algebra_device() -> torch.device:
    """The host's device where QR and SVD run on it, with some memory freed there; else the CPU."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        return torch.device("cpu")
    comfy.model_management.free_memory(_ROOM, device)
    return device
