"""Between the canonical form and the two factors in a file, so that reading and writing again changes no bit.

A file holds up = U · sqrt(S) and down = sqrt(S) · V^T in half or single precision. The length of column i of up and of
row i of down is sqrt(S_i), so the SVD comes back from the columns alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .spectral import SVD, canonical, canonical_many

__all__ = ["canonical_layers", "singular_values", "stored_factors"]

# Largest cosine between two columns, and largest relative difference of a column's and its row's length, that rounding
# alone leaves; several times what was measured.
_TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
_SMALLEST_STEP = {torch.float16: 2.0**-24}  # between numbers near zero; other dtypes reach far below any factor
_ROUNDS = 8
_TINY = 1e-300


def canonical_layers(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, SVD]:
    """SVD of every layer's up (out, r) · down (r, in), given in the dtype that they were stored in.

    Factors that are balanced already keep their columns, order and signs; the others are decomposed in batches.
    Raises ValueError, naming the layer, for values that are not finite or shapes that do not fit.
    """
    found = {name: svd for name, pair in factors.items() if (svd := _from_balanced(*pair)) is not None}
    rest = {name: (up.float(), down.float()) for name, (up, down) in factors.items() if name not in found}
    found |= canonical_many(rest)
    beyond = [name for name, svd in found.items() if not svd.s.isfinite().all()]
    if beyond:
        raise ValueError(f"layer {', '.join(beyond[:3])}: its change is too large for float32")
    return {name: found[name] for name in factors}


def stored_factors(svd: SVD, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Balanced factors up (out, k) and down (k, in) of one layer, rounded to `dtype`.

    Reading them and storing them again gives the same numbers: rounding can change lengths and order a little, so it
    is repeated until nothing moves.
    """
    up, down = _rounded(svd, dtype)
    for _ in range(_ROUNDS):
        if not (up.isfinite().all() and down.isfinite().all()):
            break  # the caller refuses them with the name of the layer
        read = _from_balanced(up, down)
        again = _rounded(canonical(up.float(), down.float()) if read is None else read, dtype)
        if torch.equal(again[0], up) and torch.equal(again[1], down):
            break
        up, down = again
    return up, down


def singular_values(up: Tensor, down: Tensor) -> Tensor:
    """The singular values (k,) that lie in balanced factors up (out, k) and down (k, in), float32."""
    return _lengths(up, down)[2]


def _rounded(svd: SVD, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Balanced factors in `dtype`, sorted by the singular values that a reader will find in them."""
    u, s, vh = (part.double() for part in svd)
    left, right = u.norm(dim=0), vh.norm(dim=1)  # 1 but for float32 rounding, which would unbalance the factors
    root = (s * left * right).sqrt()
    up = u * (root / left.clamp_min(_TINY))
    down = (root / right.clamp_min(_TINY)).unsqueeze(1) * vh
    if dtype == torch.float32:
        up, down = _coarse(up), _coarse(down)
    up, down = up.to(dtype), down.to(dtype)
    found = singular_values(up, down)
    if (found.diff() > 0).any():
        order = found.argsort(descending=True, stable=True)
        up, down = up[:, order], down[order]
    return up.contiguous(), down.contiguous()


def _coarse(values: Tensor) -> Tensor:
    """Round float64 to 22 bits (Veltkamp 1968): float32 has two more, which absorb the rounding of U, S and V."""
    scaled = values * (2.0**31 + 1.0)
    return scaled - (scaled - values)


def _lengths(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the columns of up and rows of down in float64, and the singular values (k,) in float32."""
    left, right = up.double().norm(dim=0), down.double().norm(dim=1)
    return left, right, (left * right).float()


def _from_balanced(up: Tensor, down: Tensor) -> SVD | None:
    """The SVD that lies in balanced factors, or None when their columns are not those of one.

    Near zero float16 has steps, not digits: there (S below 1e-7 at 1000 rows) the columns are taken as they lie, whose
    product is exact, although they are orthogonal only as far as the steps allow.
    """
    rank = up.shape[-1]
    if up.ndim != 2 or down.ndim != 2 or rank != down.shape[0] or not 0 < rank <= min(up.shape[0], down.shape[1]):
        return None
    left, right, s = _lengths(up, down)
    tolerance = _TOLERANCE.get(up.dtype, 1e-5) + _TOLERANCE.get(down.dtype, 1e-5)
    step = _SMALLEST_STEP.get(up.dtype, 0.0)
    slack = step * max(up.shape[0], down.shape[1]) ** 0.5
    equal_lengths = (left - right).abs() <= tolerance * left + slack
    if not (equal_lengths.all() and _orthogonal(up.double(), left, tolerance, slack)):
        return None
    if not _orthogonal(down.double().mT, right, tolerance, slack):
        return None
    order = s.argsort(descending=True, stable=True)
    u, vh = _unit(up.double(), left)[:, order], _unit(down.double().mT, right)[:, order].mT
    return SVD(u.float().contiguous(), s[order], vh.float().contiguous())


def _orthogonal(columns: Tensor, lengths: Tensor, tolerance: float, slack: float) -> bool:
    """Whether the columns (n, k) are orthogonal within rounding; NaN is not."""
    gram = (columns.mT @ columns).fill_diagonal_(0.0).abs()
    longer = torch.maximum(lengths, lengths.unsqueeze(1))
    return bool((gram <= tolerance * lengths * lengths.unsqueeze(1) + slack * longer).all())


def _unit(columns: Tensor, lengths: Tensor) -> Tensor:
    """Columns (n, k) at length 1; in place of zero columns any that complete an orthonormal set."""
    zero = lengths == 0
    unit = columns / torch.where(zero, torch.ones_like(lengths), lengths)
    if not zero.any():
        return unit
    order = zero.long().argsort(stable=True)  # Householder QR completes the set from its last columns
    completed = torch.empty_like(unit)
    completed[:, order] = torch.linalg.qr(unit[:, order]).Q
    return torch.where(zero, completed, unit)
