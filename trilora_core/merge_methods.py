"""Ways to make one update of several: a table of published methods, each over a batch of layers of equal shape.

Here are those that never leave the factors: no matrix of out x in is formed. The dense ones are in merge_dense.py.
A weight w_i is the strength of an adapter in every method: what is merged is w_i · ΔW_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import number, whole
from .moments import Moments
from .spectral import SVD, canonical, combine, energy

__all__ = [
    "Layers",
    "MergeOptions",
    "Merged",
    "Merger",
    "combined",
    "concatenated",
    "disjoint_mean",
    "filled",
    "knots",
    "nothing_removed",
    "orthogonal",
    "removed",
    "square_norm",
    "trimmed",
    "tsv",
    "update_energies",
]

_DEPENDENT = 1e-4  # a unit vector whose part outside a space is shorter lies in it: more than files in fp16 are off


@dataclass(frozen=True)
class MergeOptions:
    """What a merge may be told. `keep_energy` cuts each layer to the fewest directions that hold this share of it."""

    rank: int = 0  # of the result; 0: all that the method gives
    keep_energy: float = 1.0  # in (0, 1]
    density: float = 0.5  # in (0, 1]: share of entries (ties, dare, knots) or directions (tsv) that each adapter keeps
    seed: int = 0  # of what dare drops
    prior_weight: float = 1.0  # of the base model's own inputs beside those of one adapter, in regmean

    def __post_init__(self) -> None:
        whole("rank", self.rank, 0)
        number("keep_energy", self.keep_energy, above=0.0, most=1.0)
        number("density", self.density, above=0.0, most=1.0)
        whole("seed", self.seed, 0)
        number("prior_weight", self.prior_weight, least=0.0)


@dataclass(frozen=True)
class Layers:
    """B layers of equal shape, changed by the same n > 1 adapters: each SVD has the leading dimension B."""

    stems: Sequence[str]
    owners: Sequence[int]  # the adapters' places in the list that is merged
    svds: Sequence[SVD]
    weights: Sequence[float]  # none of them 0
    options: MergeOptions = field(default_factory=MergeOptions)
    moments: Sequence[tuple[Moments, Moments]] = ()  # for regmean: of each adapter's own inputs, and of the base's


class Merged(NamedTuple):
    """B merged layers: their SVD, its energy (B,) before any cut, and the energy (B, n) that the method left out."""

    svd: SVD
    whole: Tensor
    removed: Tensor


Merger = Callable[[Layers], Merged]


def combined(layers: Layers) -> Merged:
    """Exact weighted sum Σ w_i ΔW_i: task arithmetic (Ilharco et al. 2023) from the concatenated factors."""
    return nothing_removed(layers, combine(layers.svds, layers.weights))


def concatenated(layers: Layers) -> Merged:
    """All directions of all adapters side by side (PEFT's "cat"): the sum, of which nothing may be cut."""
    return combined(layers)


def knots(layers: Layers) -> Merged:
    """KnOTS-TIES (Stoica et al. 2024, "Model merging with SVD to tie the knots").

    [ΔW_1 … ΔW_n] = U Σ [V_1 … V_n]^T gives all adapters one orthonormal basis U of what they write; TIES merges their
    coordinates Σ V_i^T = U^T ΔW_i, k x in with k at most the sum of the ranks.
    """
    columns = torch.cat([svd.u * svd.s.unsqueeze(-2) for svd in layers.svds], -1)
    basis = canonical(columns, torch.eye(columns.shape[-1]).to(columns).expand(*columns.shape[:-2], -1, -1))
    u = basis.u * _filled(basis.s, columns.shape[-2:]).unsqueeze(-2)
    signs = [math.copysign(1.0, weight) for weight in layers.weights]
    coordinates = [
        trimmed(sign * (u.mT @ svd.u) * svd.s.unsqueeze(-2) @ svd.vh, layers.options.density)
        for sign, svd in zip(signs, layers.svds, strict=True)
    ]
    merged, used = disjoint_mean(coordinates, [abs(weight) for weight in layers.weights])
    svd = canonical(u, merged)
    return Merged(svd, energy(svd.s), removed(layers, used))


def tsv(layers: Layers) -> Merged:
    """TSV-Merge (Gargiulo et al. 2025, "Task singular vectors: reducing task interference in model merging").

    The first `density` of each adapter's directions, their singular vectors [U_1 … U_n] and [V_1 … V_n] replaced by the
    nearest orthonormal ones (Procrustes), the singular values kept. Directions that adapters share are counted once:
    where the nearest ones are not unique, those of least norm are taken. The paper's share is 1/n of full-rank updates.
    """
    counts = [max(1, math.ceil(layers.options.density * svd.s.shape[-1])) for svd in layers.svds]
    kept = [
        filled(SVD(u[..., :k], s[..., :k], vh[..., :k, :])) for (u, s, vh), k in zip(layers.svds, counts, strict=True)
    ]
    left = _nearest_orthonormal(torch.cat([svd.u for svd in kept], -1))
    right = _nearest_orthonormal(torch.cat([svd.vh.mT for svd in kept], -1))
    sigma = torch.cat([weight * svd.s for weight, svd in zip(layers.weights, kept, strict=True)], -1)
    svd = canonical(left, right.mT, sigma)
    rest = [w**2 * energy(svd.s[..., k:]) for w, svd, k in zip(layers.weights, layers.svds, counts, strict=True)]
    return Merged(svd, energy(svd.s), torch.stack(rest, -1))


def orthogonal(layers: Layers) -> Merged:
    """The sum, after each adapter has lost what it does inside the spaces of those before it; the first stays whole.

    ΔW_i - P_U ΔW_i P_V, where P_U and P_V project on all that the adapters before i write and read. It is then
    orthogonal to every change within these spaces, so that energies add; what it reads or writes elsewhere is left.
    After training, what Po et al. 2023 ("Orthogonal adaptation for modular customization of diffusion models") train.
    """
    svds = [filled(svd) for svd in layers.svds]
    left, left_parts, left_free = _nested([svd.u for svd in svds])
    right, right_parts, right_free = _nested([svd.vh.mT for svd in svds])
    core = left_free.new_zeros(*left_free.shape, right_free.shape[-1])
    lost, at = [], 0
    for weight, svd, rows, columns in zip(layers.weights, svds, left_parts, right_parts, strict=True):
        part = weight * (rows * svd.s.unsqueeze(-2).double()) @ columns.mT
        inside = part[..., :at, :at] * left_free[..., :at, None] * right_free[..., None, :at]
        lost.append(square_norm(inside))
        part[..., :at, :at] -= inside
        core = core + part
        at += svd.s.shape[-1]
    svd = canonical(left, (core @ right.mT.double()).to(left))
    return Merged(svd, energy(svd.s), torch.stack(lost, -1))


# --- parts ------------------------------------------------------------------------------------------------------------


def disjoint_mean(updates: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """TIES after trimming: the sign with the larger total at each entry, and the weighted mean of those that agree.

    Yadav et al. 2023, "TIES-Merging", steps 2 and 3, with the weights where PEFT has them: after the sign is elected.
    Also the energy (…) of each update's entries that agreed, before weights.
    """
    total = updates[0].clone()
    for update in updates[1:]:
        total += update
    elected = torch.where(total >= 0, 1.0, -1.0).to(total)
    merged, count, used = torch.zeros_like(total), torch.zeros_like(total), []
    for update, weight in zip(updates, weights, strict=True):
        agrees = (update * elected) > 0
        agreed = update * agrees
        used.append(square_norm(agreed))
        merged += weight * agreed
        count += agrees
    return merged / count.clamp_min(1.0), used


def filled(svd: SVD) -> SVD:
    """The directions whose singular value is rounding error at length 0: any orthonormal vector may stand there."""
    mask = _filled(svd.s, (svd.u.shape[-2], svd.vh.shape[-1]))
    return SVD(svd.u * mask.unsqueeze(-2), svd.s * mask, svd.vh * mask.unsqueeze(-1))


def _filled(s: Tensor, shape: Sequence[int]) -> Tensor:
    floor = s[..., :1] * torch.finfo(s.dtype).eps * max(shape)
    return ((s > floor) & (s > 0)).to(s)


def trimmed(update: Tensor, density: float) -> Tensor:
    """TIES, step 1: the `density` of entries of greatest magnitude in each (m, n) of update (…, m, n), 0 elsewhere."""
    sizes = update.abs().flatten(-2)
    count = max(1, int(density * sizes.shape[-1]))
    threshold = sizes.kthvalue(sizes.shape[-1] - count + 1, -1).values
    return torch.where(update.abs() >= threshold[..., None, None], update, torch.zeros_like(update))


def update_energies(layers: Layers) -> Tensor:
    """Energy (B, n) of each weighted update w_i · ΔW_i."""
    return torch.stack([weight**2 * energy(svd.s) for weight, svd in zip(layers.weights, layers.svds, strict=True)], -1)


def removed(layers: Layers, used: Sequence[Tensor]) -> Tensor:
    """Energy (B, n) of the weighted updates less that of what was used of them, before weights (B,) each."""
    weighted = [weight**2 * part for weight, part in zip(layers.weights, used, strict=True)]
    return (update_energies(layers) - torch.stack(weighted, -1)).clamp_min(0)


def square_norm(matrix: Tensor) -> Tensor:
    """Energy (…) of matrices (…, m, n)."""
    return energy(matrix.flatten(-2))


def nothing_removed(layers: Layers, svd: SVD) -> Merged:
    return Merged(svd, energy(svd.s), torch.zeros_like(update_energies(layers)))


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The partial isometry P Q^T of columns (…, n, k) = P D Q^T, over directions that are there."""
    basis, triangle = (part.double() for part in torch.linalg.qr(columns))
    left, values, right = torch.linalg.svd(triangle, full_matrices=False)
    there = (values > _DEPENDENT * values[..., :1]).to(values)
    nearest: Tensor = basis @ (left * there.unsqueeze(-2)) @ right
    return nearest.to(columns)


def _nested(spaces: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """One orthonormal basis whose first columns span the first space, the next the second, …

    Also the coordinates of each space's vectors in it (float64), and which columns are new directions (1) or only fill
    the place of a vector that lies in the spaces before (0).
    """
    basis, triangle = torch.linalg.qr(torch.cat(list(spaces), -1))
    triangle = triangle.double()
    new = (triangle.diagonal(dim1=-2, dim2=-1).abs() > _DEPENDENT).to(triangle)
    return basis, list(triangle.split([space.shape[-1] for space in spaces], -1)), new
