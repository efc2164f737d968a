"""Merges that are defined on the entries of ΔW: one layer at a time as a dense matrix, then cut back to a low rank.

What they give is not of low rank: the energy that the cut loses is part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .merge_methods import Layers, Merged, disjoint_mean, removed, square_norm, trimmed
from .randomized import truncated_svd
from .start import derive_seed

__all__ = ["dare", "dare_mask", "dare_ties", "ties"]


def ties(layers: Layers) -> Merged:
    """TIES (Yadav et al. 2023, "TIES-Merging: resolving interference when merging models").

    Of each ΔW_i the `density` of entries of greatest magnitude, at each entry the sign with the larger total, and the
    weighted mean of the entries that agree with it. PEFT's `ties_svd` for positive weights; a negative weight turns
    its update around before signs are elected.
    """
    kept = [trimmed(update, layers.options.density) for update in _updates(layers)]
    return _recompressed(layers, *disjoint_mean(kept, _sizes(layers)))


def dare(layers: Layers) -> Merged:
    """DARE (Yu et al. 2024, "Language models are super Mario"): entries dropped at random, the rest divided by density.

    Then the weighted sum (PEFT's `dare_linear_svd`). What is dropped depends on seed, layer and adapter alone.
    """
    kept = _thinned(layers)
    whole = torch.zeros_like(kept[0])
    for update, weight in zip(kept, _raised(layers), strict=True):
        whole.add_(update, alpha=weight)
    return _recompressed(layers, whole, [square_norm(update) for update in kept])


def dare_ties(layers: Layers) -> Merged:
    """DARE in place of trimming, then the signs of TIES (PEFT's `dare_ties_svd`)."""
    return _recompressed(layers, *disjoint_mean(_thinned(layers), _raised(layers)))


def dare_mask(shape: Sequence[int], density: float, seed: int, stem: str, owner: int) -> Tensor:
    """Which entries of one layer of one adapter stay (True); drawn on the CPU, the same on every device."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "dare", stem, owner))
    return torch.rand(*shape, generator=generator) < density


def _updates(layers: Layers) -> list[Tensor]:
    """The dense updates (1, out, in), turned around where their weight is negative."""
    signs = [math.copysign(1.0, weight) for weight in layers.weights]
    return [(svd.u * (sign * svd.s).unsqueeze(-2)) @ svd.vh for sign, svd in zip(signs, layers.svds, strict=True)]


def _sizes(layers: Layers) -> list[float]:
    return [abs(weight) for weight in layers.weights]


def _raised(layers: Layers) -> list[float]:
    """Sizes of the weights divided by density, which makes up for what was dropped."""
    return [size / layers.options.density for size in _sizes(layers)]


def _thinned(layers: Layers) -> list[Tensor]:
    """The updates with entries dropped, before the division by density."""
    density, seed = layers.options.density, layers.options.seed
    (stem,) = layers.stems
    return [
        update.mul_(dare_mask(update.shape[-2:], density, seed, stem, owner).to(update.device))
        for owner, update in zip(layers.owners, _updates(layers), strict=True)
    ]


def _recompressed(layers: Layers, whole: Tensor, used: Sequence[Tensor]) -> Merged:
    """`whole` (1, out, in) at the asked rank, or at that of all adapters together; `used`: energy used of each."""
    rank = layers.options.rank or sum(svd.s.shape[-1] for svd in layers.svds)
    svd, _ = truncated_svd(whole, rank)
    return Merged(svd, square_norm(whole), removed(layers, used))
