"""Options that know their place in the configs: as flags, and by the same names in a TOML file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import InputError
from .parser import Arguments, OneLineParser, whole

__all__ = ["Given", "Refines", "add_config", "flag", "option", "read_given", "refuse_idle"]

_MARK = "option:"  # tells these options from other arguments

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """What the user gave: nested tables with the names of config.py, and the places that flags set in them."""

    values: dict[str, Any]
    flags: frozenset[str]  # such as "data.masks.folder"


@dataclass(frozen=True)
class Refines(Generic[T]):
    """A flag that refines another one: without that it would do nothing."""

    flag: str
    wanted: str  # the other one, as the user would give it
    on: Callable[[T], bool]  # whether the config has it


def add_config(parser: OneLineParser) -> None:
    """Declare the file that options may stand in."""
    parser.add_argument("--config", metavar="RUN.toml", type=Path, help="read options from this file; flags win")


def option(group: Any, name: str, place: str, text: str, **how: Any) -> None:
    """Declare an option with a value; it stays out of the namespace unless it is given."""
    if "choices" not in how:
        how.setdefault("metavar", "N" if how.get("type") is whole else "X")
    group.add_argument(name, dest=_MARK + place, default=argparse.SUPPRESS, help=text, **how)


def flag(group: Any, name: str, place: str, text: str, value: bool | str = True) -> None:
    """Declare an option that sets its place to `value`."""
    group.add_argument(
        name, dest=_MARK + place, default=argparse.SUPPRESS, action="store_const", const=value, help=text
    )


def read_given(arguments: Arguments) -> Given:
    """Merge the TOML file, if any, with the flags, which win; InputError for a file that cannot be read."""
    values = _read_toml(arguments.config) if arguments.config else {}
    flags = {name.removeprefix(_MARK): value for name, value in vars(arguments).items() if name.startswith(_MARK)}
    for place, value in flags.items():
        _put(values, place, value)
    return Given(values, frozenset(flags))


def _read_toml(path: Path) -> dict[str, Any]:
    toml = _toml_reader()
    try:
        found: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark before it
        return found
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check the name") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML ({error}); correct that line") from error


def _toml_reader() -> Any:
    """Python's own, or before 3.11 the package that became it: no dependency, for only --config needs it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise InputError('--config needs tomli before Python 3.11; run: pip install "tomli>=2.0"') from error
    return tomllib


def _put(values: dict[str, Any], place: str, value: Any) -> None:
    """Set "optimizer.learning_rate" in nested tables, making those that are not there."""
    *tables, name = place.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"{table} in the --config file is {values!r}; wanted a table [{table}]")
    values[name] = value


def refuse_idle(given: Given, refinements: Mapping[str, Refines[T]], config: T) -> None:
    """Raise InputError for a flag that would do nothing; `refinements` by their places."""
    for place in sorted(given.flags & refinements.keys()):
        found = refinements[place]
        if not found.on(config):
            raise InputError(f"{found.flag} does nothing without {found.wanted}; add it, or leave {found.flag} out")
