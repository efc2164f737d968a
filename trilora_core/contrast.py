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
    solve = _solve_half if prior.packed is not None else _solve_sketched
    solve = solve if learned.packed is None else _solve_whole
    rows, values = solve(learned, prior, damping, rank)
    kept = rows[values > _NOTHING * values[0]]
    kept = kept / torch.linalg.vector_norm(kept, dim=1, keepdim=True)
    peaks = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    unit: Tensor = (kept * peaks.sign()).float()
    return unit


def _solve_whole(learned: Moments, prior: Moments, damping: float, rank: int) -> tuple[Tensor, Tensor]:
    """By the Cholesky factor of C0 + λI = L·Lᵀ: the eigenvectors of L⁻¹·C1·L⁻ᵀ, brought back by L⁻ᵀ."""
    assert learned.matrix is not None
    factor = _cholesky(prior, damping)
    half = torch.linalg.solve_triangular(factor, learned.matrix.double(), upper=False)
    vectors, values = _leading(torch.linalg.solve_triangular(factor, half.T, upper=False), rank)
    return torch.linalg.solve_triangular(factor.T, vectors, upper=True).T, values


def _solve_half(learned: Moments, prior: Moments, damping: float, rank: int) -> tuple[Tensor, Tensor]:
    """The same where C1 = F·Fᵀ: the eigenvectors of the small Fᵀ·(C0 + λI)⁻¹·F.

    What the storage of C1 does not resolve is no direction of the training set.
    """
    factor = _cholesky(prior, damping)
    half = torch.linalg.solve_triangular(factor, _root(learned), upper=False)
    vectors, values = _leading(half.T @ half, rank)
    return torch.linalg.solve_triangular(factor.T, half @ vectors, upper=True).T, values


def _solve_sketched(learned: Moments, prior: Moments, damping: float, rank: int) -> tuple[Tensor, Tensor]:
    """The same with (C0 + λI)⁻¹ in closed form (Woodbury), where C0 is held by eigenvectors."""
    assert prior.vectors is not None and prior.values is not None
    root, basis, rest = _root(learned), prior.vectors.double(), prior.rest + damping
    gain = 1 / (prior.values.double() + damping) - 1 / rest
    solved = root / rest + basis @ (gain.unsqueeze(1) * (basis.T @ root))
    vectors, values = _leading(root.T @ solved, rank)
    return (solved @ vectors).T, values


def _root(learned: Moments) -> Tensor:
    """F (n, k) of C1 = F·Fᵀ."""
    assert learned.vectors is not None and learned.values is not None
    return learned.vectors.double() * learned.values.double().sqrt()


def _cholesky(prior: Moments, damping: float) -> Tensor:
    """L of C0 + λI = L·Lᵀ; what the rounding of float16 made negative in C0 is taken for 0."""
    matrix = prior.matrix
    assert matrix is not None
    against = matrix.double()
    against.diagonal().add_(damping)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(against)
    if bool(failed):
        values, vectors = torch.linalg.eigh(against)
        factor = torch.linalg.cholesky((vectors * values.clamp_min(damping)) @ vectors.T)
    return factor


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors (n, rank) of the largest eigenvalues, and these, largest first."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors.flip(1)[:, :rank], values.flip(0)[:rank]
