"""What several adapters write, or read, on the same layers: their directions side by side, in one orthonormal basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .errors import InputError
from .spectral import SVD, _signed

__all__ = ["Span", "between", "combine", "read_span", "written_span"]

_CLEAR = 0.2  # of the unit vectors' Gram matrix, the least eigenvalue at which its rounding does not show in the basis


class Span:
    """Columns (…, n, k): the orthonormal directions of several adapters side by side, `sizes` of each.

    They are Q · triangle, as a QR decomposition has it; Q (…, n, min(n, k)) is never formed. Where the directions lie
    well apart, which is the rule, both follow from the small Gram matrix (Cholesky QR), which costs a fraction of the
    reflections that are made elsewhere.
    """

    def __init__(self, columns: Tensor, sizes: Sequence[int]) -> None:
        self.columns, self.sizes = columns, tuple(sizes)

    @cached_property
    def gram(self) -> Tensor:
        """Cosines (…, k, k) of the directions, in float64."""
        return (self.columns.mT @ self.columns).double()

    @property
    def triangle(self) -> Tensor:
        """R (…, min(n, k), k) in float64."""
        return self._decomposed[0]

    def parts(self) -> tuple[Tensor, ...]:
        """The columns of `triangle` that belong to each adapter: its directions in the basis."""
        parts: tuple[Tensor, ...] = self.triangle.split(self.sizes, -1)
        return parts

    def times(self, core: Tensor) -> Tensor:
        """Q · core (…, n, m), for core (…, min(n, k), m) in float64."""
        _, source, mix = self._decomposed
        product: Tensor = source @ torch.linalg.solve_triangular(mix, core, upper=True).to(source)
        return product

    def rows(self, core: Tensor) -> Tensor:
        """The transpose of `times`, (…, m, n), contiguous where the columns are rows in memory."""
        _, source, mix = self._decomposed
        product: Tensor = torch.linalg.solve_triangular(mix, core, upper=True).to(source).mT @ source.mT
        return product

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """R, and what Q is made of: source · mix^-1."""
        if self.columns.shape[-1] > self.columns.shape[-2]:
            return self._reflected(self.columns)
        identity = torch.eye(self.gram.shape[-1]).to(self.gram)
        apart = torch.linalg.cholesky_ex(self.gram - _CLEAR * identity).info == 0
        apart &= self.gram.isfinite().all(-1).all(-1)
        if not bool(apart.any()):
            return self._reflected(self.columns)
        triangle = torch.linalg.cholesky_ex(self.gram).L.mT.contiguous()
        if bool(apart.all()):
            return triangle, self.columns, triangle
        mix, source = triangle.clone(), self.columns.clone()
        triangle[~apart], source[~apart], mix[~apart] = self._reflected(self.columns[~apart])
        return triangle, source, mix

    @staticmethod
    def _reflected(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By Householder reflections: exact also where directions coincide."""
        basis, triangle = torch.linalg.qr(columns)
        identity = torch.eye(basis.shape[-1]).to(triangle.device, torch.float64)
        return triangle.double(), basis, identity.expand(*basis.shape[:-2], -1, -1)


def written_span(svds: Sequence[SVD]) -> Span:
    """What the adapters write, u (…, out, k_i)."""
    return Span(torch.cat([svd.u for svd in svds], -1), [svd.s.shape[-1] for svd in svds])


def read_span(svds: Sequence[SVD]) -> Span:
    """What the adapters read, vh (…, k_i, in)."""
    return Span(torch.cat([svd.vh for svd in svds], -2).mT, [svd.s.shape[-1] for svd in svds])


def between(written: Span, core: Tensor, read: Span) -> SVD:
    """Canonical form of Q_written · core · Q_read^T, for core in float64: by the SVD of the core alone.

    Raises InputError for values that are not finite.
    """
    if not bool(core.isfinite().all()):
        raise InputError("an adapter holds NaN or infinite values: it diverged or its file is damaged")
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    return _signed(SVD(written.times(u), s.to(written.columns), read.rows(vh.mT)))


def combine(
    svds: Sequence[SVD], weights: Sequence[float], written: Span | None = None, read: Span | None = None
) -> SVD:
    """The exact sum of weights[i] · ΔW_i in canonical form, from the spans of the same adapters where they are there.

    k = min(sum of the ranks, out, in). Raises InputError for no adapters, unlike lengths or unlike shapes, and values
    that are not finite.
    """
    if not svds or len(svds) != len(weights):
        raise InputError(f"{len(svds)} adapters and {len(weights)} weights: give one weight for each, and at least one")
    if not all(math.isfinite(weight) for weight in weights):
        raise InputError(f"weights {list(weights)}: each must be a finite number")
    shapes = [(*svd.u.shape[:-1], svd.vh.shape[-1]) for svd in svds]
    if len(set(shapes)) > 1:
        raise InputError(f"layers of shapes {shapes} cannot be summed: all must adapt the same layer")
    written, read = written or written_span(svds), read or read_span(svds)
    sigma = torch.cat([weight * svd.s.double() for svd, weight in zip(svds, weights, strict=True)], -1)
    return between(written, (written.triangle * sigma.unsqueeze(-2)) @ read.triangle.mT, read)
