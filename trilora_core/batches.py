"""The batches of a run: which samples, with which noise and which times, as pure functions of the seed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LossConfig
from .data.dataset import Dataset, Sample
from .data.sampler import Order
from .objective import DRAWS
from .start import derive_seed
from .transfer import upload

__all__ = ["PLAIN", "Line", "Row", "learned_of", "masks_of", "of_one_shape", "targets_given"]

PLAIN = LossConfig(timesteps="uniform")
"""Times drawn evenly, noise without an offset."""


@dataclass(frozen=True)
class Row:
    """One sample of a batch with what was drawn for it; `weight` is its share of the loss.

    `target` is what the prediction is to be where that is not what the noise makes of the sample.
    """

    sample: Sample
    noise: Tensor
    u: Tensor  # (1,)
    weight: float
    target: Tensor | None = None


class Line:
    """The endless line of looks at one data set; those of a batch weigh `weight` together."""

    def __init__(
        self, data: Dataset, seed: int, batch_size: int, weight: float, domain: str, loss: LossConfig = PLAIN
    ) -> None:
        """`loss` says how times are drawn and whether noise has an offset; without it: uniformly, without."""
        self._data, self._seed, self._domain, self._loss = data, seed, domain, loss
        self._weight = weight / batch_size
        shapes, repeats = [item.shape for item in data.items], [item.repeats for item in data.items]
        most = data.config.max_train_samples
        self._order = Order(shapes, repeats, batch_size=batch_size, seed=seed, max_samples=most, domain=domain)

    def batch(self, step: int) -> list[Row]:
        """Batch number `step` (from 0)."""
        return [self.row(step, number) for number in range(self._order.batch_size)]

    def row(self, step: int, number: int) -> Row:
        """Row `number` of batch `step`, both from 0; no other is loaded for it."""
        draw = self._order.batch(step)[number]
        return self._row(draw.index, draw.place)

    def shapes(self, step: int) -> list[Hashable]:
        """The shape of each picture of batch number `step`, as the data set has it; nothing is loaded for it."""
        return [self._data.items[draw.index].shape for draw in self._order.batch(step)]

    def _row(self, index: int, place: int) -> Row:
        sample = self._data.sample(index, random.Random(f"trilora {self._domain} sample {self._seed} {place}"))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, f"{self._domain} noise", place))
        noise = torch.randn(sample.latents.shape, generator=generator)
        u = DRAWS[self._loss.timesteps](1, generator, self._loss)
        if self._loss.noise_offset:  # drawn last, so that without it all else is drawn as it was (Guttenberg 2023)
            noise += self._loss.noise_offset * torch.randn(len(noise), 1, 1, generator=generator)
        return Row(sample, noise, u, self._weight)


def of_one_shape(rows: Sequence[Row], most: int = 0) -> list[list[Row]]:
    """The rows by the shape of their latents, in groups of at most `most`; 0: of any size."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.sample.latents.shape), []).append(row)
    size = most or len(rows)
    return [group[first : first + size] for group in groups.values() for first in range(0, len(group), size)]


def masks_of(samples: Sequence[Sample]) -> Tensor | None:
    """(B, 1, h, w), or None where no sample has one; a sample without counts everywhere."""
    if all(sample.mask is None for sample in samples):
        return None
    size = samples[0].latents.shape[-2:]
    return torch.stack([torch.ones(1, *size) if sample.mask is None else sample.mask for sample in samples])


def targets_given(rows: Sequence[Row], target: Tensor) -> Tensor:
    """The regression targets (B, C, h, w) with those that rows bring along in the place of theirs."""
    if all(row.target is None for row in rows):
        return target
    pairs = [(row.target, own) for row, own in zip(rows, target, strict=True)]
    return torch.stack([own if given is None else upload(given, own.device, own.dtype) for given, own in pairs])


def learned_of(rows: Sequence[Row]) -> Tensor:
    """(B,), true for rows that are learned from pictures, false for those that bring their target along."""
    return torch.tensor([row.target is None for row in rows])
