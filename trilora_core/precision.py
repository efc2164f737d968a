"""The number format that a forward pass computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["DTYPES", "autocast"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names in the options; "auto", the model's own, is not among them."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of forward passes in this precision of the options."""
    if precision == "auto":
        return nullcontext()
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
