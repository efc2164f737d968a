"""Sampling paths over the Denoiser protocol: where they lead, and what is known of the points passed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.toy import TOKENS, WIDTH, ToyDenoiser
from trilora_core.paths import walk

CPU = torch.device("cpu")
CENTRE, SPREAD = 1.5, 0.5


@dataclass
class Gaussian:
    """A model of latents that are normal around CENTRE with SPREAD: its best prediction is known in closed form."""

    prediction_type: str
    scale: float = 2.0  # the model computes with twice what the VAE gives

    def times(self, u: Tensor) -> Tensor:
        return 0.0005 + 0.9994 * u

    def snr(self, times: Tensor) -> Tensor:
        signal, noise = self._shares(times)
        return (signal / noise).square()

    def raw(self, latents: Tensor) -> Tensor:
        return latents / self.scale

    def _shares(self, times: Tensor) -> tuple[Tensor, Tensor]:
        if self.prediction_type == "flow":
            return 1 - times, times
        return (1 - times.square()).sqrt(), times

    def predict(self, latents: Tensor, noise: Tensor, times: Tensor, cond: object) -> tuple[Tensor, Tensor]:
        a, s = (share.view(-1, 1, 1, 1) for share in self._shares(times))
        clean = latents * self.scale
        noisy = a * clean + s * noise
        centre, spread = CENTRE * self.scale, SPREAD * self.scale
        best = centre + a * spread**2 / (a**2 * spread**2 + s**2) * (noisy - a * centre)
        best_noise = (noisy - a * best) / s
        kinds = {
            "epsilon": (best_noise, noise),
            "v": (a * best_noise - s * best, a * noise - s * clean),
            "flow": (best_noise - best, noise - clean),
        }
        return kinds[self.prediction_type]


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
def test_paths_lead_to_what_the_model_draws(kind):
    noise = torch.randn(400, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    *_, last = walk(Gaussian(kind), [None] * 400, noise, torch.zeros(400), 60, CPU)
    assert last.latents.mean() == pytest.approx(CENTRE, abs=0.03)
    assert last.latents.std() == pytest.approx(SPREAD, rel=0.15)


def toy_walk(steps: int = 6) -> tuple[ToyDenoiser, list, list]:
    denoiser = ToyDenoiser()
    generator = torch.Generator().manual_seed(1)
    cond = [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(3)]
    noise = torch.randn(3, 4, 4, 4, generator=generator)
    return denoiser, cond, list(walk(denoiser, cond, noise, torch.tensor([0.0, 0.3, 0.9]), steps, CPU))


def test_every_point_says_what_the_model_predicts_there():
    denoiser, cond, points = toy_walk()
    for point in points:
        found, _ = denoiser.predict(point.latents, point.noise, denoiser.times(point.u), cond)
        assert torch.equal(found, point.prediction)


def test_times_fall_from_the_most_noise_to_the_least_and_each_path_has_its_own():
    _, _, points = toy_walk()
    times = torch.stack([point.u for point in points])
    assert torch.allclose(times[:, 0], torch.tensor([6, 5, 4, 3, 2, 1]) / 6)
    assert torch.allclose(times[0] - times[0, 0], torch.tensor([0.0, -0.05, -0.15]))
    assert float(times.min()) > 0 and float(times.max()) <= 1


def test_points_lose_nothing_in_half_precision():
    _, _, points = toy_walk()
    for point in points:
        assert torch.equal(point.latents.half().float(), point.latents)
        assert torch.equal(point.noise.half().float(), point.noise)
