from __future__ import annotations

import pytest
import torch

from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.batches import Line, Row
from trilora_core.config import LossConfig
from trilora_core.objective import DRAWS


def rows(loss: LossConfig | None = None, batch_size: int = 4, count: int = 8, seed: int = 0) -> list[Row]:
    """The first looks at the toy pictures, in batches of this size."""
    options = () if loss is None else (loss,)
    line = Line(toy_dataset(6), seed, batch_size, 1.0, "order", *options)
    return [row for step in range(count // batch_size) for row in line.batch(step)]


def drawn(found: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([row.noise for row in found]), torch.cat([row.u for row in found])


def test_what_is_drawn_without_options_never_changes():
    """Adapters of earlier releases are drawn again bit for bit."""
    noise, u = drawn(rows())
    assert noise[0].flatten()[:3].tolist() == pytest.approx([0.8614436, 0.7582839, -2.5307832])
    assert u[:3].tolist() == pytest.approx([0.7165967, 0.3664817, 0.2788295])
    assert all(torch.equal(a, b) for a, b in zip(drawn(rows(LossConfig(timesteps="uniform"))), (noise, u), strict=True))


@pytest.mark.parametrize("loss", [LossConfig(timesteps=name, noise_offset=0.1) for name in DRAWS], ids=list(DRAWS))
def test_draws_belong_to_the_look_not_to_the_batch(loss):
    one, four = drawn(rows(loss, batch_size=1)), drawn(rows(loss, batch_size=4))
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))
    assert not torch.equal(one[0], drawn(rows(loss, seed=1))[0])


def test_the_named_draw_is_the_one_that_is_used():
    plain = drawn(rows())[1]
    shifted = drawn(rows(LossConfig(timesteps="shifted", shift=4.0)))[1]
    assert torch.allclose(shifted, 4 * plain / (1 + 3 * plain))
    narrow = drawn(rows(LossConfig(timesteps="logit-normal", logit_mean=2.0, logit_std=1e-4)))[1]
    assert torch.allclose(narrow, torch.tensor(2.0).sigmoid().expand(8), atol=1e-3)


def test_the_offset_is_one_number_for_each_sample_and_channel_and_moves_nothing_else():
    plain, offset = drawn(rows(count=40)), drawn(rows(LossConfig(timesteps="uniform", noise_offset=0.1), count=40))
    added = offset[0] - plain[0]
    assert torch.equal(plain[1], offset[1])
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-6)
    values = added[:, :, 0, 0]
    assert len(values.unique()) == values.numel() and values.std().item() == pytest.approx(0.1, rel=0.2)
    twice = drawn(rows(LossConfig(timesteps="uniform", noise_offset=0.2), count=40))[0] - plain[0]
    assert torch.allclose(twice, 2 * added, atol=1e-6)


def test_the_toy_keeps_the_rule_that_one_is_the_most_noise():
    toy = ToyDenoiser()
    snr = toy.snr(toy.times(torch.linspace(0, 1, 9)))
    assert (snr.diff() < 0).all()
