"""Leading values and directions of dense weights against a dense SVD in float64, and what must be refused."""

from __future__ import annotations

import math

import pytest
import torch

from tests.matrices import DOUBLE, assert_canonical, dense, distance, draw, with_spectrum
from trilora_core import randomized
from trilora_core.randomized import rank_for_energy, top_singular_values, truncated_svd
from trilora_core.spectral import SVD

# --- singular values of base weights -------------------------------------------------------------------------------

SPECTRA = {
    "1/i": lambda i: 1 / i,
    "1/sqrt(i)": lambda i: i**-0.5,
    "exp(-i/40)": lambda i: torch.exp(-i / 40),
    "exp(-i/4)": lambda i: torch.exp(-i / 4).clamp_min(1e-9),
    "spikes": lambda i: torch.where(i < 9, 100.0, 1.0),
}


@pytest.mark.parametrize("rank", [1, 4, 16, 40, 64])  # randomized up to 16, Gram above, at this side
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("out", "in_"), [(384, 400), (400, 384)])
def test_top_values_within_one_percent_on_decaying_spectra(out: int, in_: int, name: str, rank: int) -> None:
    spectrum = SPECTRA[name](torch.arange(1, 385, dtype=DOUBLE))
    weight = with_spectrum(out, in_, spectrum).float()
    values = top_singular_values(weight, rank)
    assert values.shape == (rank,) and values.dtype == torch.float32
    if name == "exp(-i/4)":  # below 1e-6 of the largest nothing is left in float32
        assert (values - spectrum[:rank]).abs().max() < 1e-6
        values, spectrum = values[:40], spectrum[:40]
    assert ((values - spectrum[: values.numel()]).abs() / spectrum[: values.numel()]).max() < 0.01


def test_top_values_of_a_flat_spectrum_are_close_and_never_above() -> None:
    weight = draw(512, 512, dtype=torch.float32)
    exact = torch.linalg.svdvals(weight.double())[:16]
    values = top_singular_values(weight, 16)
    assert (values <= exact * (1 + 1e-5)).all()
    assert (values / exact).min() > 0.95


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (20, 50), (128, 129), (140, 130)])
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_small_matrices_and_ranks_above_the_shape(shape: tuple[int, int], rank: int) -> None:
    weight = draw(*shape)
    values = top_singular_values(weight, rank)
    assert values.shape == (min(rank, *shape),)
    torch.testing.assert_close(values, torch.linalg.svdvals(weight)[:rank], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_weights(dtype: torch.dtype) -> None:
    weight = with_spectrum(300, 320, 30 / torch.arange(1, 301, dtype=DOUBLE)).to(dtype)
    exact = torch.linalg.svdvals(weight.double())[:6]
    values = top_singular_values(weight, 6)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact.float(), rtol=0.01, atol=0)


@pytest.mark.parametrize("rank", [4, 60])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_whose_squares_leave_float32(rank: int, size: float) -> None:
    weight = draw(256, 256, dtype=torch.float32)
    torch.testing.assert_close(
        top_singular_values(weight * size, rank) / size, top_singular_values(weight, rank), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("rank", [4, 60])
def test_zero_and_low_rank_weights(rank: int) -> None:
    assert torch.equal(top_singular_values(torch.zeros(256, 300), rank), torch.zeros(rank))
    single = torch.zeros(256, 300)
    single[0, 0] = 3.0
    expected = torch.zeros(rank)
    expected[0] = 3.0
    torch.testing.assert_close(top_singular_values(single, rank), expected)


@pytest.mark.parametrize("rank", [4, 60])
def test_top_values_are_the_same_every_time_and_in_a_batch(rank: int) -> None:
    weight = torch.stack([with_spectrum(256, 300, 1 / torch.arange(1, 257, dtype=DOUBLE)), draw(256, 300) * 1e-4])
    state = torch.get_rng_state()
    values = top_singular_values(weight, rank)
    torch.manual_seed(99)
    assert torch.equal(top_singular_values(weight, rank), values)
    torch.set_rng_state(state)
    for single, row in zip(weight, values, strict=True):
        torch.testing.assert_close(top_singular_values(single, rank), row)


def test_each_method_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(256, 256, dtype=torch.float32)
    reached = []
    for name in ("_krylov_values", "_gram_values"):
        inner = getattr(randomized, name)
        monkeypatch.setattr(randomized, name, lambda *args, n=name, f=inner: (reached.append(n), f(*args))[1])
    top_singular_values(weight, 4)
    top_singular_values(weight, 64)
    top_singular_values(weight[:64], 4)
    assert reached == ["_krylov_values", "_gram_values"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(40, 30), (256, 200)])
def test_rank_for_energy_is_the_smallest_that_holds_the_share(shape: tuple[int, int], share: float) -> None:
    weight = draw(*shape)
    held = torch.linalg.svdvals(weight).square().cumsum(0) / weight.square().sum()
    expected = int((held < share).sum()) + 1
    assert rank_for_energy(weight, share, 1000) == expected
    assert rank_for_energy(weight, share, expected - 1) == expected - 1


def test_rank_for_energy_at_the_edges() -> None:
    assert rank_for_energy(torch.zeros(20, 20), 0.9, 8) == 1
    assert rank_for_energy(torch.eye(20), 1.0, 64) == 20
    assert rank_for_energy(torch.eye(20), 0.5, 64) == 10


