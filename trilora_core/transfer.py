"""Host memory to a device, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["upload"]

# Devices whose driver has taken a copy of ordinary memory when a queued transfer returns, so that it may be freed then:
# CUDA's documentation says so of cudaMemcpyAsync. Others are waited for.
_STAGED = {"cuda"}


def upload(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on `device`: a plain `.to` from the host would first wait for all that the device has to do."""
    return tensor.to(device=device, dtype=dtype, non_blocking=tensor.device.type == "cpu" and device.type in _STAGED)
