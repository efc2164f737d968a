"""The resumable state of a run: tensors and JSON, in safetensors form, in one file beside the adapter."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from .atomic import write_atomic
from .errors import InputError
from .runlog import log_path
from .train import Run

__all__ = ["goes_on", "load_state", "remove_leftovers", "remove_state", "save_state", "state_path"]

_VERSION = "2"


def state_path(output: Path) -> Path:
    """Where the state of the run that writes `output` lies: `name.safetensors` -> `name.state`.

    The ending keeps it out of the lists of LoRA files, where nobody could use it.
    """
    return output.with_name(f"{output.stem}.state")


def save_state(path: Path, run: Run, beside: Mapping[str, Any] | None = None) -> None:
    """Write the run's state atomically, and `beside` it what else JSON can hold: whatever happens, one whole file."""
    tensors, values = run.state()
    metadata = {
        "trilora.state_version": _VERSION,
        "trilora.state": json.dumps(values),
        "trilora.beside": json.dumps(dict(beside or {})),
    }
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(whole, temporary, metadata))


def load_state(path: Path, run: Run) -> dict[str, Any]:
    """Continue `run` from a saved state; what lay beside it.

    Raises InputError when there is none, it cannot be read or it is another run's; the run is then as it was.
    """
    metadata, tensors = _read(path)
    if metadata.get("trilora.state_version") != _VERSION:
        found = metadata.get("trilora.state_version", "none")
        raise InputError(f"{path} has state version {found}, wanted {_VERSION}; train without resume to start anew")
    values: dict[str, Any] = json.loads(metadata["trilora.state"])
    beside: dict[str, Any] = json.loads(metadata["trilora.beside"])
    if values["fingerprint"] != run.fingerprint(with_steps=False):
        raise InputError(
            f"{path} belongs to a run with other options, pictures or another model; give those of that run, or train"
            " without resume to start anew"
        )
    run.load_state(tensors, values)
    return beside


def goes_on(path: Path, fingerprint: str, steps: int) -> bool:
    """Whether `path` is the state of a run with this fingerprint (without steps) that has not yet done `steps`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return False
    if metadata.get("trilora.state_version") != _VERSION:
        return False
    values = json.loads(metadata["trilora.state"])
    return bool(values["fingerprint"] == fingerprint and values["step"] < steps)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot resume from {path} ({error}); train without resume to start anew") from error


def remove_state(path: Path) -> None:
    """Delete the state of a finished run."""
    path.unlink(missing_ok=True)


def remove_leftovers(output: Path) -> None:
    """Delete the half-written files that a killed run left: of `output`, state, log, adapters on the way, previews."""
    stem = glob.escape(output.stem)
    adapters = [f".{stem}{kind}.safetensors.*.part" for kind in ("", "_best", "_step_*", "_stopped_at_*")]
    beside = [f".{glob.escape(path.name)}.*.part" for path in (state_path(output), log_path(output))]
    beside += [f".{stem}.calibration.safetensors.*.part", f"{stem}_previews/.*.part"]
    for pattern in (*adapters, *beside):
        for part in output.parent.glob(pattern):
            part.unlink(missing_ok=True)
