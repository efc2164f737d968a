"""The order in which a run sees its pictures, as a pure function of the seed and the step."""

from __future__ import annotations

import functools
import random

from ..errors import InputError

__all__ = ["batch_indices"]


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Give the picture indices of batch number `step` (from 0) of a data set of `count` pictures.

    Batches run over one endless line of epochs, each shuffled anew, so no picture is ever dropped: a batch may
    straddle two epochs, and one larger than the data set repeats pictures. Without state, so a resumed run that
    asks for the same step sees the same pictures.
    """
    if count < 1 or batch_size < 1 or step < 0:
        raise InputError(f"count {count}, batch_size {batch_size}, step {step}; wanted at least 1, 1 and 0")
    first = step * batch_size
    return [_order(count, seed, place // count)[place % count] for place in range(first, first + batch_size)]


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(count))
    # A text seed goes through SHA-512, so that neighbouring seeds and epochs share nothing.
    random.Random(f"trilora order {seed} {epoch}").shuffle(order)
    return tuple(order)
