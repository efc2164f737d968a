"""A strength and a rank that change while a picture is sampled, as keyframes over the sampling range.

0 is the first, noisiest moment and 1 the end of the model's own range of times, as hosts count it: not steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .checks import number, one_of, whole
from .errors import InputError

__all__ = ["CONSTANT", "CURVES", "Band", "Keyframe", "RankStep", "bands", "keyframes", "read_ranks"]

CONSTANT = "constant"
# From the share of the way, 0 to 1, to the share of the change.
CURVES: dict[str, Callable[[float], float]] = {
    CONSTANT: lambda t: 0.0,
    "linear": lambda t: t,
    "ease in": lambda t: t * t,
    "ease out": lambda t: t * (2 - t),
    "ease in and out": lambda t: (1 - math.cos(math.pi * t)) / 2,
}
_STEP = re.compile(r"\s*(?P<rank>\d{1,9}|all)\s*@\s*(?P<start>\d*\.?\d+|\d+\.)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Keyframe:
    """From `start` (0 to 1) on the strength is this; it holds for `guarantee` steps at least."""

    start: float
    strength: float
    guarantee: int = 0


@dataclass(frozen=True)
class RankStep:
    """From `start` (0 to 1) on the strongest `rank` directions of each layer count; 0: none."""

    start: float
    rank: int


@dataclass(frozen=True)
class Band:
    """The singular values first to last (not included) of every layer, and when they count how much."""

    first: int
    last: int
    keyframes: tuple[Keyframe, ...]


def keyframes(first: float, last: float, curve: str, count: int) -> tuple[Keyframe, ...]:
    """`count` equal parts of the range, the first at strength `first`, the last at `last`; one where it is constant.

    Raises InputError for strengths that are not finite, an unknown curve and fewer than two parts.
    """
    number("strength", first)
    number("strength_end", last)
    one_of("curve", curve, tuple(CURVES))
    whole("keyframe_count", count, 2)
    if curve == CONSTANT:
        return (Keyframe(0.0, first),)
    shares = (CURVES[curve](index / (count - 1)) for index in range(count))
    return tuple(Keyframe(index / count, first + (last - first) * share) for index, share in enumerate(shares))


def read_ranks(text: str, highest: int) -> tuple[RankStep, ...]:
    """`4@0, 16@0.5`: rank 4 from the start, rank 16 from half of the range on; "all" for the highest rank, () for "".

    Before the first one no direction counts. Raises InputError with the place of what cannot be read, for starts that
    do not rise, and for ranks above `highest`.
    """
    steps: list[RankStep] = []
    at = 0
    while text[at:].strip():
        match = _STEP.match(text, at)
        if match is None:
            raise _wrong(text, at, "a rank and where it starts, such as 4@0.5")
        rank = highest if match["rank"].lower() == "all" else int(match["rank"])
        start = float(match["start"])
        if rank > highest:
            raise _wrong(text, match.start("rank"), f"a rank from 0 to {highest}, the adapter's highest, or all")
        if start >= 1.0 or (steps and start <= steps[-1].start):
            below = f"above {steps[-1].start:g} and " if steps else ""
            raise _wrong(text, match.start("start"), f"a start {below}below 1")
        steps.append(RankStep(start, rank))
        at = match.end()
        if at < len(text) and text[at] not in ",;":
            raise _wrong(text, at, "a comma or the end")
        at += 1
    return tuple(steps)


def bands(frames: Sequence[Keyframe], steps: Sequence[RankStep], highest: int) -> tuple[Band, ...]:
    """The schedule cut into bands of singular values that no rank of the steps divides, with equal keyframes.

    At every moment the bands that are on add up to the rank of that moment at the strength of that moment.
    """
    if not steps:
        return (Band(0, highest, tuple(frames)),)
    ordered = _with_starts(frames, [0.0, *(step.start for step in steps)])
    edges = sorted({0, *(step.rank for step in steps)})
    return tuple(
        Band(first, last, tuple(replace(f, strength=f.strength * (_rank_at(steps, f.start) >= last)) for f in ordered))
        for first, last in pairwise(edges)
    )


def _with_starts(frames: Sequence[Keyframe], starts: Sequence[float]) -> list[Keyframe]:
    """The keyframes and, at every start that has none, one more of the strength that holds there."""
    own = sorted(frames, key=lambda frame: frame.start)
    missing = sorted(set(starts) - {frame.start for frame in own})
    more = [Keyframe(at, ([f for f in own if f.start <= at] or own[:1])[-1].strength) for at in missing]
    return sorted([*own, *more], key=lambda frame: frame.start)


def _rank_at(steps: Sequence[RankStep], moment: float) -> int:
    reached = [step.rank for step in steps if step.start <= moment]
    return reached[-1] if reached else 0


def _wrong(text: str, at: int, expected: str) -> InputError:
    at += len(text[at:]) - len(text[at:].lstrip())
    found = re.match(r"[\w.]+|.", text[at:])
    what = repr(found[0]) if found else "the end"
    return InputError(f"ranks, character {at + 1}: found {what}, expected {expected}")
