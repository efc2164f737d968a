"""Checks of single options: each raises InputError with what came and what was wanted."""

from __future__ import annotations

import math

from .errors import InputError

__all__ = ["flag", "is_unicode", "number", "one_of", "patterns", "text", "whole"]


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Want one of the known words."""
    if value not in known:
        raise InputError(f"{name} is {value!r}; known: {', '.join(known)}")


def whole(name: str, value: int, least: int) -> None:
    """Want a whole number from `least` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; wanted a whole number from {least} up")


def patterns(name: str, values: tuple[str, ...]) -> None:
    """Want texts that are not empty."""
    if not isinstance(values, tuple) or not all(isinstance(value, str) and value.strip() for value in values):
        raise InputError(f"{name} is {values!r}; wanted a list of texts that are not empty")
    for value in values:
        text(name, value)


def is_unicode(value: str) -> bool:
    """Whether a file can hold the text; Linux takes any bytes for names, and Python has half characters for such."""
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def text(name: str, value: str) -> None:
    """Want a text of whole characters: half an emoji, or bytes of another encoding, no file can hold."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; wanted a text")
    if not is_unicode(value):
        raise InputError(f"{name} is {value!a}, which holds half a character; write it again")


def flag(name: str, value: bool) -> None:
    """Want true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; wanted true or false")


def number(
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    """Want a finite number within the limits."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not least <= value <= most or not above < value < below:
        limits = [f"above {above:g}"] if above > -math.inf else []
        if most < math.inf:
            limits.append(f"from {least:g} to {most:g}" if least > -math.inf else f"at most {most:g}")
        elif least > -math.inf:
            limits.append(f"from {least:g} up")
        limits += [f"below {below:g}"] if below < math.inf else []
        raise InputError(f"{name} is {value!r}; wanted a finite number {' and '.join(limits)}".rstrip())
