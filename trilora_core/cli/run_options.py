"""The options of a training run: flags and a TOML file become the frozen dataclasses of config.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import whole as check_whole
from ..config import PRECISIONS, CalibrationConfig, TrainConfig
from ..config_data import DataConfig, PriorConfig
from ..config_json import from_dict
from ..errors import InputError
from ..home import expanded
from ..presets import GOALS, overlaid, preset_values
from .adapter_options import add_adapter_options, check_adapter
from .calibration import add_calibration_options, read_calibration_options
from .data_options import (
    CacheOptions,
    add_cache_options,
    add_data_options,
    add_prior_options,
    read_cache,
    read_data,
    read_prior,
)
from .learning_options import add_learning_options, check_learning
from .monitor_options import add_monitor_options, check_monitor
from .options import Given, flag, option, read_given
from .parser import Arguments, OneLineParser, whole
from .saving import DTYPES

__all__ = ["RunOptions", "add_run_options", "read_run_options"]

_PATHS = ("model", "output")


@dataclass(frozen=True)
class RunOptions:
    """What `train` needs: the base model, the data, the file to write, and every option of the run."""

    model: str
    output: Path
    data: DataConfig
    prior: PriorConfig | None  # None: no prior pictures
    cache: CacheOptions
    train: TrainConfig
    calibration: CalibrationConfig
    own_resolution: bool = False  # none was asked for: take the model's
    start_from: str = ""  # an adapter to go on from; "": from the adapter's own start
    total_batch_size: int = 0  # pictures per batch of all processes together; 0: batch_size for each
    dtype: str = "fp16"  # of the file
    plot: Path | None = None  # the loss curve, if it is to be drawn
    device: str = "auto"
    base_dtype: str = "auto"
    preset: str = ""  # a goal; its values stand where `chosen` has none
    chosen: Mapping[str, Any] = field(default_factory=dict)  # what the user gave for `train`

    def total(self, settled: TrainConfig, processes: int) -> int:
        """Pictures per batch of all processes, 0: `batch_size` is for each; a preset's is for all, as its steps are."""
        if self.total_batch_size or not self.preset or "batch_size" in self.chosen:
            return self.total_batch_size
        return max(settled.batch_size, processes)

    def settled(self, architecture: str, pictures: int) -> TrainConfig:
        """`train` with the values of the preset for this model and number of pictures, where there is one."""
        if not self.preset:
            return self.train
        steps = self.train.steps if "steps" in self.chosen else 0
        values = preset_values(self.preset, architecture, pictures, self.train.optimizer.name, steps)
        return from_dict(TrainConfig, overlaid(values, self.chosen))


def add_run_options(parser: OneLineParser) -> None:
    """Declare every option of a run, in groups; the `dest` of each is its place in the TOML file."""
    files = parser.add_argument_group("model and file")
    option(files, "--model", "model", "base model: a diffusers folder or one .safetensors file", metavar="PATH")
    option(files, "--output", "output", "the adapter file to write", metavar="NAME.safetensors")
    option(
        files,
        "--start-from",
        "start_from",
        "go on from the adapter in this file: one of ours, or any LoRA for this kind of model of at most --rank",
        metavar="FILE",
    )
    option(
        files,
        "--preset",
        "preset",
        "usual values for this goal, model and number of pictures: rank, steps, learning rate and more; every option"
        " that you give wins over it",
        choices=GOALS,
    )
    add_data_options(parser, "the model's own")
    add_prior_options(parser)
    add_adapter_options(parser)
    add_calibration_options(parser)
    add_learning_options(parser)
    _add_loop(parser)
    add_monitor_options(parser)
    add_cache_options(parser)
    _add_result(parser)


def _add_loop(parser: OneLineParser) -> None:
    train = TrainConfig()
    group = parser.add_argument_group("run")
    option(group, "--steps", "steps", f"optimizer steps (default: {train.steps})", type=whole)
    option(group, "--epochs", "epochs", "passes over the pictures, in place of --steps", type=whole)
    option(
        group,
        "--batch-size",
        "batch_size",
        f"pictures per batch, of each process where there are several (default: {train.batch_size})",
        type=whole,
    )
    option(
        group,
        "--total-batch-size",
        "total_batch_size",
        "pictures per batch of all processes together, in place of --batch-size",
        type=whole,
    )
    option(group, "--seed", "seed", f"same seed, same adapter (default: {train.seed})", type=whole)
    option(
        group,
        "--precision",
        "precision",
        f"arithmetic of the forward pass (default: {train.precision}, as the base model's weights, or what `accelerate"
        " launch --mixed_precision` says)",
        choices=PRECISIONS,
    )
    flag(
        group,
        "--gradient-checkpointing",
        "gradient_checkpointing",
        "recompute each block in the backward pass: less memory, more time, the same gradients",
    )
    option(
        group,
        "--save-every",
        "save_every",
        "steps between two saves of the resumable state (default: 0, only when stopped)",
        type=whole,
        metavar="N",
    )


