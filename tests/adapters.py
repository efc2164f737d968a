"""Small adapters and their dense ΔW, for the tests of files and merges."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trilora_core.fileformat import Adapter, Layer
from trilora_core.spectral import canonical


def make_layer(out: int, into: int, rank: int, *, seed: int = 0, kernel: tuple[int, ...] = ()) -> Layer:
    """A random layer; `into` counts the kernel's places too."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
    return Layer(canonical(up, down), kernel)


def make_adapter(stems: Iterable[str], *, size: int = 16, rank: int = 3, seed: int = 0, **metadata: str) -> Adapter:
    """Square layers of one size, each its own."""
    layers = {stem: make_layer(size, size, rank, seed=seed + index) for index, stem in enumerate(stems)}
    return Adapter(layers, {name.replace("__", "."): value for name, value in metadata.items()})


def dense(layer: Layer) -> Tensor:
    """ΔW (out, in · kernel) in float64."""
    u, s, vh = (part.double() for part in layer.svd)
    return u * s @ vh


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Relative Frobenius error."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
