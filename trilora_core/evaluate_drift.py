"""Drift of a finished adapter: how much it changes what a model predicts on captions that are not its subject.

The number is that of monitor.Measure; the looks are points of the base's own sampling paths for broad captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .paths import Point, walk
from .prompts import BROAD
from .protocols import Denoiser
from .start import derive_seed

__all__ = ["BaseLooks", "look_at_base", "measure_drift", "prompts"]

_CAPTIONS = 16  # of prompts.BROAD, evenly over its kinds
_POINTS = 4  # on each path: as many looks in all as a measure of a run has at most
_TOGETHER = 4


@dataclass(frozen=True)
class BaseLooks:
    """What the base predicted: points of several paths at a time, the captions of each by their places."""

    points: tuple[tuple[Point, tuple[int, ...]], ...]


def prompts() -> tuple[str, ...]:
    """The captions that drift is measured on."""
    return BROAD[:: -(-len(BROAD) // _CAPTIONS)]


def look_at_base(denoiser: Denoiser, cond: Sequence[Any], size: tuple[int, ...], device: torch.device) -> BaseLooks:
    """Walk the base's paths in latents of (C, h, w) for captions given as conditioning; no adapter may be on it."""
    found = []
    for first in range(0, len(cond), _TOGETHER):
        places = tuple(range(first, min(first + _TOGETHER, len(cond))))
        noise, offsets = _starts(places, size)
        for point in walk(denoiser, [cond[place] for place in places], noise, offsets, _POINTS, device):
            found.append((point, places))
    return BaseLooks(tuple(found))


@torch.no_grad()
def measure_drift(looks: BaseLooks, denoiser: Denoiser, cond: Sequence[Any], device: torch.device) -> float:
    """Mean squared change of the predictions against the base's, relative to the mean square of those.

    The adapter must be on the model, and the conditioning encoded with it.
    """
    changed, size = 0.0, 0.0
    for point, places in looks.points:
        given = [cond[place] for place in places]
        latents, noise = point.latents.to(device), point.noise.to(device)
        prediction, _ = denoiser.predict(latents, noise, denoiser.times(point.u), given)
        changed += float((prediction.float().cpu() - point.prediction).square().sum())
        size += float(point.prediction.square().sum())
    return changed / max(size, torch.finfo(torch.float32).tiny)


def _starts(places: Sequence[int], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Noise (B, C, h, w) and shifts of times (B,), a function of the captions' places."""
    noise, offsets = [], []
    for place in places:
        generator = torch.Generator().manual_seed(derive_seed("trilora drift path", place))
        offsets.append(torch.rand((), generator=generator))
        noise.append(torch.randn(size, generator=generator))
    return torch.stack(noise), torch.stack(offsets)
