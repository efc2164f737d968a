"""What the processes of one run do together: each takes its share of the looks, and all step with the whole gradient.

How they reach each other is the caller's business (cli/processes.py: accelerate); a run is alone unless it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["ALONE", "Alone", "Crew", "Lost", "add_up", "share_of"]

T = TypeVar("T")


class Lost(RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


class Crew(Protocol):
    """This process among those of a run; all call the same methods in the same order, and every one may raise Lost."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0; the first one reports and writes."""
        ...

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, which are of one shape; on the device of `values`."""
        ...

    def of_first(self, value: T) -> T:
        """What the first process gave, in all of them."""
        ...


class Alone:
    """The crew of one."""

    rank, size = 0, 1

    def summed(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def of_first(self, value: T) -> T:
        """The value."""
        return value


ALONE = Alone()


def share_of(count: int, crew: Crew) -> range:
    """Which of `count` things in a row are this process's: as many as another's, or one more or less."""
    return range(count * crew.rank // crew.size, count * (crew.rank + 1) // crew.size)


def add_up(parameters: Sequence[Tensor], loss: Tensor, crew: Crew) -> Tensor:
    """Put the sum over all processes in the place of every gradient, in one exchange; the sum of their losses, ().

    Losses are sums of rows that carry their weight in the whole batch, so sums are those of the whole, also where the
    shares differ in size or a process had none.
    """
    own = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat = crew.summed(torch.cat([*(gradient.flatten() for gradient in own), loss.detach().view(1).to(own[0])]))
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat[:-1].split(sizes), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
    return flat[-1]
