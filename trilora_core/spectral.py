"""Tensor algebra of factored updates: canonical form, truncation, spectra, overlap.

Everything here works on ΔW = u · diag(s) · vh without ever forming ΔW, in float32 (float64 where the input is float64)
and without gradients.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError

__all__ = [
    "SVD",
    "balanced",
    "canonical",
    "canonical_many",
    "cut_energy",
    "cut_rank",
    "effective_rank",
    "energy",
    "overlap",
    "rank_holding",
    "singular_values",
    "singular_values_many",
    "true_rank",
]

_BATCH_NUMBERS = 1 << 24  # numbers of up and down that canonical_many stacks at once: 64 MiB in float32
_DECOMPOSING_DEVICES = ("cpu", "cuda")  # elsewhere QR and SVD are missing or fall back: do them on the CPU


class SVD(NamedTuple):
    """ΔW = u · diag(s) · vh: u (…, out, k) and vh (…, k, in) orthonormal, s (…, k) descending and not negative."""

    u: Tensor
    s: Tensor
    vh: Tensor


def canonical(up: Tensor, down: Tensor, sigma: Tensor | None = None, *, scale: float = 1.0) -> SVD:
    """Bring scale · up · diag(sigma) · down to its SVD through two QR decompositions and the SVD of their small core.

    up (…, out, r), down (…, r, in), sigma (…, r) or None for ones; k = min(r, out, in). The largest entry of each
    column of u is positive, so equal input gives equal output. Raises InputError for shapes that do not fit, integers,
    and values that are not finite.
    """
    _check_factors(up, down, sigma)
    sigma = down.new_ones(down.shape[:-1]) if sigma is None else sigma
    if not math.isfinite(scale):
        raise InputError(f"scale is {scale}: it must be a finite number")
    home = up.device
    dtype = _precision(up, down, sigma)
    with torch.autocast(_device_for(home).type, enabled=False):
        left, left_unit = _unit_range(_working(up, dtype), "up")
        right, right_unit = _unit_range(_working(down, dtype), "down")
        middle, middle_unit = _unit_range(_working(sigma, dtype).unsqueeze(-1) * scale, "sigma")
        u, s, vh = _svd_of_product(left, middle * right)
        # In float64: the product of the units may fit float32 where that of two of them does not.
        s = s * (left_unit.double() * right_unit.double() * middle_unit.double()).squeeze(-1)
    return SVD(u.to(home), _held(s.to(home, dtype)), vh.to(home))


def canonical_many(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, SVD]:
    """Canonical form of every layer's up · down, layers of equal shape together in batches of bounded memory.

    Raises InputError as `canonical` does, with the name of the layer.
    """
    found: dict[str, SVD] = {}
    for names in _alike(factors):
        u, s, vh = canonical(*_stacked(names, factors))
        found.update({name: SVD(u[i], s[i], vh[i]) for i, name in enumerate(names)})
    return {name: found[name] for name in factors}


def singular_values(up: Tensor, down: Tensor) -> Tensor:
    """The singular values of up (…, out, r) · down (…, r, in), descending, (…, k) as `canonical` has them.

    Of the two QR decompositions only the triangles are computed, so it costs a part of the whole form.
    Raises InputError as `canonical` does.
    """
    _check_factors(up, down, None)
    home, dtype = up.device, _precision(up, down)
    with torch.autocast(_device_for(home).type, enabled=False):
        left, left_unit = _unit_range(_working(up, dtype), "up")
        right, right_unit = _unit_range(_working(down, dtype), "down")
        cores = [torch.linalg.qr(part, mode="r").R.double() for part in (left, right.mT)]
        s: Tensor = torch.linalg.svdvals(cores[0] @ cores[1].mT)
        s = s * (left_unit.double() * right_unit.double()).squeeze(-1)
    return _held(s.to(home, dtype))


def singular_values_many(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The singular values of every layer's up · down, (k,) on the CPU: in batches, and in one transfer.

    Raises InputError as `canonical_many` does.
    """
    batches = list(_alike(factors))
    found = [singular_values(*_stacked(names, factors)) for names in batches]
    if not found:
        return {}
    together = torch.cat([values.flatten().to(found[0].device) for values in found]).cpu()
    parts = together.split([values.shape[-1] for values, names in zip(found, batches, strict=True) for _ in names])
    by_name = dict(zip((name for names in batches for name in names), parts, strict=True))
    return {name: by_name[name] for name in factors}


def cut_rank(svd: SVD, rank: int) -> tuple[SVD, Tensor]:
    """Keep the `rank` largest singular values of one layer (all, if there are fewer); also the energy discarded.

    The best approximation of that rank, its squared Frobenius error being that energy (Eckart and Young 1936).
    """
    _check_rank(rank)
    if svd.s.ndim != 1:
        raise InputError(f"singular values of shape {tuple(svd.s.shape)}: cut one layer at a time, of shape (k,)")
    # Copies, so that what is cut off can be freed.
    kept = SVD(svd.u[:, :rank].clone(), svd.s[:rank].clone(), svd.vh[:rank].clone())
    return kept, energy(svd.s[rank:])


