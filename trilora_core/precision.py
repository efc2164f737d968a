"""The number format that a forward pass computes in."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .errors import InputError

__all__ = ["DTYPES", "autocast", "check_precision"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names in the options; "auto", the model's own, is not among them."""


def check_precision(precision: str, computes: Iterable[torch.dtype]) -> None:
    """Raise InputError for a precision of the options that models which compute in these formats cannot be given.

    torch.autocast lowers float32 and no other format: a model in half precision it leaves alone, or breaks.
    """
    for dtype in computes:
        if precision != "auto" and dtype is not DTYPES[precision] and dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"precision is {precision}, but the model computes in {str(dtype).removeprefix('torch.')}, which that"
                f" cannot change; set precision to auto, or have the model itself compute in {precision} (command"
                " line: --base-dtype; ComfyUI: its node ModelComputeDtype behind the loader)"
            )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of forward passes in this precision of the options."""
    if precision == "auto":
        return nullcontext()
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
