"""The spectral algebra on any factors, beside dense float64: rank-deficient, huge, tiny, denormal, zero, NaN."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.adapters import dense
from trilora_core.errors import InputError
from trilora_core.factors import canonical_layers, stored_factors
from trilora_core.fileformat import Adapter, Layer
from trilora_core.merge import merge
from trilora_core.resize import resize
from trilora_core.shaping import Shape, shape
from trilora_core.spectral import SVD, canonical, cut_energy, cut_rank, effective_rank, energy, overlap, singular_values

EXACT = 3e-6  # of the norm: float32
# Powers of ten of the factors: products reach from the smallest normal numbers of float32 to near its largest.
SIZES = (0, 0, 0, -3, 3, -18, 18, -30, -41)
EXAMPLES = int(os.environ.get("TRILORA_EXAMPLES", "20"))  # of each property; `make soak` asks for many more
_quick = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
_numbers = st.integers(0, 2**32 - 1)


@st.composite
def factors(draw: st.DrawFn, rows: int = 0, columns: int = 0) -> tuple[Tensor, Tensor]:
    """up (out, r) and down (r, in) of any size and kind, finite."""
    out, into, rank = rows or draw(st.integers(1, 9)), columns or draw(st.integers(1, 9)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(_numbers))
    up = torch.randn(out, rank, generator=generator)
    down = torch.randn(rank, into, generator=generator)
    kind = draw(st.sampled_from(("plain", "plain", "deficient", "equal", "zero", "some zero", "uneven", "one entry")))
    if kind == "deficient":
        up[:, rank // 2 :] = up[:, :1]
    elif kind == "equal":
        up, down = torch.eye(out, rank), torch.eye(rank, into)
    elif kind == "zero":
        up.zero_()
    elif kind == "some zero":
        up[:, ::2] = 0
    elif kind == "uneven":
        up *= 10.0 ** torch.linspace(0, -12, rank)
    elif kind == "one entry":
        up = torch.zeros_like(up).index_fill_(1, torch.tensor([rank - 1]), 1.0)
    return up * 10.0 ** draw(st.sampled_from(SIZES)), down * 10.0 ** draw(st.sampled_from(SIZES))


def product(up: Tensor, down: Tensor) -> Tensor:
    return up.double() @ down.double()


def close(found: Tensor, wanted: Tensor, by: float = EXACT) -> bool:
    """Within rounding of the norm, or of the smallest number that float32 has."""
    return float((found - wanted).norm()) <= by * float(wanted.norm()) + 1e-43 * math.sqrt(wanted.numel())


def is_svd(svd: SVD, by: float = 1e-5) -> bool:
    u, s, vh = (part.double() for part in svd)
    one = torch.eye(len(s), dtype=torch.float64)
    straight = (u.mT @ u - one).abs().max() < by and (vh @ vh.mT - one).abs().max() < by
    return bool(straight and (s >= 0).all() and (s.diff() <= 0).all() and all(part.isfinite().all() for part in svd))


@_quick
@given(factors(), st.sampled_from((1.0, -1.0, 0.0, 1e-3)))
def test_the_canonical_form_is_the_svd(pair, scale):
    svd = canonical(*pair, scale=scale)
    wanted = product(*pair) * scale
    assert is_svd(svd) and close(dense(Layer(svd)), wanted)
    dense_values = torch.linalg.svdvals(wanted)[: len(svd.s)]
    assert close(svd.s.double()[: len(dense_values)], dense_values)
    if scale == 1.0:
        assert close(singular_values(*pair).double(), svd.s.double())
    assert 0 <= float(effective_rank(svd.s)) <= len(svd.s) * (1 + 1e-6)


@_quick
@given(factors(), st.sampled_from(("nan", "inf", "-inf")), _numbers)
def test_what_is_not_finite_is_refused(pair, what, place):
    up, down = (part.clone() for part in pair)
    part = (up, down)[place % 2].view(-1)
    part[place % part.numel()] = float(what)
    for call in (
        lambda: canonical(up, down),
        lambda: singular_values(up, down),
        lambda: canonical_layers({"a": (up, down)}),
    ):
        with pytest.raises(InputError, match="NaN or infinite"):
            call()


def test_a_product_beyond_float32_is_refused_in_words():
    """Each factor is finite, and so is each of their columns."""
    up, down = torch.full((4, 1), 1e30), torch.full((1, 4), 1e30)
    for call in (lambda: canonical(up, down), lambda: singular_values(up, down)):
        with pytest.raises(InputError, match=r"too large for torch\.float32"):
            call()
    with pytest.raises(ValueError, match="layer a: its change is too large for float32"):
        canonical_layers({"a": (up, down)})


@_quick
@given(factors(), st.integers(1, 12), st.floats(0.01, 1.0))
def test_a_cut_leaves_the_energy_of_the_tail(pair, rank, share):
    svd = canonical(*pair)
    for kept, lost in (cut_rank(svd, rank), cut_energy(svd, share)):
        error = (dense(Layer(svd)) - dense(Layer(kept))).square().sum()
        assert is_svd(kept) and float((error - lost).abs()) <= 1e-5 * float(energy(svd.s)) + 1e-80
    assert float(energy(cut_energy(svd, share)[0].s)) >= share * float(energy(svd.s)) * (1 - 1e-9)


@_quick
@example(
    (
        torch.tensor([[1541.0, -293.4], [-2178.8, 568.4], [-1084.5, -1398.6], [403.3, 838.0], [-719.3, -403.3]]),
        torch.tensor([[-5.97e-19, 1.82e-19, -8.57e-19], [1.1e-18, -1.07e-18, 1.23e-19]]),
    ),
    torch.float16,
)
@given(factors(), st.sampled_from((torch.float16, torch.bfloat16, torch.float32)))
def test_the_file_gives_back_what_it_holds(pair, dtype):
    """Stored, read, stored again: the same bits; and what was read is the product of what is stored."""
    svd = canonical(*pair)
    up, down = stored_factors(svd, dtype)
    assume(bool(up.isfinite().all() and down.isfinite().all()))  # else write_adapter refuses it
    read = canonical_layers({"a": (up, down)})["a"]
    rounding = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 3e-5}[dtype]
    assert close(dense(Layer(read)), product(up, down), rounding)
    # near zero float16 has steps, not digits: what is shorter than 200 of them is not orthogonal within the rounding
    held = int((read.s >= (600 * 2.0**-24) ** 2).sum()) if dtype is torch.float16 else len(read.s)
    assert not held or is_svd(SVD(read.u[:, :held], read.s[:held], read.vh[:held]), rounding)
    again = stored_factors(read, dtype)
    assert torch.equal(again[0], up) and torch.equal(again[1], down)


@_quick
@given(factors(7, 6), factors(7, 6), st.floats(0.1, 2), st.floats(-2, -0.1))
def test_a_sum_is_the_sum_of_the_changes(one, two, a, b):
    adapters = [Adapter({"lora_x": Layer(canonical(*pair))}, {}) for pair in (one, two)]
    wanted = a * dense(adapters[0].layers["lora_x"]) + b * dense(adapters[1].layers["lora_x"])
    merged = merge(adapters, [a, b])[0]
    found = dense(merged.layers["lora_x"]) if "lora_x" in merged.layers else torch.zeros_like(wanted)
    scale = max(
        float((factor * dense(one.layers["lora_x"])).norm()) for factor, one in zip((a, b), adapters, strict=True)
    )
    assert float((found - wanted).norm()) <= 1e-5 * scale + 1e-40
    for side in ("in", "out", "both"):
        for weighted in (False, True):
            svds = [adapter.layers["lora_x"].svd for adapter in adapters]
            assert 0.0 <= overlap(*svds, side=side, weighted=weighted) <= 1.0


@_quick
@given(factors(8, 8), st.integers(0, 8), st.floats(0.01, 1.0), st.floats(0, 10), st.booleans())
def test_shapes_stay_an_svd_and_hold_their_promises(pair, rank, share, tone, normalize):
    adapter = Adapter({"lora_x": Layer(canonical(*pair))}, {})
    svd = adapter.layers["lora_x"].svd
    shaped = shape(adapter, Shape(min(rank, len(svd.s)), share, tone, normalize)).layers["lora_x"].svd
    assert all(part.isfinite().all() for part in shaped) and len(shaped.s) <= len(svd.s)
    if normalize:
        assert math.isclose(float(energy(shaped.s)), float(energy(svd.s)), rel_tol=1e-4, abs_tol=1e-80)
    if rank or share < 1:
        small, report = resize(adapter, rank=min(rank, len(svd.s)), energy=share)
        assert is_svd(small.layers["lora_x"].svd) and 0 <= report.kept_energy <= 1 + 1e-9
