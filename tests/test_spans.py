"""Sums over one basis: exact whether the adapters' directions lie apart, close together, or coincide."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.matrices import DOUBLE, assert_canonical, dense, distance, draw
from trilora_core.spans import Span, combine, read_span, written_span
from trilora_core.spectral import SVD, canonical, energy

GOOD = canonical(draw(8, 3), draw(3, 6, seed=1))


def adapter(out: int, in_: int, rank: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> SVD:
    return canonical(draw(out, rank, seed=2 * seed, dtype=dtype), draw(rank, in_, seed=2 * seed + 1, dtype=dtype))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.5, 2.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize(("out", "in_"), [(20, 30), (6, 5)])  # the second with more directions than the layer has
def test_combine_is_the_sum_of_the_deltas(out: int, in_: int, weights: tuple[float, ...]) -> None:
    svds = [adapter(out, in_, rank, seed) for seed, rank in enumerate((2, 4, 3))]
    combined = combine(svds, weights)
    expected = sum(weight * dense(svd) for weight, svd in zip(weights, svds, strict=True))
    assert combined.s.numel() == min(9, out, in_)
    assert_canonical(combined, 1e-12)
    torch.testing.assert_close(dense(combined), expected)


def test_combine_of_one_and_of_opposites() -> None:
    svd = adapter(12, 9, 3)
    for part, expected in zip(combine([svd], [1.0]), svd, strict=True):
        torch.testing.assert_close(part, expected)
    assert energy(combine([svd, svd], [1.0, -1.0]).s) < 1e-24 * energy(svd.s)


def moved(svd: SVD, distance: float) -> SVD:
    """Another adapter of the same form whose directions are so far from the given ones."""
    up, down = svd.u * svd.s, svd.vh
    noise = [draw(*part.shape, seed=50 + part.shape[0]).to(part) for part in (up, down)]
    return canonical(
        up + distance * svd.s[0] * noise[0] / noise[0].norm(), down + distance * noise[1] / noise[1].norm()
    )


def test_a_batch_is_exact_at_every_closeness() -> None:
    """Layers whose directions coincide, nearly coincide, lie close and far: each by the way that suits it."""
    first = [adapter(96, 160, 6, seed, torch.float32) for seed in range(7)]
    second = [moved(svd, far) for svd, far in zip(first, (0.0, 1e-6, 1e-4, 1e-2, 0.3, 1.5, 30.0), strict=True)]
    a, b = (SVD(*(torch.stack(parts) for parts in zip(*svds, strict=True))) for svds in (first, second))
    spans = written_span([a, b]), read_span([a, b])
    closeness = torch.linalg.eigvalsh(spans[0].gram)[:, 0]
    assert closeness[0] < 1e-6 and closeness[-1] > 0.3 and closeness[4] < 0.2, "both ways are taken"
    found = combine([a, b], [1.0, -0.9], *spans)
    for index in range(7):
        one = SVD(*(part[index] for part in found))
        exact = dense(SVD(*(p.double() for p in first[index]))) - 0.9 * dense(SVD(*(p.double() for p in second[index])))
        assert_canonical(one, 5e-6)
        summed = max(dense(svd).norm() for svd in (first[index], second[index]))  # the sum is less where they cancel
        assert float((dense(one).double() - exact).norm() / summed) < 1e-6, index


@pytest.mark.parametrize("columns", [draw(3, 20, 8), draw(20, 8), draw(2, 5, 8), draw(20, 4).repeat(1, 2)])
def test_a_span_is_a_qr_decomposition(columns: Tensor) -> None:
    columns = columns / columns.norm(dim=-2, keepdim=True)
    span = Span(columns, (3, 5))
    basis = span.times(torch.eye(span.triangle.shape[-2], dtype=DOUBLE).expand(*columns.shape[:-2], -1, -1))
    assert distance(basis @ span.triangle, columns) < 1e-13
    assert distance(basis.mT @ basis, torch.eye(basis.shape[-1], dtype=DOUBLE).expand_as(basis.mT @ basis)) < 1e-12
    assert [part.shape[-1] for part in span.parts()] == [3, 5]
    torch.testing.assert_close(span.rows(span.triangle), columns.mT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combine([], []), "0 adapters"),
        (lambda: combine([GOOD], [1.0, 2.0]), "1 adapters and 2 weights"),
        (lambda: combine([GOOD], [math.nan]), "finite"),
        (lambda: combine([GOOD, adapter(9, 6, 2)], [1.0, 1.0]), "cannot be summed"),
        (lambda: combine([SVD(GOOD.u * math.nan, GOOD.s, GOOD.vh)], [1.0]), "NaN"),
        (lambda: combine([SVD(GOOD.u, GOOD.s * math.inf, GOOD.vh)], [1.0]), "NaN"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
