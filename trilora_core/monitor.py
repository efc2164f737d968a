"""Validation loss on pictures that are held out, and drift from the base: overfitting as two curves.

Both are measured on the same looks with the same noise and times at every measure, without gradient and without any
draw from a generator that training uses, so that a run learns the same with and without them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .batches import Row, masks_of
from .config import TrainConfig
from .data.dataset import Dataset, Item
from .errors import InputError
from .objective import mse_per_sample
from .start import derive_seed
from .train import Run

__all__ = ["Measure", "Monitor", "best_measure", "learned_from", "split", "waited"]

_LOOKS_EACH = 4  # at each picture, one in each quarter of the times
_LOOKS_AT_MOST = 64  # in total: a measure is to cost seconds, and more looks would say the same


@dataclass(frozen=True)
class Measure:
    """How a run stands after `step` optimizer steps; step 0 is its start.

    `validation` is the mean squared error on held-out pictures in the model's own target space, without the weights of
    the training loss. `drift` is the mean squared change of the predictions against the base model's, relative to the
    mean square of those: 0 is the base, and a number means the same for every model.
    """

    step: int
    validation: float
    drift: float


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a data set into what is trained on and what is held out: about `share` of its pictures, at least one.

    Pictures are ranked by a hash of their content and the seed, so a picture more or less moves at most its neighbours
    across the border, and copies of one picture are on one side. Raises InputError when one side would be empty.
    """
    contents = sorted({_content(item) for item in dataset.items}, key=lambda content: _rank(content, seed))
    if len(contents) < 2:
        raise InputError(
            f"{len(dataset)} pictures of {len(contents)} different contents cannot be divided into training and"
            " validation; give at least 2 different pictures, or set monitor.validation_share to 0"
        )
    held = set(contents[: min(max(1, round(share * len(contents))), len(contents) - 1)])
    inside = [_content(item) in held for item in dataset.items]
    return _part(dataset, [not held for held in inside]), _part(dataset, inside)


def learned_from(dataset: Dataset, config: TrainConfig) -> Dataset:
    """What a run of this configuration trains on: all but what its validation_share and seed hold out."""
    share = config.monitor.validation_share
    return split(dataset, share, config.seed)[0] if share else dataset


def best_measure(measures: Sequence[Measure]) -> Measure | None:
    """The earliest of those with the lowest validation loss; the start of the run is none of them."""
    usable = [measure for measure in measures if measure.step and math.isfinite(measure.validation)]
    return min(usable, key=lambda measure: measure.validation, default=None)


def waited(measures: Sequence[Measure]) -> int:
    """How many measures in a row, up to the last one, brought no better validation loss."""
    best = best_measure(measures)
    return sum(measure.step > (best.step if best else 0) for measure in measures)