def _add_result(parser: OneLineParser) -> None:
    group = parser.add_argument_group("result and machine")
    option(group, "--dtype", "dtype", "number format of the file (default: fp16)", choices=tuple(DTYPES))
    option(group, "--plot", "plot", "also draw the loss curve", metavar="LOSS.png")
    option(group, "--device", "device", "auto (a GPU if there is one; default), cpu, cuda or cuda:1")
    option(
        group,
        "--base-dtype",
        "base_dtype",
        "number format of the base model's weights (default: auto, fp32 on a CPU; on a GPU as --precision, else fp16)",
        choices=("auto", *DTYPES),
    )


def read_run_options(arguments: Arguments) -> RunOptions:
    """Merge the TOML file, if any, with the flags, which win, and check the result.

    Raises InputError for a file that cannot be read, unknown names, wrong types, and for what is missing.
    """
    given = read_given(arguments)
    paths = {name: _place(given, name) for name in _PATHS}
    for name, place in paths.items():
        if not place:
            raise InputError(f'no {name} was given; add --{name}, or a line `{name} = "…"` to the --config file')
    own_resolution = "resolution" not in _table(given, "data")
    data, prior, cache = read_data(given), read_prior(given, Path(paths["output"])), read_cache(given)
    if prior is not None and expanded(prior.folder).resolve() == expanded(data.folder).resolve():
        raise InputError(f"{data.folder} holds both the pictures and those of the prior; put these into another folder")
    _choose_length(given)
    total = _choose_batch(given)
    plot, start_from = _place(given, "plot"), _place(given, "start_from")
    preset = _one_of("preset", given.values.pop("preset", ""), ("", *GOALS))
    dtype = _one_of("dtype", given.values.pop("dtype", "fp16"), tuple(DTYPES))
    base_dtype = _one_of("base_dtype", given.values.pop("base_dtype", "auto"), ("auto", *DTYPES))
    device = _text("device", given.values.pop("device", "auto"))
    calibration_table = given.values.pop("calibration", {})
    train = from_dict(TrainConfig, given.values)
    calibration = read_calibration_options(calibration_table, train)
    check_adapter(given, train)
    check_learning(given, train)
    check_monitor(given, train)
    return RunOptions(
        model=paths["model"],
        output=Path(paths["output"]).absolute(),  # every file beside it is announced with its full name
        data=data,
        prior=prior,
        cache=cache,
        train=train,
        calibration=calibration,
        own_resolution=own_resolution,
        start_from=start_from,
        total_batch_size=total,
        dtype=dtype,
        plot=Path(plot) if plot else None,
        device=device,
        base_dtype=base_dtype,
        preset=preset,
        chosen=given.values,
    )


def _choose_length(given: Given) -> None:
    """Steps or epochs: a flag wins over the file, and two of a kind are refused."""
    values, flags = given.values, given.flags
    if {"steps", "epochs"} <= flags:
        raise InputError("--steps and --epochs were both given; choose one")
    for name, other in (("epochs", "steps"), ("steps", "epochs")):
        if name in flags:
            values.pop(other, None)
    if "steps" in values and values.get("epochs"):
        raise InputError("the --config file has both steps and epochs; take one of the lines out")


def _choose_batch(given: Given) -> int:
    """The batch of all processes, if that is what was given: a flag wins over the file, two of a kind are refused."""
    values, flags = given.values, given.flags
    if {"batch_size", "total_batch_size"} <= flags:
        raise InputError("--batch-size and --total-batch-size were both given; choose one")
    if "batch_size" in flags:
        values.pop("total_batch_size", None)
    if "total_batch_size" in flags:
        values.pop("batch_size", None)
    if {"batch_size", "total_batch_size"} <= values.keys():
        raise InputError("the --config file has both batch_size and total_batch_size; take one of the lines out")
    total = values.pop("total_batch_size", None)
    if total is not None:
        check_whole("total_batch_size", total, 1)
    return total or 0


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:  # in the file
        raise InputError(f"there is no {name} {value!r}; known: {', '.join(filter(None, known))}")
    return str(value)


def _table(given: Given, name: str) -> dict[str, Any]:
    """A table as it was given; one that is none is told so when it is read."""
    found = given.values.get(name, {})
    return found if isinstance(found, dict) else {}


def _place(given: Given, name: str) -> str:
    """Take a path out of what was given, with the user's own folder in place of ~; "" where there is none."""
    return os.path.expanduser(_text(name, given.values.pop(name, "")))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; wanted a path in quotes")
    return value
