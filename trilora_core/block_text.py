"""Strengths of blocks as text: `IN04-08:0.5, MID:1, OUT:0, TE:0.7`, a preset's name, or a list of numbers.

Entries hold from left to right, a later one over an earlier one; blocks that none names keep 1. The lists and the names
of the presets are those of sd-webui-lora-block-weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from .blocks import LISTS, REST, Block
from .errors import InputError

__all__ = ["PRESETS", "read_blocks"]

_ALIASES = {"BASE": "TE", "M": "MID", "D": "DOUBLE", "S": "SINGLE", "J": "JOINT"}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_EVERYWHERE = {"ALL": "*:1", "NONE": "*:0", "ALL0.5": "*:0.5"}
# Shallow and deep blocks on the way in, deep and shallow ones on the way out.
_HALVES = {
    "sd15": ("IN00-04", "IN05-11", "OUT00-06", "OUT07-11"),
    "sdxl": ("IN00-05", "IN06-08", "OUT00-02", "OUT03-08"),
}


def _parts(architecture: str) -> dict[str, str]:
    """The presets of a U-Net: each holds the text encoders and a part of the blocks."""
    if architecture not in _HALVES:
        return {}
    in_shallow, in_deep, out_deep, out_shallow = _HALVES[architecture]
    parts = {
        "INS": [in_shallow],
        "IND": [in_deep],
        "INALL": ["IN"],
        "MIDD": [in_deep, "MID", out_deep],
        "OUTD": [out_deep],
        "OUTS": [out_shallow],
        "OUTALL": ["OUT"],
    }
    return {name: "*:0, TE:1, " + ", ".join(f"{part}:1" for part in kept) for name, kept in parts.items()}


PRESETS: tuple[str, ...] = (*_EVERYWHERE, *_parts("sd15"))
"""Every preset: ALL, NONE and ALL0.5 for any model, the others for the U-Nets of SD 1.5 and SDXL."""


def read_blocks(text: str, architecture: str, known: Sequence[Block], preset: str = "ALL") -> dict[Block, float]:
    """The strength of every known block: those of the preset, changed by what the text says.

    Raises InputError, with the place of the first character that cannot be read (from 1) and what was expected there.
    """
    strengths = dict.fromkeys(known, 1.0)
    _Text(_preset(preset, architecture, "the preset"), architecture, known).read(strengths)
    _Text(text, architecture, known).read(strengths)
    return strengths


def _preset(name: str, architecture: str, where: str) -> str:
    known = _EVERYWHERE | _parts(architecture)
    if name not in known:
        what = "an adapter of unknown architecture" if not architecture else f"{architecture} adapters"
        raise InputError(f"{where} is {name!r}; known for {what}: {', '.join(known)}")
    return known[name]


class _Text:
    """A text that is read from left to right."""

    def __init__(self, text: str, architecture: str, known: Sequence[Block]) -> None:
        self._text, self._architecture, self._known = text, architecture, known
        self._at = 0

    def read(self, strengths: dict[Block, float]) -> None:
        self._take(r"[\s,;]*")
        if re.match(rf"{_NUMBER}\s*(?:[,;\s]|$)", self._text[self._at :]):
            return self._read_list(strengths)
        while self._at < len(self._text):
            self._read_entry(strengths)
            self._end_entry(r"\s*(?:[,;\n]\s*)+")

    def _read_entry(self, strengths: dict[Block, float]) -> None:
        name = re.match(r"([A-Za-z]+(?:0\.5)?)\s*(?:[,;\n]|$)", self._text[self._at :])
        if name and self._group(name[1]) is None:
            where = f"blocks, character {self._at + 1}: the preset"
            inner = _preset(name[1].upper(), self._architecture, where)
            self._at += len(name[1])
            return _Text(inner, self._architecture, self._known).read(strengths)
        chosen = self._read_blocks()
        if not self._take(r"\s*:\s*"):
            raise self._wrong("a colon and a strength, such as :0.5")
        strengths.update(dict.fromkeys(chosen, self._read_strength("a number, such as 0.5")))

    def _read_blocks(self) -> Iterable[Block]:
        """`*`, a group, one of its blocks, or some of them in a row."""
        if self._take(r"\*"):
            return self._known
        start = self._at
        name = self._take(r"[A-Za-z]+")
        group = self._group(name)
        if group is None:
            self._at = start
            raise self._wrong(f"one of {self._groups()}")
        numbers = {block.number for block in self._known if block.group == group}
        if numbers == {None}:
            self._take(r"0+(?!\d)")  # M00
            return [Block(group)]
        if not re.match(r"\s*\d", self._text[self._at :]):
            return [Block(group, number) for number in numbers]
        self._take(r"\s*")
        first = self._read_number(group, numbers)
        if not self._take(r"\s*-\s*"):
            return [Block(group, first)]
        self._take(rf"(?i:{name})\s*")  # IN04-IN08
        last = self._read_number(group, {number for number in numbers if number is not None and number >= first})
        return [Block(group, number) for number in range(first, last + 1) if number in numbers]

    def _read_number(self, group: str, numbers: set[int | None]) -> int:
        start = self._at
        digits = self._take(r"\d{1,9}")
        if not digits or int(digits) not in numbers:
            self._at = start
            raise self._wrong(f"one of {_span(group, numbers)}")
        return int(digits)

    def _read_list(self, strengths: dict[Block, float]) -> None:
        lists = {len(names): names for names in LISTS.get(self._architecture, ())}
        numbers: list[float] = []
        while self._at < len(self._text):
            numbers.append(self._read_strength("a number: a list of numbers stands alone"))
            self._end_entry(r"[\s,;]+")
        if len(numbers) not in lists:
            wanted = " or ".join(map(str, lists)) + " numbers" if lists else "names, such as *:0.5"
            raise InputError(f"blocks holds {len(numbers)} numbers; wanted {wanted} for {self._architecture or 'this'}")
        strengths.update({block: 0.0 for block in strengths if block != REST})
        for blocks, value in zip(lists[len(numbers)], numbers, strict=True):
            strengths.update({block: value for block in blocks if block in strengths})

    def _read_strength(self, expected: str) -> float:
        start = self._at
        text = self._take(_NUMBER)
        if not text or not math.isfinite(float(text)):
            self._at = start
            raise self._wrong("a finite number" if text else expected)
        return float(text)

    def _end_entry(self, separator: str) -> None:
        if self._at < len(self._text) and not self._take(separator):
            self._take(r"\s+")
            if self._at < len(self._text):
                raise self._wrong("a comma or the end")

    def _group(self, name: str) -> str | None:
        """The group that a name stands for, None where the model has no such."""
        group = _ALIASES.get(name.upper(), name.upper())
        return group if any(block.group == group for block in self._known) else None

    def _take(self, pattern: str) -> str:
        """What matches here, which is then behind; "" when nothing does."""
        match = re.compile(pattern).match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _groups(self) -> str:
        groups = dict.fromkeys(block.group for block in self._known)
        spans = [_span(group, {b.number for b in self._known if b.group == group}) for group in groups]
        return ", ".join([*spans, "*"])

    def _wrong(self, expected: str) -> InputError:
        found = re.match(r"[\w.+-]+|.", self._text[self._at :])
        what = repr(found[0]) if found else "the end"
        return InputError(f"blocks, character {self._at + 1}: found {what}, expected {expected}")


def _span(group: str, numbers: Iterable[int | None]) -> str:
    """`IN00-11`, `double 0-18`, `MID`."""
    known = [number for number in numbers if number is not None]
    if len(known) < 2:
        return str(Block(group, *known))
    return f"{Block(group, min(known))}-{Block(group, max(known)).digits}"
