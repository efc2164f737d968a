"""JSON that strangers wrote, read without harm, and numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["finite", "read_json"]

_LONGEST = 1 << 24  # letters; the longest of ours, the losses of a long run, has some millions
_DEEPEST = 64  # arrays and objects in each other


def read_json(text: str | bytes) -> Any:
    """The value that JSON holds; ValueError for whatever is none, is nested too deep or takes too much memory."""
    if len(text) > _LONGEST:
        raise ValueError(f"JSON of {len(text)} letters; wanted at most {_LONGEST}")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deep") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return value
    raise ValueError("JSON is nested too deep")


def finite(value: Any) -> Any:
    """The value with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value


def _parts(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in inner if isinstance(part, (dict, list))]
