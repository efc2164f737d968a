"""The options of a training run: flags and a TOML file become the frozen dataclasses of config.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import PRECISIONS, CalibrationConfig, DataConfig, PriorConfig, TrainConfig, from_dict
from ..errors import InputError
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
    preset: str = ""  # a goal; its values stand where `chosen` has none
    chosen: Mapping[str, Any] = field(default_factory=dict)  # what the user gave for `train`

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


def _add_loop(parser: OneLineParser) -> None:
    train = TrainConfig()
    group = parser.add_argument_group("run")
    option(group, "--steps", "steps", f"optimizer steps (default: {train.steps})", type=whole)
    option(group, "--epochs", "epochs", "passes over the pictures, in place of --steps", type=whole)
    option(group, "--batch-size", "batch_size", f"pictures per batch (default: {train.batch_size})", type=whole)
    option(group, "--seed", "seed", f"same seed, same adapter (default: {train.seed})", type=whole)
    option(
        group,
        "--precision",
        "precision",
        f"arithmetic of the forward pass (default: {train.precision}, as the base model's weights)",
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


def read_run_options(arguments: Arguments) -> RunOptions:
    """Merge the TOML file, if any, with the flags, which win, and check the result.

    Raises InputError for a file that cannot be read, unknown names, wrong types, and for what is missing.
    """
    given = read_given(arguments)
    paths = {name: _text(name, given.values.pop(name, "")) for name in _PATHS}
    for name, place in paths.items():
        if not place:
            raise InputError(f'no {name} was given; add --{name}, or a line `{name} = "…"` to the --config file')
    own_resolution = "resolution" not in _table(given, "data")
    data, prior, cache = read_data(given), read_prior(given, Path(paths["output"])), read_cache(given)
    if prior is not None and Path(prior.folder).expanduser().resolve() == Path(data.folder).expanduser().resolve():
        raise InputError(f"{data.folder} holds both the pictures and those of the prior; put these into another folder")
    _choose_length(given)
    start_from = _text("start_from", given.values.pop("start_from", ""))
    preset = _text("preset", given.values.pop("preset", ""))
    if preset and preset not in GOALS:  # in the file
        raise InputError(f"there is no preset {preset!r}; known: {', '.join(GOALS)}")
    calibration_table = given.values.pop("calibration", {})
    train = from_dict(TrainConfig, given.values)
    calibration = read_calibration_options(calibration_table, train)
    check_adapter(given, train)
    check_learning(given, train)
    check_monitor(given, train)
    files = (paths["model"], Path(paths["output"]))
    return RunOptions(*files, data, prior, cache, train, calibration, own_resolution, start_from, preset, given.values)


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


def _table(given: Given, name: str) -> dict[str, Any]:
    """A table as it was given; one that is none is told so when it is read."""
    found = given.values.get(name, {})
    return found if isinstance(found, dict) else {}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; wanted a path in quotes")
    return value
