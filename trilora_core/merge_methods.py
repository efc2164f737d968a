"""Ways to make one update of several: a table of published methods, each over a batch of layers of equal shape.

Here are those that never leave the factors: no matrix of out x in is formed. The dense ones are in merge_dense.py.
A weight w_i is the strength of an adapter in every method: what is merged is w_i · ΔW_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .checks import number, whole
from .moments import Moments
from .spans import Span, between, combine, read_span, written_span
from .spectral import SVD, _signed, canonical, energy

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
    "there",
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

    @cached_property
    def written(self) -> Span:
        """What all of them write."""
        return written_span(self.svds)

    @cached_property
    def read(self) -> Span:
        """What all of them read."""
        return read_span(self.svds)


class Merged(NamedTuple):
    """B merged layers: their SVD, its energy (B,) before any cut, and the energy (B, n) that the method left out."""

    svd: SVD
    whole: Tensor
    removed: Tensor


Merger = Callable[[Layers], Merged]


def combined(layers: Layers) -> Merged:
    """Exact weighted sum Σ w_i ΔW_i: task arithmetic (Ilharco et al. 2023) from the concatenated factors."""
    return nothing_removed(layers, combine(layers.svds, layers.weights, layers.written, layers.read))


def concatenated(layers: Layers) -> Merged:
    """All directions of all adapters side by side (PEFT's "cat"): the sum, of which nothing may be cut."""
    return combined(layers)


def knots(layers: Layers) -> Merged:
    """KnOTS-TIES (Stoica et al. 2024, "Model merging with SVD to tie the knots").

    [ΔW_1 … ΔW_n] = U Σ [V_1 … V_n]^T gives all adapters one orthonormal basis U of what they write; TIES merges their
    coordinates Σ V_i^T = U^T ΔW_i, k x in with k at most the sum of the ranks.
    """
    lengths = torch.cat([svd.s for svd in layers.svds], -1).double()
    core, s, _ = torch.linalg.svd(layers.written.triangle * lengths.unsqueeze(-2), full_matrices=False)
    core = core * _above_rounding(s, layers.written.columns.shape[-2:], layers.svds[0].s.dtype).unsqueeze(-2)
    coordinates = [
        trimmed(_turned(weight, (core.mT @ part).to(svd.u) * svd.s.unsqueeze(-2) @ svd.vh), layers.options.density)
        for weight, svd, part in zip(layers.weights, layers.svds, layers.written.parts(), strict=True)
    ]
    merged, used = disjoint_mean(coordinates, [abs(weight) for weight in layers.weights])
    small = canonical(core.to(merged), merged)
    svd = _signed(SVD(layers.written.times(small.u.double()), small.s, small.vh))
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
    left, right = written_span(kept), read_span(kept)
    sigma = torch.cat([weight * svd.s.double() for weight, svd in zip(layers.weights, kept, strict=True)], -1)
    core = _nearest_isometry(left.triangle) * sigma.unsqueeze(-2) @ _nearest_isometry(right.triangle).mT
    svd = between(left, core, right)
    rest = [w**2 * energy(svd.s[..., k:]) for w, svd, k in zip(layers.weights, layers.svds, counts, strict=True)]
    return Merged(svd, energy(svd.s), torch.stack(rest, -1))


def orthogonal(layers: Layers) -> Merged:
    """The sum, after each adapter has lost what it does inside the spaces of those before it; the first stays whole.

    ΔW_i - P_U ΔW_i P_V, where P_U and P_V project on all that the adapters before i write and read. It is then
    orthogonal to every change within these spaces, so that energies add; what it reads or writes elsewhere is left.
    After training, what Po et al. 2023 ("Orthogonal adaptation for modular customization of diffusion models") train.
    """
    svds = [filled(svd) for svd in layers.svds]
    same = all(a is b for a, b in zip(svds, layers.svds, strict=True))
    left, right = (layers.written, layers.read) if same else (written_span(svds), read_span(svds))
    left_free, right_free = _new_directions(left), _new_directions(right)
    core = left_free.new_zeros(*left_free.shape, right_free.shape[-1])
    lost, at = [], 0
    for weight, svd, rows, columns in zip(layers.weights, svds, left.parts(), right.parts(), strict=True):
        part = weight * (rows * svd.s.unsqueeze(-2).double()) @ columns.mT
        inside = part[..., :at, :at] * left_free[..., :at, None] * right_free[..., None, :at]
        lost.append(square_norm(inside))
        part[..., :at, :at] -= inside
        core = core + part
        at += svd.s.shape[-1]
    svd = between(left, core, right)
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
    elected = torch.copysign(torch.ones_like(total[..., :1, :1]), total)
    merged, count, used = torch.zeros_like(total), torch.zeros_like(total), []
    for update, weight in zip(updates, weights, strict=True):
        agreed = (update * elected).clamp_min_(0)
        used.append(square_norm(agreed))
        merged.add_(agreed, alpha=weight)
        count += agreed.sign_()
    return merged.mul_(elected).div_(count.clamp_min_(1.0)), used


def filled(svd: SVD) -> SVD:
    """The directions whose singular value is rounding error at length 0: any orthonormal vector may stand there.

    The very same object where there are none.
    """
    mask = there(svd)
    return svd if bool(mask.all()) else SVD(svd.u * mask.unsqueeze(-2), svd.s * mask, svd.vh * mask.unsqueeze(-1))


def there(svd: SVD) -> Tensor:
    """1 for singular values (…, k) that are more than rounding, 0 for the others."""
    return _above_rounding(svd.s, (svd.u.shape[-2], svd.vh.shape[-1]), svd.s.dtype)


def _above_rounding(s: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    floor = s[..., :1] * torch.finfo(dtype).eps * max(shape)
    return ((s > floor) & (s > 0)).to(s)


def trimmed(update: Tensor, density: float) -> Tensor:
    """TIES, step 1: the `density` of entries of greatest magnitude in each (m, n) of update (…, m, n), 0 elsewhere."""
    sizes = update.abs()
    count = max(1, int(density * sizes.shape[-2] * sizes.shape[-1]))
    return update * (sizes >= _least_of_largest(sizes.flatten(-2), count)[..., None, None])


def _least_of_largest(values: Tensor, count: int) -> Tensor:
    """The smallest (…) of the `count` largest of values (…, n)."""
    place = values.shape[-1] - count
    if values.device.type != "cpu":
        return values.kthvalue(place + 1, -1).values
    # The same number, several times faster.
    return torch.from_numpy(numpy.partition(values.numpy(), place, -1)[..., place].copy())


def update_energies(layers: Layers) -> Tensor:
    """Energy (B, n) of each weighted update w_i · ΔW_i."""
    return torch.stack([weight**2 * energy(svd.s) for weight, svd in zip(layers.weights, layers.svds, strict=True)], -1)


def removed(layers: Layers, used: Sequence[Tensor]) -> Tensor:
    """Energy (B, n) of the weighted updates less that of what was used of them, before weights (B,) each."""
    weighted = [weight**2 * part for weight, part in zip(layers.weights, used, strict=True)]
    return (update_energies(layers) - torch.stack(weighted, -1)).clamp_min(0)


def square_norm(matrix: Tensor) -> Tensor:
    """Energy (…) of matrices (…, m, n): rows in their own number format, their sum in float64."""
    return energy(torch.linalg.vector_norm(matrix, dim=-1))


def nothing_removed(layers: Layers, svd: SVD) -> Merged:
    return Merged(svd, energy(svd.s), torch.zeros_like(update_energies(layers)))


def _nearest_isometry(triangle: Tensor) -> Tensor:
    """The partial isometry P Q^T of triangle (…, n, k) = P D Q^T, over directions that are there."""
    left, values, right = torch.linalg.svd(triangle, full_matrices=False)
    present = (values > _DEPENDENT * values[..., :1]).to(values)
    nearest: Tensor = left * present.unsqueeze(-2) @ right
    return nearest


def _new_directions(span: Span) -> Tensor:
    """Which vectors of the basis are new (1) and which only fill the place of one in the spaces before (0)."""
    return (span.triangle.diagonal(dim1=-2, dim2=-1).abs() > _DEPENDENT).to(span.triangle)


def _turned(weight: float, update: Tensor) -> Tensor:
    """Turned around where the weight is negative."""
    return -update if weight < 0 else update
