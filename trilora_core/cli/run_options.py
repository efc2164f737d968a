"""The options of a training run: flags and a TOML file become the frozen dataclasses of config.py."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import INITS, METHODS, OPTIMIZERS, PRECISIONS, SCHEDULES, DataConfig, TrainConfig, from_dict
from ..errors import InputError
from .parser import Arguments, OneLineParser, rank, whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RunOptions", "add_run_options", "read_run_options"]

_PATHS = ("model", "output")
_MARK = "option:"  # tells the options of the run from other arguments


@dataclass(frozen=True)
class RunOptions:
    """What `train` needs: the base model, the data, the file to write, and every option of the run."""

    model: str
    output: Path
    data: DataConfig
    train: TrainConfig
    own_resolution: bool = False  # none was asked for: take the model's


def add_run_options(parser: OneLineParser) -> None:
    """Declare every option of a run, in groups; the `dest` of each is its place in the TOML file."""
    files = parser.add_argument_group("model and file")
    _option(files, "--model", "model", "base model: a diffusers folder or one .safetensors file", metavar="PATH")
    _option(files, "--output", "output", "the adapter file to write", metavar="NAME.safetensors")
    _add_pictures(parser)
    _add_adapter(parser)
    _add_optimizer(parser)
    _add_loop(parser)


def _add_pictures(parser: OneLineParser) -> None:
    """Declare what is trained on."""
    group = parser.add_argument_group("pictures")
    _option(
        group, "--data", "data.folder", "folder of pictures, each with a .txt caption of the same name", metavar="DIR"
    )
    _option(
        group,
        "--resolution",
        "data.resolution",
        "pixels, square; pictures are scaled and their centre kept (default: the model's own size)",
        type=whole,
    )
    _option(group, "--trigger-word", "data.trigger_word", "caption of a picture that has none", metavar="TEXT")
    _flag(group, "--skip-unreadable", "data.skip_unreadable", "leave out broken pictures, and name them")


def _add_adapter(parser: OneLineParser) -> None:
    adapter = TrainConfig().adapter
    group = parser.add_argument_group("adapter")
    _option(
        group,
        "--rank",
        "adapter.rank",
        f"size of the adapter: 4 to 64 is usual (default: {adapter.rank}); energy:0.9 takes per layer the smallest rank"
        " that holds this share of the weight's energy",
        type=rank,
    )
    _option(
        group, "--rank-cap", "adapter.rank_cap", f"limit of an energy rank (default: {adapter.rank_cap})", type=whole
    )
    _option(
        group, "--alpha", "adapter.alpha", "scale of the change is alpha / rank (default: alpha = rank)", type=float
    )
    _option(
        group,
        "--init",
        "adapter.init",
        f"start of Σ from the singular values of the weight (default: {adapter.init}); svd, the paper's raw values,"
        " multiplies the effective learning rate by them: lower --lr with it",
        choices=INITS,
    )
    _option(
        group,
        "--method",
        "adapter.method",
        f"lora holds Σ at 1, for comparison (default: {adapter.method})",
        choices=METHODS,
    )
    _option(
        group,
        "--companion-rank",
        "adapter.companion_rank",
        "rank of the paper's second, smaller adapter, folded into the same file (default: 0, none)",
        type=whole,
    )


def _add_optimizer(parser: OneLineParser) -> None:
    optimizer = TrainConfig().optimizer
    group = parser.add_argument_group("optimizer")
    _option(
        group, "--lr", "optimizer.learning_rate", f"learning rate (default: {optimizer.learning_rate:g})", type=float
    )
    _option(group, "--optimizer", "optimizer.name", f"default: {optimizer.name}", choices=OPTIMIZERS)
    _option(
        group,
        "--weight-decay",
        "optimizer.weight_decay",
        f"of up and down, never of Σ (default: {optimizer.weight_decay:g})",
        type=float,
    )
    _option(
        group,
        "--schedule",
        "optimizer.schedule",
        f"of the learning rate after its warm-up (default: {optimizer.schedule})",
        choices=SCHEDULES,
    )
    _option(group, "--warmup-steps", "optimizer.warmup_steps", "steps from 0 to the full rate (default: 0)", type=whole)
    _option(
        group,
        "--clip-norm",
        "optimizer.clip_norm",
        f"largest gradient norm, 0 for none (default: {optimizer.clip_norm:g})",
        type=float,
    )
    _option(
        group,
        "--accumulation",
        "optimizer.accumulation",
        f"batches per optimizer step (default: {optimizer.accumulation})",
        type=whole,
    )


def _add_loop(parser: OneLineParser) -> None:
    train = TrainConfig()
    group = parser.add_argument_group("run")
    _option(group, "--steps", "steps", f"optimizer steps (default: {train.steps})", type=whole)
    _option(group, "--batch-size", "batch_size", f"pictures per batch (default: {train.batch_size})", type=whole)
    _option(group, "--seed", "seed", f"same seed, same adapter (default: {train.seed})", type=whole)
    _option(
        group,
        "--precision",
        "precision",
        f"arithmetic of the forward pass (default: {train.precision}, as the base model's weights)",
        choices=PRECISIONS,
    )
    _flag(
        group,
        "--gradient-checkpointing",
        "gradient_checkpointing",
        "recompute each block in the backward pass: less memory, more time, the same gradients",
    )
    _option(
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
    values = _read_toml(arguments.config) if arguments.config else {}
    for name, value in vars(arguments).items():
        if name.startswith(_MARK):
            _put(values, name.removeprefix(_MARK), value)
    paths = {name: _text(name, values.pop(name, "")) for name in _PATHS}
    pictures = values.pop("data", {})
    data = from_dict(DataConfig, pictures)
    for name, flag, found in (("model", "--model", paths["model"]), ("output", "--output", paths["output"])):
        if not found:
            raise InputError(f'no {name} was given; add {flag}, or a line `{name} = "…"` to the --config file')
    if not data.folder:
        raise InputError("no pictures were given; add --data DIR, or `folder` under [data] in the --config file")
    train = from_dict(TrainConfig, values)
    return RunOptions(paths["model"], Path(paths["output"]), data, train, "resolution" not in pictures)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check the name") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML ({error}); correct that line") from error


def _option(group: Any, flag: str, place: str, text: str, **how: Any) -> None:
    """One option that stays out of the namespace unless it is given."""
    if "choices" not in how:
        how.setdefault("metavar", "N" if how.get("type") is whole else "X")
    group.add_argument(flag, dest=_MARK + place, default=argparse.SUPPRESS, help=text, **how)


def _flag(group: Any, flag: str, place: str, text: str) -> None:
    group.add_argument(flag, dest=_MARK + place, default=argparse.SUPPRESS, action="store_true", help=text)


def _put(values: dict[str, Any], place: str, value: Any) -> None:
    """Set "optimizer.learning_rate" in nested tables, making those that are not there."""
    *tables, name = place.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"{table} in the --config file is {values!r}; wanted a table [{table}]")
    values[name] = value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; wanted a path in quotes")
    return value
