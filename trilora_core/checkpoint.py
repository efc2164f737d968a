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
from .jsontext import read_json
from .runlog import log_path
from .train import Run

__all__ = ["goes_on", "load_state", "remove_leftovers", "remove_state", "save_state", "state_path"]

_VERSION = "3"


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
    try:
        values, beside = _table(metadata["trilora.state"]), _table(metadata["trilora.beside"])
        mark = values["fingerprint"]
    except (KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    if mark != run.fingerprint(with_steps=False):
        raise InputError(
            f"{path} belongs to a run with other options, pictures or another model; give those of that run, or train"
            " without resume to start anew"
        )
    _take(path, run, tensors, values)
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
    try:
        values = _table(metadata["trilora.state"])
        return bool(values["fingerprint"] == fingerprint and _steps(values) < steps)
    except (KeyError, ValueError):  # damaged
        return False


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot resume from {path} ({error}); train without resume to start anew") from error


def _take(path: Path, run: Run, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Continue the run, or leave it as it was."""
    held, before = run.state()
    held = {name: tensor.clone() for name, tensor in held.items()}
    try:
        _check(held, tensors, values)
        run.load_state(tensors, values)
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        run.load_state(held, before)
        raise _damaged(path, error) from error


def _check(held: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """ValueError for a state whose numbers are none; which tensors an optimizer has is its own affair."""
    for name, tensor in held.items():
        if name.startswith("optimizer.") or name == "losses":
            continue
        if name not in tensors or tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is missing or of another shape")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")
    losses = tensors["losses"]
    if losses.dtype != held["losses"].dtype or losses.shape != (_steps(values),) or not isinstance(values["bad"], int):
        raise ValueError("the count of its steps does not fit")


def _steps(values: Mapping[str, Any]) -> int:
    step = values["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step is {step!r:.40}")
    return step


def _table(text: str) -> dict[str, Any]:
    value = read_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"a table was wanted, not {type(value).__name__}")
    return value


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"the state {path} is damaged ({error!r}); train without resume to start anew")


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
