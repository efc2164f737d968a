"""Directions in which a training set differs most from everything else, as the rows that an adapter starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import Moments

__all__ = ["DAMPING", "contrast"]

DAMPING = 1e-2
"""λ as a share of the mean eigenvalue of C0: directions that the prior hardly uses are not blown up beyond it."""

_NOTHING = 1e-7  # of the largest eigenvalue: below it float32 sums hold rounding only


def contrast(learned: Moments, prior: Moments, rank: int) -> Tensor:
    """The at most `rank` unit rows v (k, n), best first, that maximise vᵀ·C1·v / vᵀ·(C0 + λI)·v, λ = DAMPING·tr(C0)/n.

    C1 are the moments on the training set, C0 those on the prior: generalised eigenvectors, in float64, then float32.
    The largest entry of each row is positive. Fewer rows where C1 has fewer directions.
    """
    damping = DAMPING * prior.trace / prior.width
    if not damping or not learned.trace:
        return torch.zeros(0, prior.width)
    whole = learned.matrix is not None and prior.matrix is not None
    rows, values = (_whole if whole else _factored)(learned, prior, damping, rank)
    kept = rows[values > _NOTHING * values[0]]
    kept = kept / torch.linalg.vector_norm(kept, dim=1, keepdim=True)
    peaks = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    unit: Tensor = (kept * peaks.sign()).float()
    return unit


def _whole(learned: Moments, prior: Moments, damping: float, rank: int) -> tuple[Tensor, Tensor]:
    """By the Cholesky factor of C0 + λI = L·Lᵀ: the eigenvectors of L⁻¹·C1·L⁻ᵀ, brought back by L⁻ᵀ."""
    assert learned.matrix is not None and prior.matrix is not None
    against = prior.matrix.double()
    against.diagonal().add_(damping)
    factor = torch.linalg.cholesky(against)
    half = torch.linalg.solve_triangular(factor, learned.matrix.double(), upper=False)
    middle = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values, vectors = torch.linalg.eigh((middle + middle.T) / 2)
    best = vectors.flip(1)[:, :rank]
    return torch.linalg.solve_triangular(factor.T, best, upper=True).T, values.flip(0)[:rank]


def _factored(learned: Moments, prior: Moments, damping: float, rank: int) -> tuple[Tensor, Tensor]:
    """By A⁻¹ = (C0 + λI)⁻¹ in closed form (Woodbury): with C1 = F·Fᵀ the eigenvectors of the small Fᵀ·A⁻¹·F.

    What the storage of C1 does not resolve is no direction of the training set.
    """
    assert learned.vectors is not None and learned.values is not None
    assert prior.vectors is not None and prior.values is not None
    factor = learned.vectors.double() * learned.values.double().sqrt()
    basis, rest = prior.vectors.double(), prior.rest + damping
    gain = 1 / (prior.values.double() + damping) - 1 / rest
    solved = factor / rest + basis @ (gain.unsqueeze(1) * (basis.T @ factor))
    small = factor.T @ solved
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    return (solved @ vectors.flip(1)[:, :rank]).T, values.flip(0)[:rank]
