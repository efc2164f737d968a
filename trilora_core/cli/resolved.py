"""The options of a run as they came out, as a --config file beside its adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import write_text
from ..checks import is_unicode
from ..config import TrainConfig
from ..errors import InputError
from ..home import expanded
from .data_options import BYTES, IN_MEMORY, CacheOptions
from .run_options import RunOptions

__all__ = ["check_resolved", "resolved", "resolved_path", "write_resolved"]

_HEAD = "# What made "  # begins every file that is written here


def resolved_path(output: Path) -> Path:
    """Where the options of the run that writes `output` lie: `name.safetensors` -> `name.toml`."""
    return output.with_name(f"{output.stem}.toml")


def check_resolved(options: RunOptions) -> None:
    """Prove before the work that the file can be written, and that none of somebody else lies in its place.

    Raises InputError for a name that is not UTF-8, and for a file that a user wrote, such as the --config itself.
    """
    for line in resolved(options, options.train).splitlines():
        if not is_unicode(line):
            raise InputError(f"{line!a} is not UTF-8; rename what it names")
    path = resolved_path(options.output)
    try:
        with path.open("rb") as file:
            ours = file.read(len(_HEAD)) == _HEAD.encode()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; rename what is there") from error
    if not ours:
        raise InputError(
            f"{path} is not of an earlier run, and the options of this one would replace it; rename it, or choose"
            " another --output"
        )


def write_resolved(output: Path, options: RunOptions, config: TrainConfig) -> None:
    """Write them; raises InputError where the file cannot be written."""
    write_text(resolved_path(output), resolved(options, config))


def resolved(options: RunOptions, config: TrainConfig) -> str:
    """The --config file that runs this again, from any folder and on any number of processes.

    `config` is the run's own: steps in place of epochs, the batch of all processes together, no preset.
    """
    values = {
        "model": _absolute(options.model),
        "output": str(options.output),
        "start_from": _absolute(options.start_from),
        "dtype": options.dtype,
        "plot": str(options.plot.absolute()) if options.plot else "",
        "device": options.device,
        "base_dtype": options.base_dtype,
        **_cache(options.cache),
        **asdict(config),
        "data": _placed(asdict(options.data)),
        "calibration": _placed(asdict(options.calibration)),
    }
    if options.prior is not None:
        values["prior"] = _placed(asdict(options.prior))
    values["total_batch_size"] = values.pop("batch_size")
    del values["epochs"]
    head = f"{_HEAD}{options.output.name}, by TriLoRA {__version__}. To run it again: train --config THIS FILE\n"
    return head + _toml(values)


def _cache(cache: CacheOptions) -> dict[str, Any]:
    where = IN_MEMORY if cache.folder is None else str(cache.folder.absolute())
    return {"cache": where, "cache_limit": cache.limit / BYTES}


def _placed(table: dict[str, Any]) -> dict[str, Any]:
    """The table with the places of its files and folders from the root on."""
    return {
        name: _placed(value) if isinstance(value, dict) else _absolute(value) if name in ("folder", "file") else value
        for name, value in table.items()
    }


def _absolute(place: str) -> str:
    return str(expanded(place).absolute()) if place else ""


def _toml(values: Mapping[str, Any], table: str = "") -> str:
    """The values, then their tables; None, which TOML does not have, is the default of what may be None."""
    lines = [f"\n[{table}]"] if table else []
    lines += [f"{name} = {_value(v)}" for name, v in values.items() if v is not None and not isinstance(v, Mapping)]
    tables = [_toml(v, f"{table}.{name}" if table else name) for name, v in values.items() if isinstance(v, Mapping)]
    return "\n".join(lines) + "\n" + "".join(tables)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(entry) for entry in value)}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for one character that JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)
