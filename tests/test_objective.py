from __future__ import annotations

import math

import pytest
import torch

from trilora_core import config
from trilora_core.config import LossConfig
from trilora_core.errors import InputError
from trilora_core.objective import (
    DRAWS,
    draw_logit_normal,
    draw_shifted,
    draw_uniform,
    min_snr_weights,
    mse_per_sample,
    orthogonality,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_is_per_sample_and_in_float32():
    prediction, target = torch.randn(3, 4, 2, 2).half(), torch.randn(3, 4, 2, 2).half()
    loss = mse_per_sample(prediction, target)
    wanted = ((prediction.double() - target.double()) ** 2).mean(dim=(1, 2, 3))
    assert loss.dtype is torch.float32 and torch.allclose(loss.double(), wanted, rtol=1e-6)


def test_every_draw_that_the_options_know_is_here():
    assert ("auto", *DRAWS) == config.DRAWS  # auto is settled by the run


@pytest.mark.parametrize("name", DRAWS)
def test_draws_stay_in_range_and_repeat_with_their_seed(name):
    options = LossConfig(logit_mean=3.0, logit_std=20.0, shift=1e6)
    draws = DRAWS[name](4000, seeded(), options)
    assert draws.shape == (4000,) and draws.min() >= 0 and draws.max() <= 1
    assert torch.equal(draws, DRAWS[name](4000, seeded(), options))
    assert not torch.equal(draws, DRAWS[name](4000, seeded(1), options))


def test_uniform_draws_are_uniform():
    draws = draw_uniform(4000, seeded(), LossConfig())
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.var() - 1 / 12) < 0.005


def test_logit_normal_draws_have_the_mean_and_spread_asked_for():
    logits = draw_logit_normal(20000, seeded(), LossConfig(logit_mean=0.7, logit_std=1.6)).logit()
    assert abs(logits.mean() - 0.7) < 0.05 and abs(logits.std() - 1.6) < 0.05


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_draws_multiply_the_odds_of_noise(shift):
    """u' / (1 - u') = shift · u / (1 - u): the signal-to-noise ratio of a flow falls by shift²."""
    plain, shifted = draw_uniform(500, seeded(), LossConfig()), draw_shifted(500, seeded(), LossConfig(shift=shift))
    assert torch.allclose(shifted * (1 - plain), shift * plain * (1 - shifted), rtol=1e-4, atol=1e-6)


def prediction_and_target(kind: str, clean: torch.Tensor, guess: torch.Tensor, noise: torch.Tensor, snr: torch.Tensor):
    """The network's output that stands for the guess of x0, and its target, straight from each definition."""
    snr = snr.view(-1, 1, 1, 1)
    if kind == "flow":
        t = 1 / (1 + snr.sqrt())
        noisy = (1 - t) * clean + t * noise
        return (noisy - guess) / t, noise - clean
    signal, spread = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    noisy = signal * clean + spread * noise
    if kind == "epsilon":
        return (noisy - signal * guess) / spread, noise
    return (signal * noisy - guess) / spread, signal * noise - spread * clean


@pytest.mark.parametrize("kind", ["epsilon", "v", "v_prediction", "flow"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_gives_one_loss_of_one_error_whatever_is_predicted(kind, gamma):
    snr = torch.logspace(-3, 3, 13, dtype=torch.float64)
    clean, noise, guess = (torch.randn(13, 4, 3, 3, dtype=torch.float64, generator=seeded(i)) for i in range(3))
    prediction, target = prediction_and_target(kind, clean, guess, noise, snr)
    loss = (prediction - target).square().flatten(1).mean(1) * min_snr_weights(snr, gamma, kind)
    wanted = snr.clamp(max=gamma) * (guess - clean).square().flatten(1).mean(1)
    assert torch.allclose(loss, wanted, rtol=1e-9)


@pytest.mark.parametrize(("kind", "at_noise"), [("epsilon", 1.0), ("v", 0.0), ("flow", 0.0)])
def test_min_snr_is_finite_at_both_ends(kind, at_noise):
    """Zero terminal SNR, and the clean end of a flow, where the ratio is infinite."""
    weights = min_snr_weights(torch.tensor([0.0, math.inf]), 5.0, kind)
    assert weights.tolist() == pytest.approx([at_noise, 0.0], abs=1e-30)


def test_min_snr_refuses_a_kind_that_it_does_not_know():
    with pytest.raises(InputError, match="predicts 'sample'; known: epsilon, v, v_prediction, flow"):
        min_snr_weights(torch.ones(1), 5.0, "sample")


def penalty_by_loops(matrices: list[torch.Tensor]) -> torch.Tensor:
    """The definition, one matrix at a time: rows without length are left out of the identity."""
    total = torch.zeros((), dtype=torch.float64)
    for matrix in matrices:
        rows = matrix[matrix.norm(dim=1) > 0]
        if len(rows):
            rows = rows / rows.norm(dim=1, keepdim=True)
            total = total + (rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).square().sum()
    return total


def factors(dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(3, 7), (4, 6), (3, 7), (4, 5)]
    found = [torch.randn(shape, generator=seeded(i), dtype=torch.float64).to(dtype) for i, shape in enumerate(shapes)]
    found[1][2] = 0
    found[3][:] = 0
    return [matrix.requires_grad_() for matrix in found]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_orthogonality_and_its_gradient_are_those_of_the_definition(dtype, tolerance):
    ours, reference = factors(dtype), factors(torch.float64)
    penalty, wanted = orthogonality(ours), penalty_by_loops(reference)
    penalty.backward()
    wanted.backward()
    assert penalty.item() == pytest.approx(wanted.item(), rel=tolerance)
    for mine, theirs in zip(ours[:3], reference[:3], strict=True):
        assert torch.allclose(mine.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)
    assert not ours[1].grad[2].any() and not ours[3].grad.any(), "a row without length has no gradient"


def test_orthogonal_rows_of_any_length_cost_nothing():
    rows = torch.linalg.qr(torch.randn(9, 4, generator=seeded(), dtype=torch.float64))[0].T
    lengths = torch.tensor([1e-6, 0.0, 1.0, 1e6], dtype=torch.float64)
    assert orthogonality([rows * lengths.unsqueeze(1)]) < 1e-20
