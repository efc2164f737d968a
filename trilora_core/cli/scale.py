"""How many pictures a step takes, and how many of them each process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors

from ..checkpoint import state_path
from ..config import TrainConfig
from ..errors import InputError
from ..jsontext import read_json

__all__ = ["Begun", "begun", "whole_batch"]


@dataclass(frozen=True)
class Begun:
    """The batch of a run that was stopped, and how many processes shared it."""

    batch_size: int
    processes: int


def begun(output: Path) -> Begun | None:
    """What the state of the run that writes `output` says; None without one that can be read."""
    try:
        with safetensors.safe_open(state_path(output), framework="pt") as file:
            values = read_json((file.metadata() or {})["trilora.state"])
        return Begun(int(read_json(values["config"])["batch_size"]), int(values.get("processes", 1)))
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        return None  # loading it says what is wrong with it


def whole_batch(config: TrainConfig, total: int, processes: int, found: Begun | None = None) -> tuple[TrainConfig, int]:
    """The options with the batch of all processes together, and how many pictures of it one forward may hold, 0: all.

    `config.batch_size` is for each process, `total` for all where it is not 0. A run that goes on by the same words on
    another number of processes keeps the batch that it was `found` with: each then does its share of it, in pieces of
    the size that was asked for. Raises InputError where there is not a picture for each process.
    """
    each = config.batch_size
    whole = total or each * processes
    if found is not None and not total and each * found.processes == found.batch_size:
        whole = found.batch_size
    if whole < processes:
        raise InputError(
            f"the batch of {whole} cannot be shared by {processes} processes; start at most {whole}, or choose a larger"
            " --total-batch-size"
        )
    share = -(-whole // processes)
    return replace(config, batch_size=whole), each if not total and share > each else 0
