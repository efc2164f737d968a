"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .adapter import TriLoRA
from .config import OptimizerConfig

__all__ = ["make_optimizer", "rate_at"]


def make_optimizer(adapter: TriLoRA, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the named optimizer over the adapter's parameters; Σ is a scale, not a direction, and never decays."""
    sigma = [p for name, p in adapter.named_parameters() if p.requires_grad and name.endswith(".sigma")]
    kept = {id(p) for p in sigma}
    decayed = [p for p in adapter.trainable() if id(p) not in kept]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": sigma, "weight_decay": 0.0}]
    return _OPTIMIZERS[config.name]([group for group in groups if group["params"]], config)


def _adamw(groups: list[dict[str, object]], config: OptimizerConfig) -> torch.optim.Optimizer:
    # fused: one kernel for all factors, where a loop over hundreds of small tensors would cost more than the maths
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=_can_fuse(groups)
    )


def _can_fuse(groups: list[dict[str, object]]) -> bool:
    params = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    return all(p.device.type in ("cpu", "cuda") for p in params)


_OPTIMIZERS: dict[str, Callable[[list[dict[str, object]], OptimizerConfig], torch.optim.Optimizer]] = {"adamw": _adamw}


def rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then the named schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = max(1, steps - config.warmup_steps)
    return config.learning_rate * _SCHEDULES[config.schedule](min(1.0, (step - config.warmup_steps) / left))


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1.0 - progress


_SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine, "linear": _linear}
