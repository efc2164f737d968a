"""What the layers of a model see on a training set and on everything else: the record, and its file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from .atomic import write_atomic
from .config_json import from_dict
from .contrast import contrast
from .errors import InputError
from .jsontext import read_json
from .moments import Moments, Storage

__all__ = ["SUFFIX", "Calibration", "Facts", "calibration_path", "read_calibration", "read_facts", "write_calibration"]

SUFFIX = ".calibration.safetensors"
_VERSION = "1"
_SIDES = ("learned", "prior")
_NUMBERS = (torch.float16, torch.float32)
_WANTED = "give a file that train --calibrate or TriLoRA Calibrate wrote"


@dataclass(frozen=True)
class Facts:
    """Everything that a calibration depends on; equal facts, equal calibration."""

    architecture: str
    base_fingerprint: str
    base_name: str
    data_hash: str
    resolution: int  # pixels
    prompts_hash: str  # of the prior prompts and of what encoded them
    layers_hash: str
    looks: int  # at the training set
    prior_looks: int
    seed: int
    learned: Storage
    prior: Storage

    @property
    def key(self) -> str:
        """A hash of the facts; the base's name, which may change, is left out."""
        told = {name: value for name, value in asdict(self).items() if name != "base_name"}
        return hashlib.sha256(json.dumps([_VERSION, told], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Second moments of the input of every layer: `learned` on the training set (C1), `prior` on the rest (C0).

    Layers that are given the same input have one entry: `inputs` leads from a layer's file stem to it.
    """

    facts: Facts
    inputs: Mapping[str, str]
    learned: Mapping[str, Moments]
    prior: Mapping[str, Moments]

    def moments(self, stem: str) -> tuple[Moments, Moments] | None:
        """(C1, C0) of a layer's input; None for a layer that was not calibrated."""
        name = self.inputs.get(stem)
        return None if name is None else (self.learned[name], self.prior[name])

    def directions(self, ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """Unit rows (at most rank, in) that set the training set apart, for the layers that were calibrated.

        Each input is solved once, for the largest rank of its layers.
        """
        most: dict[str, int] = {}
        for stem, rank in ranks.items():
            if stem in self.inputs:
                name = self.inputs[stem]
                most[name] = max(rank, most.get(name, 0))
        found = {name: contrast(self.learned[name], self.prior[name], rank) for name, rank in most.items()}
        return {stem: found[self.inputs[stem]][:rank] for stem, rank in ranks.items() if stem in self.inputs}

    @property
    def size(self) -> int:
        """Bytes of all moments, in memory and in the file."""
        parts = (
            part for side in (self.learned, self.prior) for one in side.values() for part in one.tensors().values()
        )
        return sum(part.numel() * part.element_size() for part in parts)


def calibration_path(output: Path) -> Path:
    """Where the calibration beside an adapter lies: `name.safetensors` -> `name.calibration.safetensors`."""
    return output.with_name(f"{output.stem}{SUFFIX}")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file atomically: the tensors, and beside them one JSON text of all else."""
    tensors: dict[str, Tensor] = {}
    sides: dict[str, dict[str, Any]] = {}
    for side, held in zip(_SIDES, (calibration.learned, calibration.prior), strict=True):
        sides[side] = {name: [moments.count, moments.trace] for name, moments in held.items()}
        for name, moments in held.items():
            tensors |= {f"{name}/{side}/{kind}": part.contiguous() for kind, part in moments.tensors().items()}
    told = {"facts": asdict(calibration.facts), "inputs": dict(calibration.inputs), "sides": sides}
    metadata = {"trilora.calibration_version": _VERSION, "trilora.calibration": json.dumps(told)}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_facts(path: Path) -> Facts:
    """What a calibration file was made from, without its tensors; InputError when it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _facts(path, _told(path, file.metadata() or {}))
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read the calibration {path} ({error}); {_WANTED}") from error


def read_calibration(path: Path) -> Calibration:
    """Read a calibration; InputError when the file is none, of another version, or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            told = _told(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read the calibration {path} ({error}); {_WANTED}") from error
    try:
        learned, prior = (_side(tensors, side, told["sides"][side]) for side in _SIDES)
        found = Calibration(_facts(path, told), {str(k): str(v) for k, v in told["inputs"].items()}, learned, prior)
        _check_whole(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"the calibration {path} is damaged ({error!r}); make it anew") from error
    return found


def _told(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    version = metadata.get("trilora.calibration_version")
    if version is None:
        raise InputError(f"{path} is no calibration; {_WANTED}")
    if version != _VERSION:
        raise InputError(f"{path} has calibration version {version}, wanted {_VERSION}; make it anew")
    try:
        told = read_json(metadata["trilora.calibration"])
        return {"facts": told["facts"], "inputs": told["inputs"], "sides": told["sides"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the calibration {path} is damaged ({error!r}); make it anew") from error


def _facts(path: Path, told: Mapping[str, Any]) -> Facts:
    try:
        return from_dict(Facts, told["facts"])
    except (InputError, TypeError) as error:
        raise InputError(f"the calibration {path} is damaged ({error}); make it anew") from error


def _side(tensors: Mapping[str, Tensor], side: str, told: Mapping[str, Any]) -> dict[str, Moments]:
    kinds = ("packed", "vectors", "values")
    return {
        name: Moments(int(count), float(trace), *(tensors.get(f"{name}/{side}/{kind}") for kind in kinds))
        for name, (count, trace) in told.items()
    }


def _check_whole(calibration: Calibration) -> None:
    for name in set(calibration.inputs.values()):
        learned, prior = calibration.learned[name], calibration.prior[name]
        for moments in (learned, prior):
            _check_sums(name, moments)
        if learned.width != prior.width or (prior.packed is None and learned.packed is not None):
            raise ValueError(f"{name} differs on its two sides")


def _check_sums(name: str, moments: Moments) -> None:
    shapes = {kind: tuple(part.shape) for kind, part in moments.tensors().items()}
    if set(shapes) == {"packed"}:
        right = shapes["packed"] == (moments.width * (moments.width + 1) // 2,) and moments.width > 0
    else:
        right = set(shapes) == {"vectors", "values"} and len(shapes["vectors"]) == 2
        right = right and shapes["vectors"][1:] == shapes["values"] and 0 < shapes["values"][0] <= shapes["vectors"][0]
    if not right:
        raise ValueError(f"{name} has {shapes}")
    if not all(part.dtype in _NUMBERS and part.isfinite().all() for part in moments.tensors().values()):
        raise ValueError(f"{name} holds numbers that are not finite")
    if not 0 <= moments.trace < math.inf or (moments.values is not None and float(moments.values.min()) < 0):
        raise ValueError(f"{name} holds squares below zero or without end")
