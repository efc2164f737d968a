"""Optimizers and learning-rate schedules by name, one rate for each factor, and the optimizer's state as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .adapter import TriLoRA
from .config import OptimizerConfig
from .errors import InputError
from .keys import is_text

__all__ = [
    "Averaging",
    "check_optimizer",
    "load_optimizer_state",
    "make_optimizer",
    "optimizer_state",
    "rate_at",
    "second_points",
    "set_rate",
]

Groups = list[dict[str, Any]]

# Adafactor's own rules stay out of the way of rates this much below theirs; a power of two, so nothing is rounded
_OUT_OF_REACH = 1024.0
_LEAST_PRODIGY = 0.01  # nobody wants less than a hundredth of what it finds; rates of the other methods are below it


@runtime_checkable
class Averaging(Protocol):
    """An optimizer that averages the parameters: `eval` puts the mean in their place, `train` takes it out again."""

    def eval(self) -> None: ...
    def train(self) -> None: ...


def check_optimizer(config: OptimizerConfig, ema: float = 0.0) -> None:
    """Raise InputError for options that the chosen optimizer does not go with, or when its library is absent."""
    rates = {rate for rate in (config.up_rate, config.sigma_rate, config.down_rate) if rate}
    if config.name == "prodigy" and config.learning_rate < _LEAST_PRODIGY:
        raise InputError(
            f"optimizer prodigy finds the rate by itself and multiplies it by learning_rate, which is"
            f" {config.learning_rate:g}, so next to nothing would be learned; set learning_rate to 1"
        )
    if config.name == "prodigy" and config.text_encoder_rate not in (0.0, 1.0):
        raise InputError(
            f"optimizer prodigy finds one rate for all parameters, but text_encoder_rate is"
            f" {config.text_encoder_rate:g}; make it 1, or 0 to leave the text encoder out"
        )
    if config.name == "prodigy" and len(rates) > 1:
        raise InputError(
            f"optimizer prodigy finds one rate for all parameters, but up_rate is {config.up_rate:g}, sigma_rate"
            f" {config.sigma_rate:g} and down_rate {config.down_rate:g}; make them alike, or 0 to hold a factor"
        )
    if config.name == "schedulefree" and config.schedule != "constant":
        raise InputError(
            f"optimizer schedulefree replaces the schedule by an average, but schedule is {config.schedule!r};"
            " set schedule to constant (warmup_steps are fine), or take adamw"
        )
    if config.name == "schedulefree" and not config.beta1:
        raise InputError("optimizer schedulefree needs beta1 above 0, 0.9 is usual: it weighs its average")
    if config.name == "schedulefree" and ema:
        raise InputError(f"optimizer schedulefree averages by itself, but ema is {ema:g}; set ema to 0, or take adamw")
    _OPTIMIZERS[config.name][0]()


def make_optimizer(adapter: TriLoRA, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the named optimizer over the adapter: a group for up, sigma and down, whose "rate" is that of the factor.

    Layers of text encoders have groups of their own, whose rates are multiplied by that of the text encoders.

    Σ is a scale, not a direction, and never decays. A factor of rate 0 is held: it is in no group, and its
    requires_grad is False, so that no gradient of it is computed. Prodigy finds the rate by itself: learning_rate
    multiplies what it finds, and 1 is usual. Adafactor moves by learning_rate as the others do: its own relative steps
    are off. Raises InputError as `check_optimizer` does, and when nothing would move.
    """
    check_optimizer(config)
    kind, build = _OPTIMIZERS[config.name]
    optimizer: torch.optim.Optimizer = build(kind(), _groups(adapter, config), config)
    set_rate(optimizer, config.learning_rate)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Give every group its share of the learning rate; returns the rate of the next step as a reader wants to see it.

    That is `rate`, but for Prodigy, where it is multiplied by what the optimizer has found so far.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    first = optimizer.param_groups[0]
    return rate * float(first["d"]) if "d_max" in first else rate


