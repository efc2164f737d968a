"""Every option of a run, as frozen dataclasses that are checked once and go to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import InputError

__all__ = [
    "INITS",
    "METHODS",
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "AdapterConfig",
    "DataConfig",
    "OptimizerConfig",
    "TrainConfig",
    "from_dict",
    "from_json",
    "parse_rank",
    "to_json",
]

INITS = ("svd-mean", "svd", "svd-max", "svd-fro", "ones")
METHODS = ("trilora", "lora")
OPTIMIZERS = ("adamw",)
SCHEDULES = ("constant", "cosine", "linear")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

T = TypeVar("T")


@dataclass(frozen=True)
class AdapterConfig:
    """Shape and start of the adapter: ΔW = alpha/r · up · diag(Σ) · down.

    `init` names the start of Σ. `svd` (raw singular values, as in the paper) multiplies the effective learning rate
    of `up` by Σ, because Adam cancels the scale of a gradient but not that of the forward pass; `svd-mean` divides
    them by their mean, which keeps the effective rate of LoRA.
    """

    rank: int | str = 16  # a number, or "energy:0.9": per layer the smallest rank that holds this share of W0's energy
    rank_cap: int = 128  # upper limit of an energy rank
    alpha: float | None = None  # None: alpha = rank, so that the scale is 1
    init: str = "svd-mean"
    method: str = "trilora"  # "lora" holds Σ at 1: the plain method, for comparison
    companion_rank: int = 0  # rank of the paper's second, smaller standard adapter (section 1); 0 = none

    def __post_init__(self) -> None:
        parse_rank(self.rank)
        _whole("rank_cap", self.rank_cap, 1)
        if self.alpha is not None:
            _number("alpha", self.alpha, above=0.0)
        _one_of("init", self.init, INITS)
        _one_of("method", self.method, METHODS)
        _whole("companion_rank", self.companion_rank, 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move: AdamW, its schedule and its limits. Σ never decays."""

    name: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01  # on up and down only
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: str = "constant"
    warmup_steps: int = 0  # optimizer steps from 0 to the full rate
    clip_norm: float = 1.0  # largest global gradient norm; 0 = no clipping
    accumulation: int = 1  # batches per optimizer step

    def __post_init__(self) -> None:
        _one_of("optimizer", self.name, OPTIMIZERS)
        _number("learning_rate", self.learning_rate, above=0.0)
        _number("weight_decay", self.weight_decay, least=0.0)
        _number("beta1", self.beta1, least=0.0, below=1.0)
        _number("beta2", self.beta2, least=0.0, below=1.0)
        _one_of("schedule", self.schedule, SCHEDULES)
        _whole("warmup_steps", self.warmup_steps, 0)
        _number("clip_norm", self.clip_norm, least=0.0)
        _whole("accumulation", self.accumulation, 1)


@dataclass(frozen=True)
class DataConfig:
    """Which pictures and captions a run sees."""

    folder: str = ""
    resolution: int = 512  # pixels, square; the shorter side is scaled to it and the centre is kept
    trigger_word: str = ""  # the caption of a picture that has none
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        _whole("resolution", self.resolution, 16)
        _flag("skip_unreadable", self.skip_unreadable)


@dataclass(frozen=True)
class TrainConfig:
    """A whole run except its model and data."""

    steps: int = 500  # optimizer steps
    batch_size: int = 1
    seed: int = 0
    precision: str = "auto"  # of the forward pass; auto: as the model computes by itself
    gradient_checkpointing: bool = False  # recompute each block in the backward pass: less memory, more time
    save_every: int = 0  # optimizer steps between two saves of the resumable state; 0 = only at the end or on a stop
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 1)
        _whole("batch_size", self.batch_size, 1)
        _whole("seed", self.seed, 0)
        _one_of("precision", self.precision, PRECISIONS)
        _flag("gradient_checkpointing", self.gradient_checkpointing)
        _whole("save_every", self.save_every, 0)


def parse_rank(rank: int | str) -> int | float:
    """Read a rank: a whole number stays one, "energy:0.9" becomes the float 0.9; else InputError."""
    if isinstance(rank, str) and rank.startswith("energy:"):
        try:
            share = float(rank.removeprefix("energy:"))
        except ValueError:
            share = math.nan
        if not 0.0 < share <= 1.0:
            raise InputError(f'rank is "{rank}"; wanted "energy:" and a share above 0 and up to 1, such as energy:0.9')
        return share
    if isinstance(rank, str) and rank.isascii() and rank.isdigit():
        rank = int(rank)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"rank is {rank!r}; wanted a whole number from 1 up (4 to 64 is usual), or energy:0.9")
    return rank


def to_json(config: Any) -> str:
    """Write a config as JSON with sorted keys."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_json(kind: type[T], text: str) -> T:
    """Read a config that `to_json` wrote; unknown names and wrong types raise InputError."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{kind.__name__} is not valid JSON ({error}); give the text that to_json wrote") from error
    return from_dict(kind, values)


def from_dict(kind: type[T], values: Any) -> T:
    """Build a config from plain nested dictionaries (JSON or TOML); names that are absent keep their defaults."""
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} is {type(values).__name__}; wanted a table of names and values")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{kind.__name__} has no option {', '.join(unknown)}; known: {', '.join(sorted(hints))}")
    return kind(**{name: _convert(name, hints[name], value) for name, value in values.items()})


def _convert(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value)
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, kinds):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise InputError(f"{name} is {value!r}; wanted {wanted}")
    return value


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} is {value!r}; known: {', '.join(known)}")


def _whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; wanted a whole number from {least} up")


def _flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; wanted true or false")


def _number(
    name: str, value: float, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least or value <= above or value >= below:
        limits = [f"above {above:g}"] if above > -math.inf else []
        limits += [f"from {least:g} up"] if least > -math.inf else []
        limits += [f"below {below:g}"] if below < math.inf else []
        raise InputError(f"{name} is {value!r}; wanted a finite number {' and '.join(limits)}".rstrip())
