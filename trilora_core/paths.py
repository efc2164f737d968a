"""Points on the sampling paths of a model: what it sees, and predicts, on its way from noise to a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .protocols import Denoiser

__all__ = ["Point", "walk"]


@dataclass(frozen=True)
class Point:
    """Several paths at one step: raw latents and noise (B, C, h, w) that make the noisy ones, u (B,), prediction."""

    latents: Tensor
    noise: Tensor
    u: Tensor
    prediction: Tensor


@torch.no_grad()
def walk(
    denoiser: Denoiser, cond: Sequence[Any], noise: Tensor, offsets: Tensor, steps: int, device: torch.device
) -> Iterator[Point]:
    """Sample with deterministic steps (DDIM, Song et al. 2021; Euler for flow models) and give every point passed.

    `noise` (B, C, h, w) is where the paths begin; `offsets` (B,) in [0, 1) move each path's times, so that many paths
    together see all of them. No guidance: the points are those of the model's own distribution. Latents and noise are
    rounded to half precision before they are shown to the model, so that they may be kept in it. Points are on the CPU.
    """
    clean, noise = torch.zeros_like(noise).to(device), noise.to(device)
    for step in range(steps):
        u = (steps - step - offsets) / steps
        times = denoiser.times(u)
        latents, noise = denoiser.raw(clean).half().float(), noise.half().float()
        prediction, target = denoiser.predict(latents, noise, times, cond)
        yield Point(latents.cpu(), noise.cpu(), u, prediction.float().cpu())
        ratio = denoiser.snr(times).sqrt().to(device).view(-1, 1, 1, 1).clamp(min=_LEAST_RATIO)
        dx, dn = _MOVES[denoiser.prediction_type](ratio)
        change = prediction.float() - target.float()
        clean, noise = clean + dx * change, noise + dn * change


_LEAST_RATIO = 1e-3  # of signal to noise: at none at all a prediction of the noise says nothing about the picture


def _of_noise(ratio: Tensor) -> tuple[Tensor, Tensor]:
    return -1 / ratio, torch.ones_like(ratio)


def _of_v(ratio: Tensor) -> tuple[Tensor, Tensor]:
    spread = (1 + ratio.square()).rsqrt()
    return -spread, ratio * spread


def _of_flow(ratio: Tensor) -> tuple[Tensor, Tensor]:
    time = 1 / (1 + ratio)
    return -time, 1 - time


# By how much (clean latents, noise) change for each unit of (prediction - target) where the noisy latents stay.
_MOVES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": _of_noise,
    "v": _of_v,
    "v_prediction": _of_v,
    "flow": _of_flow,
}
