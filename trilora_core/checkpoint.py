"""The resumable state of a run: tensors and JSON, in safetensors form, in one file beside the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
from safetensors.torch import save_file

from .atomic import write_atomic
from .errors import InputError
from .train import Run

__all__ = ["load_state", "remove_state", "save_state", "state_path"]

_VERSION = "1"


def state_path(output: Path) -> Path:
    """Where the state of the run that writes `output` lies: `name.safetensors` -> `name.state`.

    The ending keeps it out of the lists of LoRA files, where nobody could use it.
    """
    return output.with_name(f"{output.stem}.state")


def save_state(path: Path, run: Run) -> None:
    """Write the run's state atomically."""
    tensors, values = run.state()
    metadata = {"trilora.state_version": _VERSION, "trilora.state": json.dumps(values)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(whole, temporary, metadata))


def load_state(path: Path, run: Run) -> None:
    """Continue `run` from a saved state; raises InputError when there is none or it is another run's."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot resume from {path} ({error}); train without resume to start anew") from error
    if metadata.get("trilora.state_version") != _VERSION:
        found = metadata.get("trilora.state_version", "none")
        raise InputError(f"{path} has state version {found}, wanted {_VERSION}; train without resume to start anew")
    values = json.loads(metadata["trilora.state"])
    if values["fingerprint"] != run.fingerprint(with_steps=False):
        raise InputError(
            f"{path} belongs to a run with other options, pictures or another model; give those of that run, or train"
            " without resume to start anew"
        )
    run.load_state(tensors, values)


def remove_state(path: Path) -> None:
    """Delete the state of a finished run."""
    path.unlink(missing_ok=True)
