"""What a base model is by its content, told alike by ComfyUI and by diffusers: both know its layers by file stems."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .branch import Target

__all__ = ["content_of"]

_SAMPLES = 64  # values of each layer at most


@torch.no_grad()
def content_of(targets: Mapping[str, Target]) -> str:
    """SHA-256 over stems, shapes and evenly spaced values of these layers' frozen weights, in half precision.

    The same file gives the same answer as float16 and as float32, on any device and in any program that names its
    layers so. Whole fingerprints differ between programs, whose names of the other weights do.
    """
    digest = hashlib.sha256()
    for stem in sorted(targets):
        weight = targets[stem].base_weight()
        digest.update(f"{stem} {tuple(weight.shape)};".encode())
        digest.update(_sample(weight).cpu().numpy().tobytes())
    return digest.hexdigest()


def _sample(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    return flat[:: max(1, -(-flat.numel() // _SAMPLES))].float().half()
