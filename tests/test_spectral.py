"""Every operation against a dense SVD in float64, the identities it must keep, and what it must refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.matrices import DOUBLE, assert_canonical, basis, dense, distance, draw
from trilora_core import spectral
from trilora_core.errors import InputError
from trilora_core.randomized import top_singular_values, truncated_svd
from trilora_core.spectral import (
    SVD,
    balanced,
    canonical,
    canonical_many,
    cut_energy,
    cut_rank,
    effective_rank,
    energy,
    overlap,
    singular_values,
    singular_values_many,
)

SHAPES = [(1, 1, 1), (5, 3, 1), (24, 16, 4), (16, 40, 7), (6, 30, 12), (30, 6, 12), (8, 8, 8), (4, 5, 20), (1, 9, 3)]


def factors(out: int, in_: int, rank: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    return draw(out, rank, seed=2 * seed, dtype=dtype), draw(rank, in_, seed=2 * seed + 1, dtype=dtype)


# --- canonical form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "in_", "rank"), SHAPES)
def test_canonical_equals_the_dense_svd(out: int, in_: int, rank: int) -> None:
    up, down = factors(out, in_, rank)
    sigma = draw(rank, seed=9)
    svd = canonical(up, down, sigma, scale=-0.5)
    product = -0.5 * up @ torch.diag(sigma) @ down
    k = min(out, in_, rank)
    assert svd.u.shape == (out, k) and svd.s.shape == (k,) and svd.vh.shape == (k, in_)
    assert_canonical(svd, 1e-12)
    assert distance(dense(svd), product) < 1e-13
    torch.testing.assert_close(svd.s, torch.linalg.svdvals(product)[:k], rtol=1e-10, atol=1e-12)


def test_directions_equal_the_dense_svd() -> None:
    up, down = factors(20, 14, 5)
    svd = canonical(up, down)
    u, _, vh = torch.linalg.svd(up @ down, full_matrices=False)
    assert ((svd.u * u[:, :5]).sum(0).abs() - 1).abs().max() < 1e-10
    assert ((svd.vh * vh[:5]).sum(1).abs() - 1).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, result: torch.dtype) -> None:
    up, down = factors(48, 32, 6, dtype=dtype)
    svd = canonical(up, down)
    assert {part.dtype for part in svd} == {result}
    assert_canonical(svd, 1e-5)
    assert distance(dense(svd), up.double() @ down.double()) < 1e-6


def test_mixed_precisions_take_the_wider() -> None:
    up, down = factors(9, 7, 3)
    svd = canonical(up.half(), down)
    assert svd.u.dtype == DOUBLE
    assert distance(dense(svd), up.half().double() @ down) < 1e-13


@pytest.mark.parametrize("zeroed", ["up", "down", "sigma", "scale"])
def test_a_zero_adapter_has_zero_values_and_orthonormal_directions(zeroed: str) -> None:
    up, down = factors(12, 10, 4, dtype=torch.float32)
    parts = {"up": up, "down": down, "sigma": torch.ones(4), "scale": torch.ones(1)}
    parts[zeroed] = torch.zeros_like(parts[zeroed])
    svd = canonical(parts["up"], parts["down"], parts["sigma"], scale=float(parts["scale"]))
    assert torch.equal(svd.s, torch.zeros(4))
    assert_canonical(svd, 1e-5)


def test_repeated_directions_give_the_lower_rank() -> None:
    up, down = factors(18, 15, 3)
    repeated = canonical(torch.cat([up, up, up], 1), torch.cat([down, down, down], 0))
    assert_canonical(repeated, 1e-12)
    torch.testing.assert_close(repeated.s[:3], 3 * canonical(up, down).s)
    assert repeated.s[3:].max() < 1e-13 * repeated.s[0]
    assert distance(dense(repeated), 3 * up @ down) < 1e-13


def test_opposite_directions_cancel() -> None:
    up, down = factors(18, 15, 3)
    svd = canonical(torch.cat([up, -up], 1), torch.cat([down, down], 0))
    assert svd.s.max() < 1e-13 * energy(canonical(up, down).s).sqrt()


def test_values_of_underflow_size_survive() -> None:
    up, down = factors(32, 24, 4)
    half = (up * 1e-7).half()  # subnormal in float16
    svd = canonical(half, down.half())
    assert svd.s.min() > 0
    assert distance(dense(svd), half.double() @ down.half().double()) < 1e-6


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1e25, 1e36])
def test_squares_out_of_range_do_not_matter(size: float) -> None:
    up, down = factors(32, 24, 4, dtype=torch.float32)
    svd = canonical(up * size, down / size, torch.full((4,), 2.0))
    assert_canonical(svd, 1e-5)
    torch.testing.assert_close(svd.s, 2 * canonical(up, down).s, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sizes", [(1e-25, 1e-25, 1e30), (1e30, 1e-25, 1e-25), (1e-25, 1e30, 1e-25)])
def test_partial_products_out_of_range_do_not_matter(sizes: tuple[float, float, float]) -> None:
    up, down = factors(32, 24, 4, dtype=torch.float32)
    sigma = torch.ones(4)
    svd = canonical(up * sizes[0], down * sizes[1], sigma * sizes[2])
    torch.testing.assert_close(svd.s * 1e20, canonical(up, down).s, rtol=1e-5, atol=0)


def test_a_negative_scale_turns_the_right_side() -> None:
    up, down = factors(10, 8, 3)
    plus, minus = canonical(up, down, scale=1.0), canonical(up, down, scale=-1.0)
    torch.testing.assert_close(minus.s, plus.s)
    torch.testing.assert_close(minus.u, plus.u)
    torch.testing.assert_close(minus.vh, -plus.vh)


def test_equal_input_gives_equal_output_without_touching_the_random_state() -> None:
    up, down = factors(20, 30, 6, dtype=torch.float32)
    state = torch.get_rng_state()
    first, second = canonical(up, down), canonical(up.clone(), down.clone())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_gradient_flows_and_the_input_is_left_alone() -> None:
    up, down = factors(6, 5, 2)
    before = up.clone()
    svd = canonical(up.requires_grad_(), down)
    assert torch.equal(up.detach(), before)
    found = (*svd, *canonical_many({"a": (up, down)})["a"], top_singular_values(up, 2), *truncated_svd(up, 2)[0])
    assert not any(part.requires_grad for part in found)


def test_autocast_does_not_lower_the_precision() -> None:
    up, down = factors(20, 30, 6, dtype=torch.float32)
    weight = draw(300, 400, dtype=torch.float32)
    expected, values = canonical(up, down), top_singular_values(weight, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        svd, cast_values = canonical(up, down), top_singular_values(weight, 4)
    assert all(torch.equal(a, b) for a, b in zip(svd, expected, strict=True))
    assert torch.equal(cast_values, values)


def test_batched_equals_single() -> None:
    up, down, sigma = draw(2, 3, 12, 5), draw(2, 3, 5, 9, seed=1), draw(2, 3, 5, seed=2)
    batched = canonical(up, down, sigma, scale=0.25)
    assert_canonical(batched, 1e-12)
    for i in range(2):
        for j in range(3):
            single = canonical(up[i, j], down[i, j], sigma[i, j], scale=0.25)
            for part, whole in zip(single, batched, strict=True):
                torch.testing.assert_close(whole[i, j], part)


def test_a_batch_may_hold_sizes_far_apart() -> None:
    up, down = factors(12, 9, 3, dtype=torch.float32)
    svd = canonical(torch.stack([up, up * 1e-30, up * 0]), torch.stack([down] * 3))
    torch.testing.assert_close(svd.s[1] * 1e30, svd.s[0], rtol=1e-5, atol=0)
    assert torch.equal(svd.s[2], torch.zeros(3))


@pytest.mark.parametrize("numbers", [1, 150, 1 << 24])  # batches of one, of two, of all
def test_many_layers_equal_single_layers(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(spectral, "_BATCH_NUMBERS", numbers)
    shapes = {"a": (12, 9, 3), "b": (5, 30, 8), "c": (12, 9, 3), "d": (12, 9, 4), "e": (12, 9, 3)}
    layers = {name: factors(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    many = canonical_many(layers)
    assert list(many) == list(layers)
    for name, (up, down) in layers.items():
        for part, expected in zip(many[name], canonical(up, down), strict=True):
            torch.testing.assert_close(part, expected)


@pytest.mark.parametrize(("out", "in_", "rank"), SHAPES)
def test_singular_values_alone_are_those_of_the_canonical_form(out: int, in_: int, rank: int) -> None:
    up, down = factors(out, in_, rank)
    found = singular_values(up, down)
    assert found.shape == (min(out, in_, rank),)
    assert torch.allclose(found, torch.linalg.svdvals(up @ down)[: len(found)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("numbers", [1, 1 << 24])
def test_singular_values_of_many_layers_in_any_batches(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(spectral, "_BATCH_NUMBERS", numbers)
    layers = {f"layer {i}": factors(*SHAPES[i % 5], seed=i, dtype=torch.float32) for i in range(9)}
    found = singular_values_many(layers)
    assert list(found) == list(layers)
    for name, (up, down) in layers.items():
        exact = canonical(up, down).s
        assert torch.allclose(found[name], exact, rtol=1e-5, atol=1e-6 * float(exact[0]))
    assert singular_values_many({}) == {}


def test_singular_values_of_sizes_out_of_range() -> None:
    up, down = factors(6, 5, 2, dtype=torch.float32)
    assert torch.allclose(singular_values(up * 1e-30, down * 1e-6), canonical(up * 1e-30, down * 1e-6).s, rtol=1e-5)
    with pytest.raises(InputError, match="layer a: up or down holds NaN"):
        singular_values_many({"a": (up * float("nan"), down)})


def test_no_layers_give_no_layers() -> None:
    assert canonical_many({}) == {}


# --- truncation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "in_", "rank"), [shape for shape in SHAPES if min(shape) > 2])
def test_truncation_error_is_the_tail_energy(out: int, in_: int, rank: int) -> None:
    svd = canonical(*factors(out, in_, rank))
    for keep in range(1, svd.s.numel() + 1):
        cut, discarded = cut_rank(svd, keep)
        assert_canonical(cut, 1e-12)
        assert cut.s.numel() == keep
        error = (dense(svd) - dense(cut)).square().sum()
        torch.testing.assert_close(error, discarded, rtol=1e-10, atol=1e-12 * float(energy(svd.s)))
        torch.testing.assert_close(discarded + energy(cut.s), energy(svd.s))


def test_a_rank_above_all_keeps_all() -> None:
    svd = canonical(*factors(9, 7, 3))
    cut, discarded = cut_rank(svd, 50)
    assert cut.s.numel() == 3 and discarded == 0
    assert cut.u.data_ptr() != svd.u.data_ptr()


def simple(*values: float) -> SVD:
    k = len(values)
    return SVD(torch.eye(8, k), torch.tensor(values), torch.eye(k, 6))


@pytest.mark.parametrize(
    ("share", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (0.89, 2), (0.9, 3), (0.98, 3), (0.999, 4), (1.0, 4)]
)
def test_energy_cut_is_the_smallest_that_holds_the_share(share: float, rank: int) -> None:
    cut, discarded = cut_energy(simple(8.0, 5.0, 3.0, 1.0, 0.0), share)  # of 99: 64, 89, 98, 99, 99
    assert cut.s.numel() == rank
    assert float(discarded) == sum(value**2 for value in (8.0, 5.0, 3.0, 1.0)[rank:])


def test_a_zero_adapter_is_cut_to_one_direction() -> None:
    zero = simple(0.0, 0.0, 0.0)
    for cut, discarded in (cut_energy(zero, 0.9), cut_energy(zero, 1.0)):
        assert cut.s.tolist() == [0.0] and discarded == 0


def test_energy_of_small_values_does_not_underflow() -> None:
    assert energy(torch.tensor([1e-30, 1e-30])).item() == pytest.approx(2e-60)
    cut, discarded = cut_energy(simple(1e-30, 1e-30, 1e-34), 0.99)
    assert cut.s.numel() == 2 and discarded.item() == pytest.approx(1e-68)


# --- spectrum, overlap, factors ------------------------------------------------------------------------------------


def test_energy_is_the_squared_norm() -> None:
    up, down = factors(15, 11, 4)
    torch.testing.assert_close(energy(canonical(up, down).s), (up @ down).square().sum())
    assert energy(torch.ones(2, 3, 4)).tolist() == [[4.0] * 3] * 2


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.ones(7)).item() == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])).item() == pytest.approx(1)
    assert effective_rank(torch.zeros(5)).item() == 0
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # of the values 3 and 1, not of their squares
    assert effective_rank(torch.tensor([3.0, 1.0])).item() == pytest.approx(math.exp(entropy))
    assert effective_rank(torch.tensor([3e-30, 1e-30])).item() == pytest.approx(math.exp(entropy))
    batched = effective_rank(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
    assert batched.tolist() == pytest.approx([2, 0, 1])


@pytest.mark.parametrize("weighted", [False, True])
def test_overlap_of_the_same_and_of_orthogonal_adapters(weighted: bool) -> None:
    left, right = basis(12, 12, 0), basis(12, 12, 3)
    s = torch.tensor([3.0, 2.0, 1.0], dtype=DOUBLE)
    a = SVD(left[:, :3], s, right[:3])
    b = SVD(left[:, 3:6], s, right[:3])
    assert overlap(a, a, weighted=weighted) == pytest.approx(1)
    assert overlap(a, b, side="out", weighted=weighted) == pytest.approx(0, abs=1e-12)
    assert overlap(a, b, side="in", weighted=weighted) == pytest.approx(1)
    assert overlap(a, b, weighted=weighted) == pytest.approx(0.5)
    assert overlap(b, a, weighted=weighted) == pytest.approx(overlap(a, b, weighted=weighted))


def test_overlap_equals_the_dense_formulas() -> None:
    a, b = canonical(*factors(20, 14, 3)), canonical(*factors(20, 14, 5, seed=1))
    cosines = torch.linalg.svdvals(a.u.T @ b.u)
    assert overlap(a, b, side="out") == pytest.approx(float(cosines.square().mean()))
    gram_a, gram_b = dense(a).T @ dense(a), dense(b).T @ dense(b)
    expected = float((gram_a * gram_b).sum() / gram_a.norm() / gram_b.norm())
    assert overlap(a, b, side="in", weighted=True) == pytest.approx(expected)


def test_overlap_of_random_adapters_is_chance_and_a_shared_down_shows() -> None:
    up, down = factors(60, 80, 4)
    a, b = canonical(up, down), canonical(draw(60, 4, seed=7), down)
    assert overlap(a, b, side="in") == pytest.approx(1)
    assert overlap(a, b, side="out") < 0.2


def test_directions_without_value_do_not_count_in_overlap() -> None:
    up, down = factors(16, 12, 2, dtype=torch.float32)
    plain = canonical(up, down)
    padded = canonical(torch.cat([up, up], 1), torch.cat([down, down], 0))
    assert overlap(plain, padded) == pytest.approx(1, abs=1e-5)
    zero = canonical(up * 0, down)
    assert overlap(zero, plain) == 0 and overlap(zero, zero) == 0 and overlap(plain, zero, weighted=True) == 0


def test_overlap_takes_unlike_precisions() -> None:
    up, down = factors(16, 12, 2)
    assert overlap(canonical(up, down), canonical(up.float(), down.float())) == pytest.approx(1, abs=1e-5)


def test_balanced_factors_share_the_values_evenly() -> None:
    up, down = factors(14, 10, 4)
    svd = canonical(up, down)
    left, right = balanced(svd)
    assert distance(left @ right, up @ down) < 1e-13
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))
    torch.testing.assert_close(left.norm(dim=0) * right.norm(dim=1), svd.s)  # how a file gives the spectrum back


def test_balanced_takes_a_batch() -> None:
    svd = canonical(draw(3, 7, 2), draw(3, 2, 5, seed=1))
    left, right = balanced(svd)
    torch.testing.assert_close(left @ right, dense(svd))


# --- hostile input -------------------------------------------------------------------------------------------------

GOOD = canonical(*factors(8, 6, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: canonical(torch.ones(4, 3), torch.ones(2, 5)), r"up \(4, 3\) and down \(2, 5\) do not fit"),
        (lambda: canonical(torch.ones(2, 4, 3), torch.ones(3, 5)), "do not fit"),
        (lambda: canonical(torch.ones(3), torch.ones(3, 5)), "do not fit"),
        (lambda: canonical(torch.ones(4, 0), torch.ones(0, 5)), "rank must be at least 1"),
        (lambda: canonical(torch.ones(4, 3), torch.ones(3, 5), torch.ones(2)), r"sigma \(2,\) does not fit"),
        (lambda: canonical(torch.ones(4, 3).int(), torch.ones(3, 5)), "floating-point"),
        (lambda: canonical(torch.full((4, 3), math.nan), torch.ones(3, 5)), "up holds NaN"),
        (lambda: canonical(torch.ones(4, 3), torch.full((3, 5), math.inf)), "down holds NaN"),
        (lambda: canonical(torch.ones(4, 3), torch.ones(3, 5), torch.tensor([1, math.nan, 1])), "sigma holds NaN"),
        (lambda: canonical(torch.ones(4, 3), torch.ones(3, 5), scale=math.inf), "scale is inf"),
        (lambda: canonical_many({"a.b": (torch.ones(4, 3), torch.ones(2, 5))}), "layer a.b: up"),
        (lambda: canonical_many({"a.b": (torch.full((4, 3), math.nan), torch.ones(3, 5))}), "layer a.b: .* NaN"),
        (lambda: cut_rank(GOOD, 0), "rank is 0"),
        (lambda: cut_rank(GOOD, -1), "rank is -1"),
        (lambda: cut_rank(GOOD, 1.5), "rank is 1.5"),
        (lambda: cut_rank(GOOD, True), "rank is True"),
        (lambda: cut_rank(canonical(torch.ones(2, 4, 3), torch.ones(2, 3, 5)), 1), "one layer at a time"),
        (lambda: cut_energy(GOOD, 0.0), "share is 0.0"),
        (lambda: cut_energy(GOOD, 1.01), "share is 1.01"),
        (lambda: cut_energy(GOOD, math.nan), "share is nan"),
        (lambda: overlap(GOOD, GOOD, side="left"), "'left'.*out, in, both"),
        (lambda: overlap(GOOD, canonical(torch.ones(9, 2), torch.ones(2, 6))), "8 x 6 and 9 x 6"),
        (lambda: overlap(canonical(torch.ones(2, 4, 3), torch.ones(2, 3, 5)), GOOD), "single layers"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
