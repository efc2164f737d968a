"""Second moments beside dense float64, what a sketch loses, and the directions that set two of them apart."""

from __future__ import annotations

import pytest
import torch

from trilora_core.contrast import DAMPING, contrast
from trilora_core.errors import InputError
from trilora_core.moments import Moments, Storage, gatherer, sketch_columns

SMALL = Storage(whole=8, kept=12, spare=8)


def rows(count: int, width: int, decay: float, seed: int = 0, turned: bool = True) -> torch.Tensor:
    """Gaussian rows whose spectrum falls as i^-decay, in directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, width, generator=generator) * torch.arange(1, width + 1).float() ** -decay
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return drawn @ turn if turned else drawn


def moments(x: torch.Tensor, storage: Storage, parts: int = 3) -> Moments:
    gathered = gatherer(x.shape[1], storage, sketch_columns(x.shape[1], storage, seed=7))
    for part in x.chunk(parts):
        gathered.add(part)
    return gathered.moments()


def dense(x: torch.Tensor) -> torch.Tensor:
    return x.double().T @ x.double() / len(x)


def test_whole_moments_are_the_dense_ones():
    x = rows(500, 30, 0.5)
    found, wanted = moments(x, Storage()), dense(x)
    assert found.count == 500 and found.width == 30 and found.rest == 0.0
    assert found.packed.dtype == torch.float16 and found.packed.numel() == 30 * 31 // 2
    assert found.trace == pytest.approx(float(wanted.trace()), rel=1e-6)
    assert (found.matrix.double() - wanted).abs().max() < 2**-11 * wanted.abs().max()
    assert torch.equal(found.matrix, found.matrix.T)


@pytest.mark.parametrize("decay", [1.0, 2.0])
def test_a_sketch_is_near_the_best_of_its_rank(decay):
    """In the nuclear norm: the tail behind what is kept, times what few spare columns cost (Tropp et al. 2017)."""
    x = rows(4000, 60, decay)
    found, wanted = moments(x, SMALL), dense(x)
    tail = float(torch.linalg.eigvalsh(wanted).flip(0)[12:].sum())
    built = (found.vectors.double() * found.values.double()) @ found.vectors.double().T
    error = float(torch.linalg.svdvals(built - wanted).sum())
    assert tail <= error * (1 + 1e-4) and error < 2.5 * tail
    assert found.packed is None and found.vectors.shape == (60, 12)
    eye = torch.eye(12, dtype=torch.float64)
    assert (found.vectors.double().T @ found.vectors.double() - eye).abs().max() < 1e-5


def test_a_sketch_of_few_directions_is_exact():
    x = rows(300, 5, 0.5, turned=False) @ torch.linalg.qr(torch.randn(40, 5)).Q.T
    found, wanted = moments(x, SMALL), dense(x)
    assert (found.values[5:] < 1e-5 * found.values[0]).all()
    built = (found.vectors.double() * found.values.double()) @ found.vectors.double().T
    assert (built - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert found.rest * 28 < 1e-5 * found.trace


@pytest.mark.parametrize("storage", [Storage(), SMALL])
def test_times_is_the_product_with_what_is_held_and_has_gradients(storage):
    found = moments(rows(400, 40, 1.0), storage)
    held = found.matrix
    if held is None:
        vectors, values = found.vectors, found.values
        held = (vectors * values) @ vectors.T + found.rest * (torch.eye(40) - vectors @ vectors.T)
        assert float(held.trace()) == pytest.approx(found.trace, rel=1e-5)
    probe = torch.randn(3, 40, requires_grad=True)
    torch.testing.assert_close(found.times(probe), probe @ held, rtol=1e-4, atol=1e-5)
    found.times(probe).square().sum().backward()
    assert probe.grad.abs().max() > 0


def test_the_memory_is_what_is_stated():
    for width in (8, 40):
        found = moments(rows(400, width, 1.0), SMALL)
        held = sum(part.numel() * part.element_size() for part in found.tensors().values())
        assert held == SMALL.kept_bytes(width)
    assert Storage().kept_bytes(1280) == 1280 * 1281 and Storage().gathered_bytes(1280) == 4 * 1280**2


def test_same_rows_same_bits():
    for storage in (Storage(), SMALL):
        one, other = (moments(rows(400, 40, 1.0), storage).tensors() for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_rows():
    with pytest.raises(InputError, match="not finite"):
        moments(torch.full((4, 6), float("inf")), Storage())
    with pytest.raises(InputError, match="never calls"):
        gatherer(6, Storage(), None).moments()


def reference(c1: torch.Tensor, c0: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised eigenvectors by the inverse square root of C0 + λI in float64: values and unit rows."""
    against = c0 + DAMPING * c0.trace() / len(c0) * torch.eye(len(c0), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(against)
    root = (vectors * values.rsqrt()) @ vectors.T
    found, turned = torch.linalg.eigh(root @ c1 @ root)
    best = (root @ turned.flip(1)[:, :rank]).T
    return found.flip(0)[:rank], best / best.norm(dim=1, keepdim=True)


def quotient(unit: torch.Tensor, c1: torch.Tensor, c0: torch.Tensor) -> torch.Tensor:
    against = c0 + DAMPING * c0.trace() / len(c0) * torch.eye(len(c0), dtype=torch.float64)
    v = unit.double()
    return (v @ c1 * v).sum(1) / (v @ against * v).sum(1)


def test_directions_are_the_generalised_eigenvectors():
    one, other = rows(3000, 24, 0.7, seed=1), rows(3000, 24, 0.7, seed=2)
    learned, prior = moments(one, Storage()), moments(other, Storage())
    values, wanted = reference(learned.matrix.double(), prior.matrix.double(), 5)
    found = contrast(learned, prior, 5)
    assert found.dtype == torch.float32 and found.shape == (5, 24)
    assert ((found.double() * wanted).sum(1).abs() > 1 - 1e-6).all()
    torch.testing.assert_close(
        quotient(found, learned.matrix.double(), prior.matrix.double()), values, rtol=1e-5, atol=0
    )
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("prior_storage", [Storage(), SMALL], ids=["half", "sketched"])
def test_directions_of_what_is_held_in_less(prior_storage):
    """They are the generalised eigenvectors of the very matrices that the storage stands for."""
    learned, prior = moments(rows(3000, 40, 1.0, seed=1), SMALL), moments(rows(3000, 40, 1.0, seed=2), prior_storage)
    c1 = (learned.vectors.double() * learned.values.double()) @ learned.vectors.double().T
    c0 = prior.times(torch.eye(40)).double()
    values, wanted = reference(c1, (c0 + c0.T) / 2, 4)
    found = contrast(learned, prior, 4)
    assert ((found.double() * wanted).sum(1).abs() > 1 - 1e-4).all()
    torch.testing.assert_close(quotient(found, c1, c0), values, rtol=1e-3, atol=0)


def test_a_rounding_that_made_the_prior_negative_is_no_error():
    learned = moments(rows(500, 12, 0.5), Storage())
    prior = moments(rows(500, 12, 0.5, seed=4), Storage())
    packed = prior.packed.clone()
    packed[0] = -0.5
    found = contrast(learned, Moments(prior.count, prior.trace, packed), 3)
    assert torch.isfinite(found).all() and found.shape == (3, 12)


def test_fewer_directions_than_asked_for():
    one = torch.zeros(50, 10)
    one[:, :2] = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    prior = moments(rows(500, 10, 0.5), Storage())
    assert len(contrast(moments(one, Storage()), prior, 6)) == 2
    assert len(contrast(moments(torch.zeros(5, 10), Storage()), prior, 6)) == 0
