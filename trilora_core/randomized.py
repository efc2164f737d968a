"""Leading singular values and directions of dense weights, without a dense SVD: deterministic randomized methods.

float32 (float64 where the input is float64), without gradients, on the weight's own device where it can decompose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError
from .spectral import SVD, _check_rank, _check_share, _precision, _signed, _working, energy, rank_holding

__all__ = ["rank_for_energy", "top_singular_values", "truncated_svd"]

_OVERSAMPLING = 12
_KRYLOV_STEPS = 3  # with the first product and the last projection: 8 passes over the weight
# Where each method was the cheaper one, measured on one CPU thread (benchmarks/spectral.py).
_EXACT_SIDE = 128  # up to this side a full SVD takes about a millisecond
_KRYLOV_SHARE = 0.4  # up to this many columns of the Krylov basis per row of the smaller side
_GRAM_FLOAT32_RANGE = 1e-4  # eigenvalues below this share of the largest need float64
# Of truncated_svd, benchmarks/extract.py: what it needs is the energy of its directions, which takes fewer passes.
_FIT_OVERSAMPLING = 8
_FIT_STEPS = 2
_FIT_SHARE = 0.75
_TEST_MATRIX_SEED = 2007


def top_singular_values(weight: Tensor, rank: int) -> Tensor:
    """The min(rank, out, in) largest singular values, descending, of weight (…, out, in): -> (…, rank).

    Low ranks: randomized block Krylov iteration (Musco and Musco 2015) with oversampling, below the true values by at
    most 1% on decaying spectra and about 3% on flat ones; higher ranks: eigenvalues of the Gram matrix of the smaller
    side; small matrices: full SVD.
    Always the same values for the same weight; the global random state is not touched. Flatten convolutions to
    (out, in · kh · kw) first. Raises InputError for rank < 1, fewer than two dimensions, or values that are not finite.
    """
    work, rank = _checked(weight, rank)
    work = work if work.shape[-2] <= work.shape[-1] else work.mT
    side = work.shape[-2]
    with torch.autocast(work.device.type, enabled=False):
        values: Tensor
        if side <= _EXACT_SIDE:
            values = torch.linalg.svdvals(work)
        elif (_KRYLOV_STEPS + 1) * (rank + _OVERSAMPLING) <= _KRYLOV_SHARE * side:
            values = _krylov_values(work, rank + _OVERSAMPLING)
        else:
            values = _gram_values(work, rank)
    values = values[..., :rank].to(work.dtype)
    return values.to(weight.device)


def rank_for_energy(weight: Tensor, share: float, cap: int) -> int:
    """The smallest rank, at most `cap`, at which weight (out, in) keeps `share` in (0, 1] of its energy; 1 for zero."""
    _check_share(share)
    values = top_singular_values(weight, cap)
    if values.ndim != 1:
        raise InputError(f"weight of shape {tuple(weight.shape)}: a single (out, in) matrix is wanted")
    return rank_holding(values, share, energy(weight.flatten()))


def truncated_svd(weight: Tensor, rank: int) -> tuple[SVD, Tensor]:
    """A near-best fit of rank k = min(rank, out, in) to weight (…, out, in), and its relative Frobenius error (…).

    Projection on leading directions (Halko, Martinsson and Tropp 2011) from block Krylov iteration (Musco and Musco
    2015), or from a dense SVD where sides are small or ranks high. Above the least possible error by about 0.5% at
    most, less where the spectrum decays fast. The last product is in float64, so that the error follows from the
    energies: ‖W - fit‖² = ‖W‖² - Σ s². It is that of this very fit, no bound; 0 for a zero weight.
    Signs as in `canonical`, the same result every time. Raises InputError as `top_singular_values` does.
    """
    work, rank = _checked(weight, rank)
    flipped = work.shape[-2] > work.shape[-1]
    with torch.autocast(work.device.type, enabled=False):
        wide = work.mT if flipped else work
        exact = wide.double()
        u, s, vh = _projected(_leading_basis(wide, rank), exact)
        total = torch.linalg.vector_norm(exact, dim=(-2, -1)).square()
        lost = (total - energy(s)).clamp_min(0) / torch.where(total > 0, total, torch.ones_like(total))
        svd = _signed(SVD(vh.mT, s, u.mT) if flipped else SVD(u, s, vh))
    home, dtype = weight.device, work.dtype
    return SVD(svd.u.to(home, dtype), svd.s.to(home, dtype), svd.vh.to(home, dtype)), lost.sqrt().to(home)


def _leading_basis(work: Tensor, rank: int) -> Tensor:
    """Orthonormal columns (…, m, rank), float64, near the leading left directions of `work` (…, m, n), m <= n."""
    side = work.shape[-2]
    block = rank + _FIT_OVERSAMPLING
    if side <= _EXACT_SIDE or (_FIT_STEPS + 1) * block > _FIT_SHARE * side:
        basis = torch.linalg.svd(work, full_matrices=False).U[..., :rank]
    else:
        wide = torch.linalg.qr(_krylov_basis(work, block, _FIT_STEPS)).Q
        projected = (wide.mT @ work).double()
        basis = wide @ torch.linalg.eigh(projected @ projected.mT).eigenvectors[..., -rank:].to(wide)
    orthonormal: Tensor = torch.linalg.qr(basis.double()).Q
    return orthonormal


def _projected(basis: Tensor, work: Tensor) -> SVD:
    """SVD of basis · basisᵀ · work, for basis (…, m, k) and work (…, m, n): by QR first, so that the SVD is k x k."""
    right, core = torch.linalg.qr((basis.mT @ work).mT)
    u, s, vh = torch.linalg.svd(core.mT)
    return SVD(basis @ u, s, vh @ right.mT)


def _checked(weight: Tensor, rank: int) -> tuple[Tensor, int]:
    """The weight to work on, and the rank that it can have."""
    _check_rank(rank)
    if weight.ndim < 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise InputError(f"weight is {tuple(weight.shape)} of {weight.dtype}: a floating-point (out, in) is wanted")
    work = _working(weight, _precision(weight))
    if not bool(torch.stack(torch.aminmax(work)).isfinite().all()):
        raise InputError("weight holds NaN or infinite values: the base model file is damaged or overflowed")
    return work, min(rank, *work.shape[-2:])


def _krylov_basis(work: Tensor, block: int, steps: int) -> Tensor:
    """Columns that span [Q, (AA^T)Q, …] of `work` (…, m, n), m <= n, each block orthonormal: (…, m, c)."""
    generator = torch.Generator().manual_seed(_TEST_MATRIX_SEED)  # on the CPU: the same draw on every device
    start = torch.randn(work.shape[-1], block, generator=generator).to(work)
    blocks = [torch.linalg.qr(work @ start).Q]
    for _ in range(steps):
        back = work.mT @ blocks[-1]
        # Only the span matters; dividing keeps squares of very small or large weights within range.
        back = back / back.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(back.dtype).tiny)
        blocks.append(torch.linalg.qr(work @ back).Q)
    return torch.cat(blocks, -1)


def _krylov_values(work: Tensor, block: int) -> Tensor:
    """Singular values of `work` (…, m, n), m <= n, projected on the Krylov basis."""
    basis = torch.linalg.qr(_krylov_basis(work, block, _KRYLOV_STEPS)).Q
    projected = (basis.mT @ work).double()
    return _roots_descending(torch.linalg.eigvalsh(projected @ projected.mT))


def _gram_values(work: Tensor, rank: int) -> Tensor:
    """Singular values of `work` (…, m, n), m <= n, from A A^T; in float64 where the wanted ones span a wide range."""
    unit = work.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(work.dtype).tiny)
    work = work / unit
    eigenvalues = torch.linalg.eigvalsh(work @ work.mT)
    wide = eigenvalues[..., -rank] < _GRAM_FLOAT32_RANGE * eigenvalues[..., -1]
    if work.dtype != torch.float64 and bool(wide.any()):
        work = work.double()
        eigenvalues = torch.linalg.eigvalsh(work @ work.mT)
    return _roots_descending(eigenvalues) * unit.squeeze(-1)


def _roots_descending(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.flip(-1).clamp_min(0).sqrt()
