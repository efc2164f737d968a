"""Measures of sets of pictures: distances and diversity from features of any network, artefacts from pixels.

Everything here takes plain tensors and needs torch alone; evaluate_nets.py brings the networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from .errors import InputError

__all__ = [
    "Artefacts",
    "Diversity",
    "artefacts",
    "clipped_share",
    "diversity",
    "frechet_distance",
    "jackknife",
    "kernel_distance",
    "spot_mask",
]

_GROUPS = 20  # of a jackknife at most: more cost more and hardly change the error


# --- distances between sets ---------------------------------------------------


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features (N, D) and (M, D), in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root of the product of both covariances is the sum of the singular values of the product of their
    factors, so that few pictures with many features need no D x D root and lose no digits. Raises InputError for fewer
    than two rows.
    """
    (mean, factor), (other_mean, other_factor) = _gaussian(first), _gaussian(second)
    _same_width(first, second)
    traces = factor.square().sum() + other_factor.square().sum()
    cross = torch.linalg.svdvals(factor @ other_factor.T).sum()
    return max(0.0, float((mean - other_mean).square().sum() + traces - 2 * cross))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, D) and (M, D) (KID, Binkowski et al. 2018, eq. 4).

    The kernel is (x·y / D + 1)³. Its expectation does not depend on how many pictures there are, and it may be a
    little below 0 for sets that are alike. Raises InputError for fewer than two rows.
    """
    x, y = _double(first), _double(second)
    _same_width(x, y)
    return _within(_kernel(x, x)) + _within(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def jackknife(measure: Callable[..., float], *samples: Sequence[Tensor]) -> float | None:
    """Standard error of `measure` by leaving out a group of rows at a time; None for fewer than three rows.

    Each of `samples` is drawn by itself; the tensors within one belong together row by row, such as pictures of two
    adapters for the same prompts. `measure` takes all tensors in their order.
    """
    if any(len(tensors[0]) < 3 for tensors in samples):
        return None
    variance = 0.0
    for place, tensors in enumerate(samples):
        groups = min(_GROUPS, len(tensors[0]))
        number = torch.arange(len(tensors[0])) % groups
        values = []
        for group in range(groups):
            kept = [tensor[number.to(tensor.device) != group] for tensor in tensors]
            values.append(measure(*(t for at, given in enumerate(samples) for t in (kept if at == place else given))))
        middle = sum(values) / groups
        variance += (groups - 1) / groups * sum((value - middle) ** 2 for value in values)
    return math.sqrt(variance)


# --- diversity ----------------------------------------------------------------


@dataclass(frozen=True)
class Diversity:
    """Mean cosine distance of pairs: `overall` of all pictures, `within` of pictures of one caption (None: no pair)."""

    overall: float
    within: float | None


def diversity(features: Tensor, captions: Sequence[Hashable] | None = None) -> Diversity:
    """How unlike the pictures of a set are, from features (N, D): 0 is all the same picture.

    `within` is the mean over captions that have several pictures. Raises InputError for fewer than two rows.
    """
    unit = normalize(_double(features), dim=1)
    if captions is None:
        return Diversity(_spread(unit), None)
    if len(captions) != len(unit):
        raise InputError(f"{len(captions)} captions for {len(unit)} pictures; give one for each")
    rows: dict[Hashable, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    inside = [_spread(unit[several]) for several in rows.values() if len(several) > 1]
    return Diversity(_spread(unit), sum(inside) / len(inside) if inside else None)


# --- artefacts ----------------------------------------------------------------


@dataclass(frozen=True)
class Artefacts:
    """Of one picture: how many isolated saturated spots, their share of the area, and the share of clipped pixels."""

    spots: int
    spot_area: float
    clipped: float


_END = 250  # of 255: what a channel reaches inside a spot
_CORE = 220  # of 255: how bright, or how colourful, it is inside
_BRIGHTER = 80  # of 255: by how much it stands out from what is around it
_MORE_COLOURFUL = 120  # of 255: the same in colour, which varies more in pictures
_AROUND = 180  # of 255: what is at least this bright, or colourful, and touches a spot is part of it
_CLIPPED = 1  # of 255: this close to either end of the range is clipped, JPEG being a little off
_SIZE = 0.05  # of the shorter side: what is longer in any direction is no spot
_LEAST = 0.004  # of the shorter side, as the side of a square: what is smaller is a glint
# Directions of the lines that openings are made with: eight, evenly enough over the half circle.
_DIRECTIONS = ((0, 1), (1, 2), (1, 1), (2, 1), (1, 0), (2, -1), (1, -1), (1, -2))


def artefacts(picture: Tensor) -> Artefacts:
    """Measure a picture (3, H, W) uint8: what the paper calls unwarranted bright spots (section 5), and clipping."""
    mask = spot_mask(picture)
    return Artefacts(_count(mask), float(mask.float().mean()), clipped_share(picture))


def clipped_share(picture: Tensor) -> float:
    """The share of pixels of a picture (3, H, W) uint8 with a channel at either end of its range."""
    _check_picture(picture)
    low, high = picture.amin(0), picture.amax(0)
    return float(((low <= _CLIPPED) | (high >= 255 - _CLIPPED)).float().mean())


def spot_mask(picture: Tensor) -> Tensor:
    """Where a picture (3, H, W) uint8 has isolated saturated spots, (H, W) bool.

    A spot is brighter, or more colourful, than everything around it, reaches the end of the range, and is short in
    every direction: the top-hat of a maximum of openings with lines (Soille and Talbot 2001) leaves spots and takes
    away edges, strokes and areas; strokes between the directions of the lines are told by where they lead. Only spots
    that are larger than a glint count.
    """
    _check_picture(picture)
    high, low = picture.amax(0), picture.amin(0)
    brightness = (picture.to(torch.int16).sum(0) // 3).to(torch.uint8)
    length = max(5, round(_SIZE * min(high.shape)))
    found = torch.zeros_like(high, dtype=torch.bool)
    for values, contrast in ((brightness, _BRIGHTER), (high - low, _MORE_COLOURFUL)):
        seeds = (values >= _CORE) & (high >= _END)
        if seeds.any():
            seeds &= values - _opened(values, length) >= contrast
            found |= _short(seeds, values >= _AROUND, length)
    return _compact(found, max(2, round((_LEAST * min(high.shape)) ** 2)))


def _opened(values: Tensor, length: int) -> Tensor:
    """The largest of the openings of (H, W) uint8 with lines of `length` pixels in all directions."""
    # beyond the border goes on what is at it, so that what the border cuts is no spot
    wide = pad(values[None, None].float(), (2 * length,) * 4, mode="replicate")[0, 0].to(values.dtype)
    best = torch.zeros_like(wide)
    for down, right in _DIRECTIONS:
        steps = max(2, round(length / math.hypot(down, right)) + 1)
        eroded = _run(wide, down, right, steps, torch.minimum)
        best = torch.maximum(best, _run(eroded, -down, -right, steps, torch.maximum))
    inner = slice(2 * length, -2 * length)
    return best[inner, inner]


def _run(values: Tensor, down: int, right: int, steps: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join each value with the steps - 1 next ones in a direction, by doubling."""
    covered = 1
    while covered < steps:
        ahead = min(covered, steps - covered)
        values = join(values, torch.roll(values, (-down * ahead, -right * ahead), (0, 1)))
        covered += ahead
    return values


