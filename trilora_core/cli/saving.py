"""Where verbs write to: checks that come before hours of work."""

from __future__ import annotations

import os.path
from pathlib import Path

import torch

from ..atomic import check_name, check_spelling, check_writable
from ..errors import InputError

__all__ = ["DTYPES", "check_file", "check_output", "check_page", "check_picture", "check_report"]

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


def check_page(path: Path) -> Path:
    """The path of a page to write; raises InputError for another ending or a folder that cannot be written."""
    return _check(path, ".html")


def check_file(path: Path, example: str) -> None:
    """Prove before hours of work that a file can be made there; `example` names one for who gives a folder."""
    if not path.name or os.path.isdir(path):  # False where the name is too long, too
        raise InputError(f"{path} is a folder; give the name of a file in it, such as {path / example}")
    check_name(path)
    check_spelling(path)
    check_writable(path.parent, leave=False)  # what comes next may be refused yet


def _check(path: Path, ending: str) -> Path:
    check_file(path, f"result{ending}")
    if path.suffix.lower() != ending:
        raise InputError(f"{path} does not end in {ending}; name the file {path.with_suffix(ending).name}")
    return path
