"""Dense matrices with known spectra, for the tests of decompositions."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from trilora_core.spectral import SVD

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def dense(svd: SVD) -> Tensor:
    return (svd.u * svd.s.unsqueeze(-2)) @ svd.vh


def with_spectrum(out: int, in_: int, values: Tensor) -> Tensor:
    """A matrix with these singular values and random directions."""
    k = values.numel()
    return (basis(out, k, 5) * values) @ basis(in_, k, 6).T


@functools.cache
def basis(size: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw(size, k, seed=seed)).Q


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300))


def assert_canonical(svd: SVD, tolerance: float) -> None:
    """Orthonormal, sorted, not negative, signs by the rule."""
    k = svd.s.shape[-1]
    eye = torch.eye(k, dtype=DOUBLE)
    u, vh = svd.u.double(), svd.vh.double()
    assert (u.mT @ u - eye).abs().max() < tolerance
    assert (vh @ vh.mT - eye).abs().max() < tolerance
    assert (svd.s >= 0).all() and (svd.s.diff() <= 0).all()
    assert (u.gather(-2, u.abs().argmax(-2, keepdim=True)) > 0).all()
