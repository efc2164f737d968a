"""The calibration of a run: made or read, kept beside the adapter, and made only once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backend_diffusers import DiffusersEncoder
from ..calibrate import calibrate, check_calibration, facts_of
from ..calibration import Calibration, calibration_path, read_calibration, read_facts, write_calibration
from ..config import CalibrationConfig, TrainConfig
from ..config_json import from_dict
from ..data import Dataset
from ..errors import InputError
from ..home import expanded
from ..prompts import BROAD
from ..protocols import Denoiser
from .options import flag, option
from .parser import OneLineParser
from .pictures import reported

__all__ = ["add_calibration_options", "find_calibration", "read_calibration_options"]


def add_calibration_options(parser: OneLineParser) -> None:
    """Declare where the calibration comes from."""
    group = parser.add_argument_group(
        "calibration", "what the layers see on your pictures and on other prompts, for --init contrast"
    )
    flag(
        group,
        "--calibrate",
        "calibration.make",
        "look through pictures and prior prompts before the first step, about as long as 20 steps of 4 pictures, and"
        " keep what was found as NAME.calibration.safetensors; one that is there already is taken if it fits",
    )
    option(
        group,
        "--calibration",
        "calibration.file",
        "take the calibration in this file, of the same model and resolution",
        metavar="FILE",
    )
    how: dict[str, Any] = {"nargs": "+", "metavar": "TEXT"}
    option(
        group,
        "--prior-prompts",
        "calibration.prompts",
        "what the model should go on to draw as it did: texts, or one file with a prompt in each line; the more"
        f" different ones the better (default: {len(BROAD)} broad ones that are built in)",
        **how,
    )


def read_calibration_options(table: Any, config: TrainConfig) -> CalibrationConfig:
    """Read the table [calibration]; InputError for what is missing or would do nothing."""
    found = from_dict(CalibrationConfig, table)
    contrast, wanted = config.adapter.init == "contrast", found.make or bool(found.file)
    if contrast and not wanted:
        raise InputError("--init contrast needs a calibration; add --calibrate, or --calibration FILE")
    if wanted and not contrast:
        name = "--calibrate" if found.make else "--calibration"
        raise InputError(f"{name} does nothing without --init contrast; add it, or leave {name} out")
    return replace(found, file=os.path.expanduser(found.file), prompts=_read_prompts(found.prompts))


def find_calibration(
    pipe: Any,
    denoiser: Denoiser,
    dataset: Dataset,
    config: TrainConfig,
    wanted: CalibrationConfig,
    output: Path,
    *,
    silent: bool = False,
) -> tuple[Calibration, str]:
    """The calibration that the options ask for, and where it is from, in a few words.

    One that is made is kept beside `output`, and taken again by the next run with the same model, pictures and prompts.
    Raises InputError for a file that is none, or that is for another model, resolution or choice of layers.
    """
    path, layers = Path(wanted.file) if wanted.file else calibration_path(output), config.adapter.layers
    if wanted.file:
        found, where = read_calibration(path), f"from {path.resolve()}"
    else:
        encoder, prompts = DiffusersEncoder(pipe), wanted.prompts or BROAD
        facts = facts_of(denoiser, dataset, prompts, encoder.caption_fingerprint, layers)
        where = f"kept as {path.resolve()}"
        kept = _kept(path, facts.key)
        if kept is None:
            with reported("calibrating", "look", silent) as progress:
                kept = calibrate(denoiser, dataset, encoder.captions(prompts), facts, layers, progress)
            write_calibration(path, kept)
            where = f"now, {where}"
        found = kept
    check_calibration(found, denoiser, dataset, denoiser.targets(layers))
    other = "" if found.facts.data_hash == dataset.content_hash else "; it was made with other pictures"
    return found, f"{where} ({found.size / 1e6:.1f} MB){other}"


def _kept(path: Path, key: str) -> Calibration | None:
    """The calibration that an earlier run left, if it is the one that is wanted; a damaged one is made anew."""
    try:
        return read_calibration(path) if path.is_file() and read_facts(path).key == key else None
    except InputError:
        return None


def _read_prompts(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts themselves, where one text names a file that holds them line by line."""
    if len(texts) != 1 or not expanded(texts[0]).is_file():
        return texts
    path = expanded(texts[0])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prior prompts in {path} cannot be read ({error}); give a text file in UTF-8") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise InputError(f"{path} has no prior prompt; write one in each line")
    return found