# --- truncated SVD -------------------------------------------------------------------------------------------------

SIDES = [(40, 30), (128, 300), (256, 300), (300, 256), (257, 257)]  # exact up to 128, randomized above


def least_error(weight: torch.Tensor, rank: int) -> float:
    """That of the best fit of this rank (Eckart and Young 1936)."""
    values = torch.linalg.svdvals(weight.double())
    return float((values[rank:].square().sum() / values.square().sum()).sqrt())


@pytest.mark.parametrize("rank", [1, 8, 24, 100])  # the last by a dense SVD at these sides
@pytest.mark.parametrize("shape", SIDES)
def test_the_stated_error_is_that_of_the_fit(shape: tuple[int, int], rank: int) -> None:
    weight = draw(*shape, dtype=torch.float32)
    svd, error = truncated_svd(weight, rank)
    k = min(rank, *shape)
    assert svd.u.shape == (shape[0], k) and svd.s.shape == (k,) and svd.vh.shape == (k, shape[1])
    assert {part.dtype for part in svd} == {torch.float32} and error.shape == ()
    assert_canonical(svd, 1e-5)
    assert float(error) == pytest.approx(distance(dense(SVD(*(part.double() for part in svd))), weight), abs=1e-6)


@pytest.mark.parametrize("rank", [1, 8, 24])
@pytest.mark.parametrize("name", [*SPECTRA, "flat"])
@pytest.mark.parametrize(("out", "in_"), [(384, 400), (400, 384)])
def test_the_fit_is_near_the_best_of_its_rank(out: int, in_: int, name: str, rank: int) -> None:
    flat = name == "flat"
    weight = draw(out, in_) if flat else with_spectrum(out, in_, SPECTRA[name](torch.arange(1, 385, dtype=DOUBLE)))
    _, error = truncated_svd(weight.float(), rank)
    best = least_error(weight, rank)
    assert best * (1 - 1e-6) <= float(error) <= best * (1.006 if flat else 1.003)


@pytest.mark.parametrize("shape", [(200, 240), (60, 50)])
def test_a_low_rank_weight_comes_back_whole(shape: tuple[int, int]) -> None:
    weight = with_spectrum(*shape, torch.tensor([5.0, 3.0, 1e-3], dtype=DOUBLE))
    svd, error = truncated_svd(weight, 8)
    assert svd.u.dtype == DOUBLE and float(error) < 1e-7 and distance(dense(svd), weight) < 1e-12
    torch.testing.assert_close(svd.s[:3], torch.tensor([5.0, 3.0, 1e-3], dtype=DOUBLE))
    assert_canonical(svd, 1e-12)


def test_no_fit_of_a_zero_weight_errs() -> None:
    for shape in ((20, 30), (200, 240)):
        svd, error = truncated_svd(torch.zeros(shape), 4)
        assert float(error) == 0 and svd.s.tolist() == [0.0] * 4
        assert_canonical(svd, 1e-5)


def test_the_fit_is_the_same_every_time_and_in_a_batch() -> None:
    weight = torch.stack([with_spectrum(256, 300, 1 / torch.arange(1, 257, dtype=DOUBLE)), draw(256, 300) * 1e-4])
    state = torch.get_rng_state()
    svd, errors = truncated_svd(weight, 6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(truncated_svd(weight, 6)[0], svd, strict=True))
    torch.set_rng_state(state)
    for index, single in enumerate(weight):
        alone, error = truncated_svd(single, 6)
        torch.testing.assert_close(dense(alone), dense(SVD(*(part[index] for part in svd))), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(error, errors[index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("size", [0.1, 10.0])
def test_fits_of_narrow_weights(dtype: torch.dtype, size: float) -> None:
    weight = (with_spectrum(200, 220, 30 / torch.arange(1, 201, dtype=DOUBLE)) * size).to(dtype)
    svd, error = truncated_svd(weight, 12)
    assert svd.u.dtype == torch.float32
    assert float(error) <= least_error(weight.float(), 12) * 1.003


# --- hostile input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_singular_values(torch.ones(4, 4), 0), "rank is 0"),
        (lambda: top_singular_values(torch.ones(4), 1), "floating-point"),
        (lambda: top_singular_values(torch.ones(0, 4), 1), r"weight is \(0, 4\)"),
        (lambda: top_singular_values(torch.ones(4, 4).int(), 1), "int32"),
        (lambda: top_singular_values(torch.tensor([[1.0, math.nan]]), 1), "NaN"),
        (lambda: top_singular_values(torch.tensor([[1.0, -math.inf]]), 1), "infinite"),
        (lambda: rank_for_energy(torch.ones(4, 4), 0.0, 4), "share is 0.0"),
        (lambda: rank_for_energy(torch.ones(4, 4), 0.5, 0), "rank is 0"),
        (lambda: rank_for_energy(torch.ones(2, 4, 4), 0.5, 2), "single"),
        (lambda: truncated_svd(torch.ones(4, 4), 0), "rank is 0"),
        (lambda: truncated_svd(torch.ones(4), 1), "floating-point"),
        (lambda: truncated_svd(torch.tensor([[1.0, math.nan]]), 1), "NaN"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