def second_points(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What schedule-free keeps beside the parameters to make the mean of, z in Defazio et al. (2024); [] for others.

    A parameter itself stands for a z that does not exist before the first step: z starts as a copy of it.
    """
    if not isinstance(optimizer, Averaging):
        return []
    return [optimizer.state[parameter].get("z", parameter) for parameter in _parameters(optimizer)]


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that an optimizer remembers: tensors as "index.name", and numbers that JSON can hold.

    Of the groups only the numbers are kept: what is neither number nor tensor there follows from the options.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float | str]] = {}
    places: set[int] = set()
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # bitsandbytes shares its tables between parameters, which a safetensors file cannot
                tensors[f"{index}.{name}"] = value.clone() if value.data_ptr() in places else value
                places.add(value.data_ptr())
            elif _is_number(value):
                numbers.setdefault(str(index), {})[name] = _plain(value)
    groups = [
        {name: _plain(value) for name, value in group.items() if _is_number(value)} for group in optimizer.param_groups
    ]
    return tensors, {"numbers": numbers, "groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Go on from what `optimizer_state` returned for an optimizer of the same options."""
    state: dict[int, dict[str, Any]] = {int(i): _numbers(numbers) for i, numbers in values["numbers"].items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor.clone()
    now = optimizer.state_dict()["param_groups"]
    groups = [group | _numbers(saved) for group, saved in zip(now, values["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then the named schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = max(1, steps - config.warmup_steps)
    return config.learning_rate * _SCHEDULES[config.schedule](min(1.0, (step - config.warmup_steps) / left))


def _groups(adapter: TriLoRA, config: OptimizerConfig) -> Groups:
    rates = {"up": config.up_rate, "sigma": config.sigma_rate, "down": config.down_rate}
    parts = ((False, 1.0), (True, config.text_encoder_rate))
    if not rates["up"] and not any(branch.up.any() for branch in adapter.branches.values()):
        raise InputError(
            "up_rate is 0 and up starts at zero, so nothing would be learned; set up_rate above 0, or start from a"
            " trained adapter"
        )
    groups: Groups = []
    for (text, part), (factor, rate) in itertools.product(parts, rates.items()):
        named = [
            p
            for name, p in adapter.named_parameters()
            if name.endswith(f".{factor}") and is_text(name) == text and p.requires_grad
        ]
        if rate * part and named:
            decay = 0.0 if factor == "sigma" else config.weight_decay
            groups.append({"params": named, "rate": rate * part, "weight_decay": decay})
        for parameter in named:
            parameter.requires_grad_(rate * part > 0)
    if not groups:
        raise InputError("up_rate, sigma_rate and down_rate leave nothing to train; set one of them above 0")
    return groups


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: float) -> float | str:
    """JSON has no infinity, which is a number of Prodigy's."""
    return value if math.isfinite(value) else str(value)


def _numbers(values: dict[str, float | str]) -> dict[str, float]:
    """The inverse of `_plain`, for all of them."""
    return {name: float(value) if isinstance(value, str) else value for name, value in values.items()}


def _betas(config: OptimizerConfig) -> tuple[float, float]:
    own = 0.99 if config.name == "lion" else 0.999
    return config.beta1, own if config.beta2 is None else config.beta2


def _simple(kind: Any, groups: Groups, config: OptimizerConfig) -> Any:
    """AdamW of 8 bits where a factor has 4096 numbers or more (Dettmers et al. 2022); Lion (Chen et al. 2023)."""
    return kind(groups, lr=config.learning_rate, betas=_betas(config))


def _adamw(kind: Any, groups: Groups, config: OptimizerConfig) -> Any:
    """AdamW (Loshchilov & Hutter 2019)."""
    # fused: one kernel for all factors, where a loop over hundreds of small tensors would cost more than the maths
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return kind(groups, lr=config.learning_rate, betas=_betas(config), fused=fused)


def _adafactor(kind: Any, groups: Groups, config: OptimizerConfig) -> Any:
    """Adafactor (Shazeer & Stern 2018): the second moment by rows and columns, no first one; beta1 and beta2 unused.

    Torch's version moves by max(eps2, RMS of the parameter) · min(lr, 1/√step). `up` starts at zero, where the RMS
    would all but stop it, so eps2 is set above any RMS and lr and decay are set against it: the product is our rate.
    """
    far = [
        {**group, "rate": group["rate"] / _OUT_OF_REACH, "weight_decay": group["weight_decay"] * _OUT_OF_REACH}
        for group in groups
    ]
    return kind(far, eps=(None, _OUT_OF_REACH))


def _prodigy(kind: Any, groups: Groups, config: OptimizerConfig) -> Any:
    """Prodigy (Mishchenko & Defazio 2024), with what its authors advise for diffusion models."""
    betas = _betas(config)
    return kind(groups, lr=config.learning_rate, betas=betas, use_bias_correction=True, safeguard_warmup=True)


def _schedulefree(kind: Any, groups: Groups, config: OptimizerConfig) -> Any:
    """Schedule-free AdamW (Defazio et al. 2024), in training mode."""
    optimizer = _simple(kind, groups, config)
    optimizer.train()
    return optimizer


@contextmanager
def _from_package(name: str, package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"optimizer {name} needs the package {package}, which cannot be imported ({error}); install it with:"
            f" pip install {package}"
        ) from error


def _torch_adamw() -> Any:
    return torch.optim.AdamW


def _torch_adafactor() -> Any:
    if not hasattr(torch.optim, "Adafactor"):
        raise InputError(
            f"optimizer adafactor needs torch 2.5 or newer, this is {torch.__version__}; update torch, or choose"
            " another optimizer"
        )
    return torch.optim.Adafactor


def _bitsandbytes() -> Any:
    with _from_package("adamw8bit", "bitsandbytes"):
        from bitsandbytes.optim import AdamW8bit
    return AdamW8bit


def _prodigyopt() -> Any:
    with _from_package("prodigy", "prodigyopt"):
        from prodigyopt import Prodigy
    return Prodigy


def _schedulefree_adamw() -> Any:
    with _from_package("schedulefree", "schedulefree"):
        from schedulefree import AdamWScheduleFree
    return AdamWScheduleFree


def _lion() -> Any:
    with _from_package("lion", "lion-pytorch"):
        from lion_pytorch import Lion
    return Lion


# The class, imported only when it is chosen, and how it is built.
_OPTIMIZERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Groups, OptimizerConfig], Any]]] = {
    "adamw": (_torch_adamw, _adamw),
    "adamw8bit": (_bitsandbytes, _simple),
    "adafactor": (_torch_adafactor, _adafactor),
    "prodigy": (_prodigyopt, _prodigy),
    "schedulefree": (_schedulefree_adamw, _schedulefree),
    "lion": (_lion, _simple),
}


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1.0 - progress


_SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine, "linear": _linear}
