"""How far two sets of features are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit two sets of features (n, d) and (m, d) (Heusel et al. 2017)."""
    a, b = a.double(), b.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    # tr((C1·C2)^½) is the sum of the singular values of C1^½ · C2^½
    mixed = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    apart = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, float(apart + first.trace() + second.trace() - 2 * mixed))


def kernel(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the cubic kernel (Bińkowski et al. 2018): fit for small sets; below 0 by chance."""
    a, b = a.double(), b.double()
    within, across = sum(_off_diagonal(_cubic(one, one)) for one in (a, b)), _cubic(a, b).mean()
    return float(within - 2 * across)


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _off_diagonal(gram: Tensor) -> Tensor:
    count = len(gram)
    return (gram.sum() - gram.trace()) / (count * (count - 1))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
