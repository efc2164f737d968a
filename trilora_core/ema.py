"""What a run would save: the parameters or their running mean, and both as the last proven step found them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .optim import Averaging, second_points

__all__ = ["Ema", "Result"]


class Ema:
    """An exponential mean of some parameters; the mean starts as what they are when it is made."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        """`decay` below 1 is the share of the old mean in the new one."""
        self.decay = decay
        self.updates = 0
        self.means = [parameter.detach().clone() for parameter in parameters]
        self._parameters = list(parameters)

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the mean.

        The decay grows to its full value as (1 + t)/(10 + t), t updates before this one, so that a short run is not
        held at its start (the warm-up of TensorFlow's ExponentialMovingAverage).
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.means, self._parameters, 1.0 - decay)
        self.updates += 1


class Result:
    """The parameters of a run, their mean where one is wanted, and a copy of both that is known to be good."""

    def __init__(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, decay: float) -> None:
        """`decay` is that of the EMA; 0: none."""
        self._parameters = list(parameters)
        self._optimizer = optimizer
        self._ema = Ema(parameters, decay) if decay else None
        self._good = [tensor.detach().clone() for tensor in self._parts()]
        self._kept: list[Tensor] | None = None  # the parameters of training, while others are in their place

    @property
    def copies(self) -> int:
        """How many times the size of the parameters the copy is: they, and what their mean is made of."""
        return 1 + (self._ema is not None) + isinstance(self._optimizer, Averaging)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put what would be saved in place of the parameters; every exit gives them back, bit for bit.

        It may be nested.
        """
        if self._kept is not None or (self._ema is None and not isinstance(self._optimizer, Averaging)):
            yield
            return
        self._kept = [parameter.detach().clone() for parameter in self._parameters]
        try:
            self._show()
            yield
        finally:
            self.come_back()

    def come_back(self) -> None:
        """Give the parameters back, also where Ctrl-C cut off the exit of `shown`; nothing where they are there."""
        if self._kept is None:
            return
        if isinstance(self._optimizer, Averaging):
            self._optimizer.train()
        self._set(self._kept)  # after train(), which comes back to them by arithmetic only
        self._kept = None

    def stepped(self) -> None:
        """Take the step that was just made into the mean."""
        if self._ema is not None:
            self._ema.update()

    @torch.no_grad()
    def keep(self) -> None:
        """Call all as it is now good: a finite loss was computed with it."""
        torch._foreach_copy_(self._good, self._parts())

    @torch.no_grad()
    def go_back(self) -> None:
        """Make all as the last `keep` found it."""
        torch._foreach_copy_(self._parts(), self._good)

    def state(self) -> tuple[dict[str, Tensor], int]:
        """Tensors by name and the number of updates of the EMA; the parameters themselves are the caller's."""
        if self._kept is not None:
            raise RuntimeError("the parameters are not those of training inside as_saved; take the state outside of it")
        tensors = {f"good.{index}": tensor for index, tensor in enumerate(self._good)}
        if self._ema is None:
            return tensors, 0
        return tensors | {f"ema.{index}": mean for index, mean in enumerate(self._ema.means)}, self._ema.updates

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from what `state` returned."""
        torch._foreach_copy_(self._good, [tensors[f"good.{index}"] for index in range(len(self._good))])
        if self._ema is not None:
            means = [tensors[f"ema.{index}"] for index in range(len(self._ema.means))]
            torch._foreach_copy_(self._ema.means, means)
            self._ema.updates = updates

    def _parts(self) -> list[Tensor]:
        means = [] if self._ema is None else self._ema.means
        return [*self._parameters, *means, *second_points(self._optimizer)]

    def _show(self) -> None:
        if isinstance(self._optimizer, Averaging):
            self._optimizer.eval()
        elif self._ema is not None:
            self._set(self._ema.means)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._parameters, list(values))
