"""The curve of a run that goes on, in a size that does not grow with its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["Curve", "halved", "mean_profile", "plain"]

POINTS = 2000  # of a curve at most: as many as a wide screen has pixels
_DIGITS = 6  # of numbers that are told: more would only be longer
_PROFILE = 32  # values of a mean spectrum at most

Point = list[float | None]


class Curve:
    """Loss and learning rate by step, thinned as the points come.

    The first step is kept as it is. The others fall into bins of as many steps each, twice as many whenever `limit`
    points would be exceeded: a bin has its last step and learning rate, and the mean of its losses that are finite.
    """

    def __init__(self, limit: int = POINTS) -> None:
        if limit < 3:
            raise ValueError(f"limit is {limit}; wanted at least 3 points")
        self._limit = limit
        self._first: Point | None = None
        self._bins: list[list[float]] = []  # last step, sum of the finite losses, their number, steps, rate
        self._width = 1  # steps of a full bin

    def __len__(self) -> int:
        return (self._first is not None) + len(self._bins)

    def add(self, step: int, loss: float, rate: float) -> None:
        """Add the next step; a loss that is not finite counts as none."""
        if self._first is None:
            self._first = [step, plain(loss), plain(rate)]
            return
        if self._full and len(self) == self._limit:
            self._merge()
        if self._full:
            self._bins.append([step, 0.0, 0, 0, rate])
        last = self._bins[-1]
        last[0], last[3], last[4] = step, last[3] + 1, rate
        if math.isfinite(loss):
            last[1] += loss
            last[2] += 1

    def points(self) -> list[Point]:
        """[step, loss or None, learning rate], in order."""
        first = [] if self._first is None else [list(self._first)]
        return first + [
            [step, plain(total / count) if count else None, plain(rate)] for step, total, count, _, rate in self._bins
        ]

    @property
    def _full(self) -> bool:
        return not self._bins or self._bins[-1][3] >= self._width

    def _merge(self) -> None:
        """Make one bin of two neighbours each; an odd one at the end is filled by the steps to come."""
        pairs = [self._bins[place : place + 2] for place in range(0, len(self._bins), 2)]
        self._bins = [
            [pair[-1][0], sum(b[1] for b in pair), sum(b[2] for b in pair), sum(b[3] for b in pair), pair[-1][4]]
            for pair in pairs
        ]
        self._width *= 2


def halved(entries: list[list[float | None]] | list[dict[str, object]], limit: int) -> None:
    """Leave every other entry out, but for the first and the last, where there are more than `limit`."""
    if len(entries) > limit:
        del entries[1:-1:2]


def mean_profile(layers: Iterable[Sequence[float]]) -> list[float]:
    """The mean of the layers' singular values, each layer's largest being 1, largest first; zero layers left out."""
    alive = [values[:_PROFILE] for values in layers if values and values[0] > 0 and all(map(math.isfinite, values))]
    shapes = [[value / values[0] for value in values] for values in alive]
    longest = max(map(len, shapes), default=0)
    sums = [sum(shape[place] for shape in shapes if place < len(shape)) for place in range(longest)]
    return [round(value / len(shapes), _DIGITS) for value in sums]


def plain(value: float) -> float | None:
    """The number with few digits; None for what JSON does not have."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
