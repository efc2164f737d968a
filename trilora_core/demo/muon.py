"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal; a tiny model learns in far fewer steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_STEPS = 4
_MATCH_ADAM = 0.2  # the size of an Adam update, relative to the rate (Liu et al., 2025)


class Muon:
    """Muon for weights of two or more dimensions (convolutions as (out, rest)), AdamW for all other weights."""

    def __init__(self, parameters: Iterable[nn.Parameter], small: Iterable[nn.Parameter] = ()) -> None:
        every, by_adam = list(parameters), {id(p) for p in small}
        self.matrices = [p for p in every if p.ndim >= 2 and id(p) not in by_adam]
        chosen = {id(p) for p in self.matrices}
        self.adam = torch.optim.AdamW([p for p in every if id(p) not in chosen], betas=(0.9, 0.99), weight_decay=0.0)
        self.momentum = [torch.zeros_like(p) for p in self.matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at a learning rate, in the size that the same rate has for Adam."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for weight, momentum in zip(self.matrices, self.momentum, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 0.1)
            update = weight.grad.lerp(momentum, 0.9).reshape(len(weight), -1)
            size = rate * _MATCH_ADAM * max(update.shape) ** 0.5
            weight.add_(_orthogonal(update).reshape(weight.shape), alpha=-size)

    def state(self) -> dict[str, Tensor]:
        """The moments, by plain names."""
        tensors = {f"muon.{i}": m for i, m in enumerate(self.momentum)}
        for i, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the moments back from `state()`."""
        for i, momentum in enumerate(self.momentum):
            momentum.copy_(tensors[f"muon.{i}"])
        state = self.adam.state_dict()
        for i in range(len(self.adam.param_groups[0]["params"])):
            state["state"][i] = {name: tensors[f"adam.{i}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
        self.adam.load_state_dict(state)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly: Newton-Schulz steps of degree five with Jordan's coefficients."""
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(_STEPS):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.T if tall else x
