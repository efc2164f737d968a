"""Captions of many pictures in one metadata.jsonl, the layout of Hugging Face's image folders."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..checks import is_unicode
from ..errors import InputError
from .captions import decode_text, one_line
from .pictures import ENDINGS

__all__ = ["METADATA", "inside", "read_metadata"]

METADATA = "metadata.jsonl"


def inside(path: str | Path, root: Path) -> bool:
    """Whether a path, its links followed, lies in the folder `root`, which is a real path."""
    return Path(os.path.realpath(path)).is_relative_to(root)


def read_metadata(folder: Path, name: str, listed: Collection[str]) -> dict[str, str]:
    """Read `folder`/metadata.jsonl: relative path of each picture that it names -> its caption, blank or one line.

    `folder` is a real path, `listed` are files directly in it that are known to be there, and `name` stands for the
    file in errors. Raises InputError with the line number for a line that cannot be used.
    """
    try:
        data = (folder / METADATA).read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check its permissions") from error
    captions: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(decode_text(data, name).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        file, text = _row(line, where)
        picture = posixpath.normpath(file.replace("\\", "/"))
        if picture in lines:
            raise InputError(f"{where} names {picture} again, as line {lines[picture]} does; keep one of the two")
        _check_picture(folder, picture, where, listed)
        captions[picture], lines[picture] = one_line(text), number
    return captions


def _row(line: str, where: str) -> tuple[str, str]:
    wanted = 'wanted {"file_name": "cat.png", "text": "a cat"}'
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON; {wanted}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not an object in braces; {wanted}")
    for key in ("file_name", "text"):
        if key not in row:
            raise InputError(f'{where} has no "{key}"; {wanted}')
        if not isinstance(row[key], str):
            raise InputError(f'{where} has a "{key}" that is no text ({json.dumps(row[key])[:40]}); {wanted}')
        if not is_unicode(row[key]):
            raise InputError(f'{where} has half a character in "{key}" (a lone surrogate); write it again')
    if not row["file_name"].strip():
        raise InputError(f'{where} has an empty "file_name"; {wanted}')
    return row["file_name"], row["text"]


def _check_picture(folder: Path, picture: str, where: str, listed: Collection[str]) -> None:
    if not picture.lower().endswith(ENDINGS):
        raise InputError(
            f"{where} names {picture}, which is no picture; wanted a file that ends in {' '.join(ENDINGS)}"
        )
    if picture in listed:
        return
    outside = f"{where} names {picture}, which lies outside its folder; move the picture into it, or take the line out"
    if picture.startswith(("../", "/")) or os.path.isabs(picture):
        raise InputError(outside)
    if not os.path.isfile(folder / picture):
        raise InputError(f"{where} names {picture}, which is not there; add the picture, or take the line out")
    if not inside(folder / picture, folder):
        raise InputError(outside)