def cut_energy(svd: SVD, share: float) -> tuple[SVD, Tensor]:
    """Keep the fewest singular values, at least one, that hold `share` in (0, 1] of one layer's energy.

    As cut_rank, with the energy discarded.
    """
    _check_share(share)
    return cut_rank(svd, rank_holding(svd.s, share, energy(svd.s)))


def balanced(svd: SVD) -> tuple[Tensor, Tensor]:
    """Two factors of equal column norms, up = u · sqrt(s) and down = sqrt(s) · vh, whose product is ΔW."""
    root = svd.s.sqrt()
    return svd.u * root.unsqueeze(-2), root.unsqueeze(-1) * svd.vh


def energy(s: Tensor) -> Tensor:
    """Sum of squared singular values over the last dimension, s (…, k) -> (…), which is ‖ΔW‖_F²."""
    return _wide(s).square().sum(-1)


def effective_rank(s: Tensor) -> Tensor:
    """exp of the entropy of p_i = s_i / Σ s (not squared), s (…, k) -> (…); 0 where every value is 0.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    wide = _wide(s)
    total = wide.sum(-1, keepdim=True)
    share = wide / torch.where(total > 0, total, torch.ones_like(total))
    entropy = -torch.xlogy(share, share).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def rank_holding(s: Tensor, share: float, total: Tensor) -> int:
    """The smallest count of leading values of s (k,) that hold `share` of the energy `total`, between 1 and k."""
    held = _wide(s).square().cumsum(-1)
    return min(int((held < share * total).sum()) + 1, s.numel())


def true_rank(svd: SVD) -> int:
    """How many singular values of one layer are more than rounding, as numpy.linalg.matrix_rank counts them."""
    if not svd.s.numel():
        return 0
    floor = svd.s[0] * torch.finfo(svd.s.dtype).eps * max(svd.u.shape[0], svd.vh.shape[1])
    return int((svd.s > floor).sum())


def overlap(a: SVD, b: SVD, *, side: str = "both", weighted: bool = False) -> float:
    """How far two adapters of one layer use the same directions, from 0 (orthogonal, or one is zero) to 1.

    side: "out" compares what they write (u), "in" what they read (vh), "both" is the mean of the two. Unweighted: mean
    squared cosine of the principal angles, ‖U_a^T U_b‖_F² / min(k_a, k_b), over directions that are not zero (Hu et al.
    2021, LoRA, section 7.2). Weighted: the cosine between ΔW_a ΔW_a^T and ΔW_b ΔW_b^T (or ΔW^T ΔW), in which strong
    directions count more.
    """
    if side not in _SIDES:
        raise InputError(f"side is {side!r}: it must be one of {', '.join(_SIDES)}")
    if a.s.ndim != 1 or b.s.ndim != 1:
        raise InputError("overlap compares single layers: give each SVD without leading dimensions")
    if (a.u.shape[0], a.vh.shape[1]) != (b.u.shape[0], b.vh.shape[1]):
        raise InputError(
            f"layers of {a.u.shape[0]} x {a.vh.shape[1]} and {b.u.shape[0]} x {b.vh.shape[1]} cannot be compared: "
            "both must adapt the same layer"
        )
    a, b = _nonzero(a), _nonzero(b)
    if a.s.numel() == 0 or b.s.numel() == 0:
        return 0.0
    measure = _gram_cosine if weighted else _mean_squared_cosine
    values = [measure(basis(a), a.s, basis(b), b.s) for basis in _SIDES[side]]
    return min(1.0, max(0.0, sum(values) / len(values)))


# --- parts ---------------------------------------------------------------------------------------------------------


def _alike(factors: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[list[str]]:
    """Names of layers of one shape, type and device, as many at once as the memory of a batch allows."""
    groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, (up, down) in factors.items():
        try:
            _check_factors(up, down, None)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
        groups[up.shape, down.shape, up.dtype, down.dtype, up.device].append(name)
    for names in groups.values():
        up, down = factors[names[0]]
        size = max(1, _BATCH_NUMBERS // (up.numel() + down.numel()))
        yield from (names[start : start + size] for start in range(0, len(names), size))


def _stacked(names: Sequence[str], factors: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """up (n, out, r) and down (n, r, in) of these layers."""
    up = torch.stack([factors[name][0].detach() for name in names])
    down = torch.stack([factors[name][1].detach() for name in names])
    finite = up.isfinite().flatten(1).all(1) & down.isfinite().flatten(1).all(1)
    broken = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
    if broken:
        raise InputError(f"layer {', '.join(broken)}: up or down holds NaN or infinite values")
    return up, down


def _svd_of_product(left: Tensor, right: Tensor) -> SVD:
    """SVD of left (…, out, r) · right (…, r, in), signs fixed; s in float64.

    The small core is in float64: it costs nothing. Q is never formed, its reflectors are applied to the core's vectors.
    """
    left_reflectors, right_reflectors = torch.geqrf(left), torch.geqrf(right.mT)
    core_u, s, core_vh = torch.linalg.svd(
        _triangle(left_reflectors[0]) @ _triangle(right_reflectors[0]).mT, full_matrices=False
    )
    return _signed(SVD(_reflected(*left_reflectors, core_u), s, _reflected(*right_reflectors, core_vh.mT).mT))


def _triangle(reflectors: Tensor) -> Tensor:
    """R (…, min(n, r), r) of a QR decomposition as geqrf gives it, in float64."""
    return reflectors[..., : reflectors.shape[-1], :].triu().double()


def _reflected(reflectors: Tensor, tau: Tensor, columns: Tensor) -> Tensor:
    """Q · columns (…, n, k), in the number format of the reflectors (…, n, r)."""
    padded = reflectors.new_zeros(*reflectors.shape[:-1], columns.shape[-1])
    padded[..., : columns.shape[-2], :] = columns
    return torch.ormqr(reflectors[..., : tau.shape[-1]], tau, padded)


def _signed(svd: SVD) -> SVD:
    """The largest entry of each column of u made positive, so that equal weights give equal directions."""
    sign = torch.where(svd.u.amax(-2, keepdim=True) < -svd.u.amin(-2, keepdim=True), -1.0, 1.0).to(svd.u.dtype)
    return SVD(svd.u * sign, svd.s, sign.mT * svd.vh)


def _unit_range(factor: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Divide each matrix by the power of two near its largest entry, so that no product under- or overflows."""
    peak = factor.abs().amax((-2, -1), keepdim=True)
    if not bool(peak.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite values: the adapter diverged or its file is damaged")
    unit = torch.ldexp(torch.ones_like(peak), torch.frexp(peak).exponent.clamp(-120, 120))
    return factor / unit, unit


def _held(s: Tensor) -> Tensor:
    if not bool(s.isfinite().all()):
        raise InputError(f"up · down is too large for {s.dtype}: the adapter diverged or its file is damaged")
    return s


def _check_factors(up: Tensor, down: Tensor, sigma: Tensor | None) -> None:
    shapes = f"up {tuple(up.shape)} and down {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2 or up.shape[-1] != down.shape[-2] or up.shape[:-2] != down.shape[:-2]:
        raise InputError(f"{shapes} do not fit: (out, r) and (r, in) are wanted, with equal leading dimensions")
    if up.numel() == 0 or down.numel() == 0:
        raise InputError(f"{shapes} are empty: out, in and the rank must be at least 1")
    if sigma is not None and sigma.shape != down.shape[:-1]:
        raise InputError(f"sigma {tuple(sigma.shape)} does not fit {shapes}: one value per row of down is wanted")
    for tensor in (up, down) if sigma is None else (up, down, sigma):
        if not tensor.is_floating_point():
            raise InputError(f"factors of {tensor.dtype}: floating-point tensors are wanted")


def _check_rank(rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank is {rank!r}: it must be a whole number, 1 or more")


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"energy share is {share}: it must be above 0 and at most 1, such as 0.95")


def _nonzero(svd: SVD) -> SVD:
    """In float64, without directions whose singular value is rounding error: any orthonormal vector may stand there."""
    count = true_rank(svd)
    return SVD(_wide(svd.u[:, :count]), _wide(svd.s[:count]), _wide(svd.vh[:count]))


def _mean_squared_cosine(a: Tensor, _: Tensor, b: Tensor, __: Tensor) -> float:
    return float(energy(a.mT @ b).sum() / min(a.shape[1], b.shape[1]))


def _gram_cosine(a: Tensor, s_a: Tensor, b: Tensor, s_b: Tensor) -> float:
    weight_a, weight_b = (s_a / s_a[0]).square(), (s_b / s_b[0]).square()
    shared = weight_a @ (a.mT @ b).square() @ weight_b
    return float(shared / (weight_a.norm() * weight_b.norm()))


def _out_basis(svd: SVD) -> Tensor:
    return svd.u


def _in_basis(svd: SVD) -> Tensor:
    return svd.vh.mT


_SIDES = {"out": (_out_basis,), "in": (_in_basis,), "both": (_out_basis, _in_basis)}


def _precision(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _device_for(home: torch.device) -> torch.device:
    return home if home.type in _DECOMPOSING_DEVICES else torch.device("cpu")


def _working(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(_device_for(tensor.device), dtype)


def _wide(tensor: Tensor) -> Tensor:
    """In float64, so that squares of small values do not underflow; float32 where the device has no float64."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
