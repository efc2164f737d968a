"""The options of watching a run: validation, previews, and the files that it leaves on the way."""

from __future__ import annotations

from typing import Any

from ..config import MonitorConfig, TrainConfig
from ..errors import InputError
from .options import Given, Refines, flag, option, refuse_idle
from .parser import OneLineParser, whole

__all__ = ["add_monitor_options", "check_monitor"]

_VALIDATION = ("--validation-share X", lambda run: run.monitor.validation_share > 0)
_PREVIEWS = ("--preview-every N", lambda run: run.monitor.preview_every > 0)
_REFINES: dict[str, Refines[TrainConfig]] = {
    "monitor.validate_every": Refines("--validate-every", *_VALIDATION),
    "monitor.preview_prompts": Refines("--preview-prompts", *_PREVIEWS),
    "monitor.preview_seed": Refines("--preview-seed", *_PREVIEWS),
    "monitor.preview_steps": Refines("--preview-steps", *_PREVIEWS),
    "monitor.preview_cfg": Refines("--preview-cfg", *_PREVIEWS),
    "monitor.preview_resolution": Refines("--preview-resolution", *_PREVIEWS),
    "monitor.keep_adapters": Refines("--keep-adapters", "--save-every N", lambda run: run.save_every > 0),
}


def add_monitor_options(parser: OneLineParser) -> None:
    """Declare what is watched and kept."""
    group = parser.add_argument_group(
        "monitoring", "what is watched while a run goes on, and the files that it leaves on the way"
    )
    _add_validation(group)
    _add_previews(group)
    _add_files(group)


def _add_validation(group: Any) -> None:
    monitor = MonitorConfig()
    option(
        group,
        "--validation-share",
        "monitor.validation_share",
        "share of the pictures that is held out, 0.1 is usual: on it the loss and the drift from the base are measured"
        " (default: 0, none)",
        type=float,
    )
    option(
        group,
        "--validate-every",
        "monitor.validate_every",
        f"steps between two measures (default: {monitor.validate_every})",
        type=whole,
    )
    option(
        group,
        "--patience",
        "monitor.patience",
        "end after this many measures in a row without a better validation loss (default: 0, never)",
        type=whole,
    )

    option(
        group,
        "--spectrum-every",
        "monitor.spectrum_every",
        "steps between two looks at the singular values of every layer, which go into the log; `inspect NAME.log.jsonl"
        " --plot OUT.png` draws them (default: 0, none)",
        type=whole,
    )


def _add_previews(group: Any) -> None:
    monitor = MonitorConfig()
    option(
        group,
        "--preview-every",
        "monitor.preview_every",
        "steps between two rounds of pictures drawn with the adapter as it is; they lie in NAME_previews (default: 0,"
        " none)",
        type=whole,
    )
    how: dict[str, Any] = {"nargs": "+", "metavar": "TEXT"}
    option(group, "--preview-prompts", "monitor.preview_prompts", "what they show, one picture for each", **how)
    option(
        group,
        "--preview-seed",
        "monitor.preview_seed",
        "of the first prompt's noise; the next ones count up (default: 0)",
        type=whole,
    )
    option(
        group,
        "--preview-steps",
        "monitor.preview_steps",
        f"of the sampler (default: {monitor.preview_steps})",
        type=whole,
    )
    option(
        group, "--preview-cfg", "monitor.preview_cfg", "guidance; 1 is none (default: the usual one, 7.5)", type=float
    )
    option(
        group,
        "--preview-resolution",
        "monitor.preview_resolution",
        "pixels of both sides, a multiple of 8 (default: --resolution)",
        type=whole,
    )


def _add_files(group: Any) -> None:
    option(
        group,
        "--keep-adapters",
        "monitor.keep_adapters",
        "adapters by step to keep beside the final one, the latest, one each time that --save-every saves (default: 0)",
        type=whole,
    )
    flag(
        group,
        "--keep-best",
        "monitor.keep_best",
        "also keep the adapter of the best validation loss, as NAME_best.safetensors",
    )
    flag(group, "--keep-state", "monitor.keep_state", "keep the resumable state of a finished run, to add steps to it")


def check_monitor(given: Given, config: TrainConfig) -> None:
    """Raise InputError for what would do nothing."""
    refuse_idle(given, _REFINES, config)
    if config.monitor.keep_adapters and not config.save_every:  # in the file: better known before hours of encoding
        raise InputError("monitor.keep_adapters is set, but save_every is 0; say after how many steps to keep one")
