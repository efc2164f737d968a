"""Options to and from JSON and plain dictionaries."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from .errors import InputError

__all__ = ["from_dict", "from_json", "to_json"]

_LARGEST = 1 << 1000  # whole numbers above it are no floats

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Write a config as JSON with sorted keys."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_json(kind: type[T], text: str) -> T:
    """Read a config that `to_json` wrote; unknown names and wrong types raise InputError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{kind.__name__} is not valid JSON ({error}); give the text that to_json wrote") from error
    return from_dict(kind, values)


def from_dict(kind: type[T], values: Any) -> T:
    """Build a config from plain nested dictionaries (JSON or TOML); names that are absent keep their defaults."""
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} is {type(values).__name__}; wanted a table of names and values")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{kind.__name__} has no option {', '.join(unknown)}; known: {', '.join(sorted(hints))}")
    return kind(**{name: _convert(name, hints[name], value) for name, value in values.items()})


def _convert(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value)
    if typing.get_origin(hint) is tuple:
        return tuple(value) if isinstance(value, (list, tuple)) else value  # the config says what else it wants
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return float(value)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, kinds):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise InputError(f"{name} is {value!r}; wanted {wanted}")
    return value