class Monitor:
    """Measures a run on held-out pictures; make it before the adapter is attached, so that it can ask the base.

    Drift is measured on the empty caption where captions are dropped, else on the prior pictures where there are any,
    else on the validation looks themselves.
    """

    def __init__(self, run: Run, held_out: Dataset) -> None:
        self._run = run
        size = run.at_once or -(-run.config.batch_size // run.crew.size)
        self._batches = _batches(_looks(held_out, run.config.seed, dropout=0.0), size)
        others = _drift_looks(run, held_out)
        self._drift_batches = _batches(others, size) if others else self._batches
        # the base never changes: asked once, and kept where memory is cheap
        self._base = {number: prediction.cpu() for number, _, prediction, _ in self._predicted(self._drift_batches)}

    @torch.no_grad()
    def measure(self) -> Measure:
        """Measure the adapter that would be saved now; it must be attached. All processes of a crew share the work."""
        with self._run.as_saved():
            errors = [torch.zeros(len(batch)) for batch in self._batches]
            changes = torch.zeros(2, len(self._drift_batches), dtype=torch.float64)
            for number, rows, prediction, target in self._predicted(self._batches):
                errors[number] = _error(rows, prediction, target)
                if self._drift_batches is self._batches:
                    changes[:, number] = self._change(number, prediction)
            if self._drift_batches is not self._batches:
                for number, _, prediction, _ in self._predicted(self._drift_batches):
                    changes[:, number] = self._change(number, prediction)
        validation = float(self._run.crew.summed(torch.cat(errors)).mean())
        changed, size = (sum(values) for values in self._run.crew.summed(changes).tolist())
        return Measure(self._run.step, validation, changed / max(size, torch.finfo(torch.float32).tiny))

    def _change(self, number: int, now: Tensor) -> Tensor:
        """Sums over the predictions of a batch of their mean squared changes and of their mean squares, (2,)."""
        base = self._base[number]
        changed = (now.float() - base.to(now.device).float()).square().flatten(1).mean(dim=1).sum()
        return torch.tensor([float(changed), float(base.float().square().flatten(1).mean(dim=1).sum())]).double()

    def _predicted(self, batches: Sequence[Sequence[_Look]]) -> Iterator[tuple[int, list[Row], Tensor, Tensor]]:
        """This process's share of the batches: the number of each, its rows, the run's prediction and its target."""
        for number in range(self._run.crew.rank, len(batches), self._run.crew.size):
            rows = [look.row(self._run.config.seed) for look in batches[number]]
            yield (number, rows, *self._run.predict(rows))


@dataclass(frozen=True)
class _Look:
    """Look number `number` at one picture, at the fixed draw `u` of its time."""

    data: Dataset
    index: int
    number: int
    u: float

    def row(self, seed: int) -> Row:
        """The sample with its noise: a function of seed, content and number."""
        name = f"{seed} {_content(self.data.items[self.index]).hex()} {self.number}"
        sample = self.data.sample(self.index, random.Random(f"trilora validation sample {name}"))
        generator = torch.Generator().manual_seed(derive_seed("validation noise", name))
        noise = torch.randn(sample.latents.shape, generator=generator)
        return Row(sample, noise, torch.tensor([self.u]), 1.0)


def _looks(data: Dataset, seed: int, *, dropout: float) -> list[_Look]:
    """The looks of every measure: at most _LOOKS_AT_MOST, times in even distances over all of them."""
    captions = replace(data.config.captions, dropout=dropout)
    data = replace(data, config=replace(data.config, captions=captions))
    chosen = sorted(range(len(data)), key=lambda index: _rank(_content(data.items[index]), seed))[:_LOOKS_AT_MOST]
    each = min(_LOOKS_EACH, _LOOKS_AT_MOST // len(chosen))
    return [
        _Look(data, index, number, (number + (place + 0.5) / len(chosen)) / each)
        for place, index in enumerate(chosen)
        for number in range(each)
    ]


def _drift_looks(run: Run, held_out: Dataset) -> list[_Look]:
    """Looks at what the base should go on to draw as it did; none where nothing but the pictures is known."""
    # not wherever the empty caption is in the store: there it may be another run's, and drift would depend on that
    if held_out.blank and held_out.config.captions.dropout:
        return _looks(held_out, run.config.seed, dropout=1.0)
    return [] if run.prior is None else _looks(run.prior, run.config.seed, dropout=0.0)


def _batches(looks: Sequence[_Look], size: int) -> list[list[_Look]]:
    """Batches of at most `size` looks at pictures of one shape."""
    groups: dict[object, list[_Look]] = {}
    for look in looks:
        groups.setdefault(look.data.items[look.index].shape, []).append(look)
    return [group[first : first + size] for group in groups.values() for first in range(0, len(group), size)]


def _error(rows: Sequence[Row], prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) in float32 on the CPU."""
    mask = masks_of([row.sample for row in rows])
    return mse_per_sample(prediction, target, None if mask is None else mask.to(prediction.device)).cpu()


def _part(dataset: Dataset, chosen: Sequence[bool]) -> Dataset:
    """The chosen pictures; the hash follows the whole data set and the choice."""
    items = tuple(item for item, taken in zip(dataset.items, chosen, strict=True) if taken)
    text = f"trilora split 1 {dataset.content_hash} {''.join('01'[taken] for taken in chosen)}"
    return replace(dataset, items=items, content_hash=hashlib.sha256(text.encode()).hexdigest())


def _content(item: Item) -> bytes:
    """What the picture shows, as bytes: its digest, or the key of its latents where none was taken."""
    return item.digest or item.latents[0].encode()


def _rank(content: bytes, seed: int) -> bytes:
    return hashlib.sha256(f"trilora validation {seed} ".encode() + content).digest()
