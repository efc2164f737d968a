"""The options of a training run: flags and a TOML file become the frozen dataclasses of config.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import (
    INITS,
    LAYERS,
    METHODS,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    DataConfig,
    PriorConfig,
    TrainConfig,
    from_dict,
)
from ..errors import InputError
from .data_options import (
    CacheOptions,
    add_cache_options,
    add_data_options,
    add_prior_options,
    read_cache,
    read_data,
    read_prior,
)
from .options import Given, flag, option, read_given
from .parser import Arguments, OneLineParser, rank, whole

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
    own_resolution: bool = False  # none was asked for: take the model's


def add_run_options(parser: OneLineParser) -> None:
    """Declare every option of a run, in groups; the `dest` of each is its place in the TOML file."""
    files = parser.add_argument_group("model and file")
    option(files, "--model", "model", "base model: a diffusers folder or one .safetensors file", metavar="PATH")
    option(files, "--output", "output", "the adapter file to write", metavar="NAME.safetensors")
    add_data_options(parser, "the model's own")
    add_prior_options(parser)
    _add_adapter(parser)
    _add_layers(parser)
    _add_optimizer(parser)
    _add_loop(parser)
    add_cache_options(parser)


def _add_adapter(parser: OneLineParser) -> None:
    adapter = TrainConfig().adapter
    group = parser.add_argument_group("adapter")
    option(
        group,
        "--rank",
        "adapter.rank",
        f"size of the adapter: 4 to 64 is usual (default: {adapter.rank}); energy:0.9 takes per layer the smallest rank"
        " that holds this share of the weight's energy",
        type=rank,
    )
    option(
        group, "--rank-cap", "adapter.rank_cap", f"limit of an energy rank (default: {adapter.rank_cap})", type=whole
    )
    option(group, "--alpha", "adapter.alpha", "scale of the change is alpha / rank (default: alpha = rank)", type=float)
    option(
        group,
        "--init",
        "adapter.init",
        f"start of Σ from the singular values of the weight (default: {adapter.init}); svd, the paper's raw values,"
        " multiplies the effective learning rate by them: lower --lr with it",
        choices=INITS,
    )
    option(
        group,
        "--method",
        "adapter.method",
        f"lora holds Σ at 1, for comparison (default: {adapter.method})",
        choices=METHODS,
    )
    option(
        group,
        "--companion-rank",
        "adapter.companion_rank",
        "rank of the paper's second, smaller adapter, folded into the same file (default: 0, none)",
        type=whole,
    )


def _add_layers(parser: OneLineParser) -> None:
    layers = TrainConfig().adapter.layers
    group = parser.add_argument_group("layers")
    option(
        group,
        "--layers",
        "adapter.layers.which",
        f"kinds of layers to adapt (default: {layers.which}); attention+ff and attention+ff+conv are what kohya's LoRA"
        " adapts without and with a conv_dim",
        choices=LAYERS,
    )
    how: dict[str, Any] = {"nargs": "+", "metavar": "PATTERN"}
    option(
        group,
        "--layers-include",
        "adapter.layers.include",
        "of these only layers whose name in the file matches one of the patterns, such as '*up_blocks_1_*'",
        **how,
    )
    option(group, "--layers-exclude", "adapter.layers.exclude", "and none that matches one of these, '*attn2*'", **how)
    option(
        group,
        "--rank-dropout",
        "adapter.rank_dropout",
        "share of the rank's directions that each step leaves out, drawn anew (default: 0, none)",
        type=float,
    )


def _add_optimizer(parser: OneLineParser) -> None:
    optimizer = TrainConfig().optimizer
    group = parser.add_argument_group("optimizer")
    option(
        group, "--lr", "optimizer.learning_rate", f"learning rate (default: {optimizer.learning_rate:g})", type=float
    )
    option(group, "--optimizer", "optimizer.name", f"default: {optimizer.name}", choices=OPTIMIZERS)
    option(
        group,
        "--weight-decay",
        "optimizer.weight_decay",
        f"of up and down, never of Σ (default: {optimizer.weight_decay:g})",
        type=float,
    )
    option(
        group,
        "--schedule",
        "optimizer.schedule",
        f"of the learning rate after its warm-up (default: {optimizer.schedule})",
        choices=SCHEDULES,
    )
    option(group, "--warmup-steps", "optimizer.warmup_steps", "steps from 0 to the full rate (default: 0)", type=whole)
    option(
        group,
        "--clip-norm",
        "optimizer.clip_norm",
        f"largest gradient norm, 0 for none (default: {optimizer.clip_norm:g})",
        type=float,
    )
    option(
        group,
        "--accumulation",
        "optimizer.accumulation",
        f"batches per optimizer step (default: {optimizer.accumulation})",
        type=whole,
    )


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
    train = from_dict(TrainConfig, given.values)
    return RunOptions(paths["model"], Path(paths["output"]), data, prior, cache, train, own_resolution)


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
