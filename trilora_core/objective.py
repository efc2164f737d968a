"""What is minimised: losses per sample, and the draws of u in [0, 1] that the model turns into its own times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DRAWS", "draw_uniform", "mse_per_sample"]


def mse_per_sample(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error in the model's own target space, in float32; (B, …) and (B, …) -> (B,).

    A mask (B, 1, h, w) in [0, 1] weights each place; the mean is still over all of them, so a place of weight 0 counts
    as one without error.
    """
    error = (prediction.float() - target.float()).square()
    if mask is not None:
        error = error * mask
    return error.flatten(1).mean(dim=1)


def draw_uniform(count: int, generator: torch.Generator) -> Tensor:
    """Independent uniform draws, (count,) in [0, 1), one for each sample (Ho et al. 2020, algorithm 1)."""
    return torch.rand(count, generator=generator)


DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {"uniform": draw_uniform}
