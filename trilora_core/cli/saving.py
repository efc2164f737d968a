"""Where verbs write to: checks that come before hours of work."""

from __future__ import annotations

from pathlib import Path

import torch

from ..atomic import check_writable
from ..errors import InputError

__all__ = ["DTYPES", "check_output", "check_picture", "check_report"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def check_output(path: Path) -> Path:
    """The path of an adapter to write; raises InputError for another ending or a folder that cannot be written."""
    return _check(path, ".safetensors")


def check_picture(path: Path) -> Path:
    """The path of a picture to write; raises InputError for another ending or a folder that cannot be written."""
    return _check(path, ".png")


def check_report(path: Path) -> Path:
    """The path of a report to write; raises InputError for another ending or a folder that cannot be written."""
    return _check(path, ".json")


def _check(path: Path, ending: str) -> Path:
    if path.suffix.lower() != ending:
        raise InputError(f"{path} does not end in {ending}; name the file {path.with_suffix(ending).name}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it, such as {path / ('result' + ending)}")
    check_writable(path.parent, leave=False)  # what comes next may be refused yet
    return path
