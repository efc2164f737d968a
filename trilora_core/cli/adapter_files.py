"""The adapter files that a verb draws with: what they are called, and whether they fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backend_diffusers import apply_adapter
from ..errors import InputError
from ..fileformat import Adapter

__all__ = ["check_fit", "names_of_files"]


def names_of_files(files: Sequence[str]) -> list[str]:
    """Names for files: without the folder, unless two share one."""
    stems = [Path(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(Path(file).with_suffix("")) for file in files]


def check_fit(pipe: Any, adapter: Adapter, file: str | Path, strength: float) -> None:
    """Prove before hours of drawing that the model takes the adapter; InputError that names the file when not."""
    try:
        with apply_adapter(pipe, adapter, strength):
            pass
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
