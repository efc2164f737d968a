"""The options of the adapter: its shape, and which layers it adapts."""

from __future__ import annotations

from typing import Any

from ..config import INITS, LAYERS, METHODS, TrainConfig, parse_rank
from .options import Given, Refines, option, refuse_idle
from .parser import OneLineParser, rank, whole

__all__ = ["add_adapter_options", "check_adapter"]

_REFINES: dict[str, Refines[TrainConfig]] = {
    "adapter.rank_cap": Refines(
        "--rank-cap", "--rank energy:0.9", lambda run: isinstance(parse_rank(run.adapter.rank), float)
    ),
    # two of its values do not speak of Σ, or of the Σ that lora has
    "adapter.init": Refines(
        "--init",
        "--method trilora",
        lambda run: run.adapter.method == "trilora" or run.adapter.init in ("ones", "contrast"),
    ),
}


def add_adapter_options(parser: OneLineParser) -> None:
    """Declare the shape of the adapter and the layers that it adapts."""
    _add_shape(parser)
    _add_layers(parser)


def _add_shape(parser: OneLineParser) -> None:
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
        group,
        "--rank-cap",
        "adapter.rank_cap",
        f"limit of an energy rank, with --rank energy:0.9 (default: {adapter.rank_cap})",
        type=whole,
    )
    option(group, "--alpha", "adapter.alpha", "scale of the change is alpha / rank (default: alpha = rank)", type=float)
    option(
        group,
        "--init",
        "adapter.init",
        f"start of Σ from the singular values of the weight (default: {adapter.init}); svd, the paper's raw values,"
        " multiplies the effective learning rate by them: lower --lr with it; contrast needs a calibration and starts"
        " down with what sets your pictures apart, an experiment",
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


def check_adapter(given: Given, config: TrainConfig) -> None:
    """Raise InputError for a flag that would do nothing."""
    refuse_idle(given, _REFINES, config)