def _short(seeds: Tensor, mask: Tensor, length: int) -> Tensor:
    """The parts of a mask (H, W) that hold a seed and end within `length` steps from it in every direction."""
    if not seeds.any():
        return seeds
    found = _grown(seeds, mask, length)
    further = _grown(found, mask, 1) & ~found
    return found & ~_grown(further, mask, 2 * length)


def _compact(mask: Tensor, least: int) -> Tensor:
    """The connected parts of a mask (H, W) that have `least` pixels and fill half of the square around them."""
    if not mask.any():
        return mask
    down, right = mask.nonzero(as_tuple=True)
    part = torch.unique(_labels(mask)[down, right], return_inverse=True)[1]
    sizes = torch.bincount(part)
    side = torch.zeros_like(sizes)
    for place in (down, right):
        last = torch.zeros_like(sizes).scatter_reduce(0, part, place, "amax", include_self=False)
        first = torch.zeros_like(sizes).scatter_reduce(0, part, place, "amin", include_self=False)
        side = torch.maximum(side, last - first + 1)
    kept = (sizes >= least) & (2 * sizes >= side.square())
    result = torch.zeros_like(mask)
    result[down, right] = kept[part]
    return result


def _count(mask: Tensor) -> int:
    return int((torch.unique(_labels(mask)) > 0).sum()) if mask.any() else 0


def _labels(mask: Tensor) -> Tensor:
    """One number for each connected part of (H, W), 0 outside."""
    before = torch.zeros_like(mask, dtype=torch.int32)
    after = torch.arange(1, mask.numel() + 1, dtype=torch.int32, device=mask.device).reshape(mask.shape) * mask
    while not torch.equal(before, after):
        before, after = after, _around(after) * mask
    return after


def _grown(seeds: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The seeds, and what of the mask is reached from them in so many steps."""
    before, after = torch.zeros_like(mask), seeds
    for _ in range(steps):
        if torch.equal(before, after):
            break
        before, after = after, after | (_around(after) & mask)
    return after


def _around(values: Tensor) -> Tensor:
    """The largest of each value (H, W) and its eight neighbours."""
    for dim in (0, 1):
        last = values.shape[dim] - 1
        wide = values.clone()
        for to, of in ((1, 0), (0, 1)):
            part = wide.narrow(dim, to, last)
            part.copy_(torch.maximum(part, values.narrow(dim, of, last)))
        values = wide
    return values


def _check_picture(picture: Tensor) -> None:
    if picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[0] != 3:
        raise InputError(f"a picture is {tuple(picture.shape)} {picture.dtype}; wanted (3, H, W) uint8")


# --- sums ---------------------------------------------------------------------


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,), and a factor F (≤ D, D) of the covariance FᵀF."""
    rows = _double(features)
    mean = rows.mean(0)
    factor = (rows - mean) / math.sqrt(len(rows) - 1)
    if factor.shape[0] > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return mean, factor


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(kernel: Tensor) -> float:
    """Mean of a square matrix without its diagonal."""
    count = len(kernel)
    return float((kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1)))


def _spread(unit: Tensor) -> float:
    """Mean of 1 - cosine over pairs of unit rows (N, D), in one sum."""
    count = len(unit)
    return 1 - float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))


def _double(features: Tensor) -> Tensor:
    if features.dim() != 2 or len(features) < 2:
        raise InputError(f"features are {tuple(features.shape)}; wanted (N, D) of at least 2 pictures")
    if not torch.isfinite(features).all():
        raise InputError("features are not finite; the network or a picture of it is damaged")
    return features.double()


def _same_width(first: Tensor, second: Tensor) -> None:
    if first.shape[1] != second.shape[1]:
        raise InputError(f"features are {first.shape[1]} and {second.shape[1]} wide; take both from the same network")
