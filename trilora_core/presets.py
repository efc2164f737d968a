"""Starting values by goal and architecture, for whoever does not want to choose.

They are what is usual, gathered from the trainers that most people use; nobody has measured here that they are best:

- diffusers' scripts for LoRA (READMEs of examples/dreambooth and examples/text_to_image): learning rate 1e-4 at a scale
  of 1, as here, 500 steps for five pictures, accumulation of 1 to 4, min-SNR gamma 5 "recommended" where it is used,
  ranks of 4 to 32, logit-normal times for SD3;
- kohya's sd-scripts (docs/train_network.md, sdxl_, sd3_ and flux_train_network.md): rank 16, for SDXL 32 with alpha
  16, 1e-4 throughout, ten epochs of repeated pictures, checkpointing on, constant rate;
- OneTrainer's presets for LoRA: batches of 4, rank 16 with alpha 1 and therefore 3e-4, 200 steps of warm-up, 100
  epochs, checkpointing on, logit-normal times for SD3 and Flux.

Their alphas below the rank divide the change, so their higher rates are not ours. Times are no part of a preset: "auto"
follows the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .config import TrainConfig
from .errors import InputError

__all__ = ["GOALS", "overlaid", "preset_text", "preset_values", "with_values"]

T = TypeVar("T")
Values = dict[str, Any]


@dataclass(frozen=True)
class _Goal:
    """What is to be learned; a look is one picture in one batch."""

    rank: int
    looks: int  # at each picture
    least: int  # steps, however few pictures there are
    most: int
    batch_size: int
    schedule: str
    ema: float
    rank_dropout: float
    weight_decay: float


_GOALS = {
    "style": _Goal(16, 100, 600, 4000, 1, "constant", 0.0, 0.0, 0.01),
    # few pictures, learnt by heart the soonest
    "subject": _Goal(16, 120, 400, 2000, 1, "constant", 0.0, 0.1, 0.01),
    "collection": _Goal(32, 40, 2000, 20_000, 4, "cosine", 0.99, 0.0, 0.01),
}
GOALS = tuple(_GOALS)


@dataclass(frozen=True)
class _Model:
    """What differs between architectures; rates are for Adam at a scale of 1."""

    learning_rate: float
    rank_factor: int
    min_snr_gamma: float  # for models that predict noise or v
    checkpointing: bool  # where a step would not fit an ordinary card without it


_MODELS = {
    "sd15": _Model(1e-4, 1, 5.0, False),
    "sdxl": _Model(1e-4, 2, 5.0, True),
    "sd3": _Model(1e-4, 1, 0.0, True),
    "flux": _Model(1e-4, 1, 0.0, True),
}
_WARMUP_SHARE, _WARMUP_MOST = 0.05, 100  # of the steps
_ROUNDED = 10  # steps


def preset_values(goal: str, architecture: str, pictures: int, optimizer: str = "adamw", steps: int = 0) -> Values:
    """Options for a goal, as nested tables with the names of config.py.

    `pictures` counts the looks of an epoch, repeats included; `optimizer` and `steps` are what the user chose, if
    anything: warm-up goes by them. Raises InputError for a goal or an architecture without a preset.
    """
    if goal not in _GOALS:
        raise InputError(f"there is no preset {goal!r}; known: {', '.join(GOALS)}")
    if architecture not in _MODELS:
        raise InputError(f"there is no preset for a {architecture} model; known: {', '.join(_MODELS)}")
    wanted, model = _GOALS[goal], _MODELS[architecture]
    steps = steps or _steps(wanted, pictures)
    averages = optimizer == "schedulefree"  # by itself, and without a schedule
    moves = {
        "learning_rate": 1.0 if optimizer == "prodigy" else model.learning_rate * (0.1 if optimizer == "lion" else 1.0),
        "schedule": "constant" if averages else wanted.schedule,
        "warmup_steps": min(_WARMUP_MOST, round(_WARMUP_SHARE * steps)),
        "weight_decay": wanted.weight_decay,
    }
    return {
        "steps": steps,
        "batch_size": wanted.batch_size,
        "gradient_checkpointing": model.checkpointing,
        "ema": 0.0 if averages else wanted.ema,
        "adapter": {"rank": wanted.rank * model.rank_factor, "rank_dropout": wanted.rank_dropout},
        "optimizer": moves,
        "loss": {"min_snr_gamma": model.min_snr_gamma},
    }


def overlaid(values: Values, over: Mapping[str, Any]) -> Values:
    """Nested tables with those of `over` on top."""
    merged = dict(values)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = overlaid(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def with_values(config: T, values: Mapping[str, Any]) -> T:
    """A config with the values of nested tables in it."""
    found: Any = config
    changes = {
        name: with_values(getattr(found, name), value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }
    changed: T = dataclasses.replace(found, **changes)
    return changed


def preset_text(goal: str, architecture: str, pictures: int, config: TrainConfig) -> str:
    """What a preset comes to in this run, for a person."""
    optimizer, adapter = config.optimizer, config.adapter
    extras = [
        f"{config.epochs} epochs" if config.epochs else f"{config.steps} steps",
        f"batch {config.batch_size}",
        f"rank {adapter.rank}",
        f"learning rate {optimizer.learning_rate:g} ({optimizer.schedule}, {optimizer.warmup_steps} of warm-up)",
        f"weight decay {optimizer.weight_decay:g}",
    ]
    extras += [f"min-SNR gamma {config.loss.min_snr_gamma:g}"] if config.loss.min_snr_gamma else []
    extras += [f"EMA {config.ema:g}"] if config.ema else []
    extras += [f"rank dropout {adapter.rank_dropout:g}"] if adapter.rank_dropout else []
    extras += ["gradient checkpointing"] if config.gradient_checkpointing else []
    return f"{goal} for {architecture}, {pictures} pictures: {', '.join(extras)}"


def _steps(wanted: _Goal, pictures: int) -> int:
    steps = wanted.looks * pictures / wanted.batch_size
    return int(min(max(round(steps / _ROUNDED) * _ROUNDED, wanted.least), wanted.most))
