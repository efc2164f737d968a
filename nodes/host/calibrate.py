"""Calibration on the host's own model: made once, kept beside the adapters."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

from ...trilora_core.calibrate import calibrate, facts_of
from ...trilora_core.calibration import SUFFIX, Calibration, read_calibration, read_facts, write_calibration
from ...trilora_core.config import LayerConfig
from ...trilora_core.data import Dataset
from ...trilora_core.errors import InputError
from ...trilora_core.prompts import BROAD
from .denoiser import HostDenoiser
from .encode import HostEncoder
from .events import announce, check_interrupt, reporter
from .paths import output_folder, unique_file
from .training import trainable_patcher, training

__all__ = ["calibrate_in_host"]

KEY_LENGTH = 12  # hexadecimal digits of a name that is made up


def calibrate_in_host(
    model: Any,
    data: Dataset,
    clip: Any,
    vae: Any,
    prompts: str,
    name: str,
    layers: LayerConfig,
    node_id: str | None,
) -> Calibration:
    """The calibration of these layers of the host's model: the kept one where it is the very one, else a new one.

    `prompts` holds a prior prompt in each line; without any, the built-in ones are taken. The model is as it was at
    every exit; the host's interrupt passes through, and nothing is kept then. Raises InputError for what cannot be
    calibrated.
    """
    if clip is None or vae is None:
        raise InputError(
            "this data set has no clip to encode the prior prompts with; take TriLoRA Dataset (folder) or (images)"
        )
    texts = [line.strip() for line in prompts.splitlines() if line.strip()] or list(BROAD)
    patcher, encoder = trainable_patcher(model), HostEncoder(clip, vae)
    denoiser = HostDenoiser(patcher)
    facts = facts_of(denoiser, data, texts, encoder.caption_fingerprint, layers)
    path, there = _place(name.strip() or f"calibration_{facts.key[:KEY_LENGTH]}", facts.key)
    if there:
        found, told = read_calibration(path), "already calibrated: read from"
    else:
        prior = []
        for text in texts:  # before a model that is to run has the memory for itself
            check_interrupt()
            prior += encoder.captions([text])
        with training(patcher):
            found = calibrate(denoiser, data, prior, facts, layers, reporter(node_id, "looked"))
        write_calibration(path, found)
        told = "kept as"
    size = f"{len(found.inputs)} layers, {found.size / 1e6:.1f} MB"
    announce(node_id, f"{size}; {told} {path}")
    return found


def _place(name: str, key: str) -> tuple[Path, bool]:
    """The file of this name that holds the calibration with this key, and True; else a free one, and False."""
    folder = output_folder()
    free = unique_file(folder, name, SUFFIX)
    for path in (folder / f"{name}{SUFFIX}", *sorted(folder.glob(f"{escape(name)}_*{SUFFIX}"))):
        if path.is_file() and _key(path) == key:
            return path, True
    return free, False


def _key(path: Path) -> str:
    try:
        return read_facts(path).key
    except InputError:  # another file by that name: it stays, and this one takes the next name
        return ""
