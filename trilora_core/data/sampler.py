"""The order in which a run sees its pictures, as a pure function of the seed and the step."""

from __future__ import annotations

import functools
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..errors import InputError

__all__ = ["Draw", "Order"]


@dataclass(frozen=True)
class Draw:
    """One look at a picture: `index` says which, `place` is its number (from 0) among all looks of the run."""

    index: int
    place: int


class Order:
    """An endless line of epochs, each shuffled anew, cut into batches of exactly `batch_size`.

    Every epoch holds each picture as often as its repeats say, or `max_samples` of those drawn anew. A batch holds
    pictures of one shape where it can: only what is left of each shape ends up in mixed ones, so nothing is dropped or
    seen twice. A batch may straddle two epochs, and one larger than an epoch repeats pictures. Without state, so a
    resumed run that asks for the same step sees the same pictures.
    """

    def __init__(
        self,
        shapes: Sequence[Hashable],
        repeats: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        max_samples: int = 0,
        domain: str = "order",
    ) -> None:
        """`shapes` and `repeats` belong to the pictures by index; `domain` tells lines of the same seed apart."""
        self._shapes = list(shapes)
        self._all = [index for index, count in enumerate(repeats) for _ in range(count)]
        if not self._all or batch_size < 1:
            raise InputError(f"{len(self._all)} pictures in batches of {batch_size}; wanted at least 1 of both")
        self.epoch_size = min(max_samples, len(self._all)) if max_samples else len(self._all)
        self.batch_size = batch_size
        self._seed = f"trilora {domain} {seed}"
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def batch(self, step: int) -> list[Draw]:
        """Batch number `step` (from 0)."""
        first = step * self.batch_size
        return [self._draw(place) for place in range(first, first + self.batch_size)]

    def _draw(self, place: int) -> Draw:
        epoch, within = divmod(place, self.epoch_size)
        return Draw(self._epoch(epoch)[within], place)

    def _shuffled(self, epoch: int) -> list[int]:
        """The pictures of one epoch: what completes the batch that the last one began, whole batches, the rest."""
        # A text seed goes through SHA-512, so that neighbouring seeds and epochs share nothing.
        chance = random.Random(f"{self._seed} {epoch}")
        drawn = list(self._all)
        chance.shuffle(drawn)
        drawn = drawn[: self.epoch_size]
        by_shape: dict[Hashable, list[int]] = {}
        for index in drawn:
            by_shape.setdefault(self._shapes[index], []).append(index)
        if len(by_shape) == 1:
            return drawn
        whole, rest = self._cut(list(by_shape.values()), chance)
        open_places = -epoch * self.epoch_size % self.batch_size
        while len(rest) < open_places and whole:
            rest += whole.pop()
        return rest[:open_places] + [index for batch in whole for index in batch] + rest[open_places:]

    def _cut(self, groups: list[list[int]], chance: random.Random) -> tuple[list[list[int]], list[int]]:
        """Whole batches of one shape in shuffled order, and what is left over, shape by shape."""
        size = self.batch_size
        whole = [group[i : i + size] for group in groups for i in range(0, len(group) - size + 1, size)]
        chance.shuffle(whole)
        chance.shuffle(groups)
        return whole, [index for group in groups for index in group[len(group) - len(group) % size :]]
