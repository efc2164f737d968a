from __future__ import annotations

import torch

from trilora_core.objective import draw_uniform, mse_per_sample


def test_loss_is_per_sample_and_in_float32():
    prediction, target = torch.randn(3, 4, 2, 2).half(), torch.randn(3, 4, 2, 2).half()
    loss = mse_per_sample(prediction, target)
    wanted = ((prediction.double() - target.double()) ** 2).mean(dim=(1, 2, 3))
    assert loss.dtype is torch.float32 and torch.allclose(loss.double(), wanted, rtol=1e-6)


def test_draws_are_uniform_and_repeat_with_their_seed():
    draws = draw_uniform(4000, torch.Generator().manual_seed(0))
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.02 and abs(draws.var() - 1 / 12) < 0.005
    assert torch.equal(draws, draw_uniform(4000, torch.Generator().manual_seed(0)))
