"""Which pictures a grid of prompts, adapters and strengths holds, and where each of them lies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .errors import InputError

__all__ = ["COLUMNS", "MOST", "Cell", "Plan", "parse_prompts", "parse_strengths", "plan"]

COLUMNS = ("strengths", "adapters", "prompts")
MOST = 100  # pictures of one grid
STRONGEST = 20.0  # either way, as the widget of one strength

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One picture: which prompt, and which adapter at which strength; None and 0 for the model alone."""

    prompt: int
    adapter: int | None
    strength: float


@dataclass(frozen=True)
class Plan:
    """The cells of a grid by row, and what stands beside and above them; `same` is what all cells share, in words."""

    cells: tuple[tuple[Cell, ...], ...]
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    same: tuple[str, ...]

    def work(self) -> dict[tuple[int | None, float], list[Cell]]:
        """The pictures to draw by adapter and strength, each picture once however often it is shown."""
        found: dict[tuple[int | None, float], list[Cell]] = {}
        for cell in dict.fromkeys(cell for row in self.cells for cell in row):
            found.setdefault((cell.adapter, cell.strength), []).append(cell)
        return found

    def rows(self, drawn: Mapping[Cell, T]) -> list[list[T]]:
        """What was drawn for each cell, in place."""
        return [[drawn[cell] for cell in row] for row in self.cells]


@dataclass(frozen=True)
class _Version:
    adapter: int | None
    strength: float
    label: str


def plan(
    prompts: Sequence[str], adapters: Sequence[str], strengths: Sequence[float], columns: str = COLUMNS[0]
) -> Plan:
    """Lay out a grid of prompts, adapters (by name) and strengths.

    `columns` says what runs across. "strengths": each row is a prompt with an adapter. "adapters": the columns are the
    adapters at each strength, the rows prompts. "prompts": the other way round. The model alone, strength 0, is one
    picture for each prompt, whatever the adapters. Raises InputError for nothing to draw, more than MOST pictures,
    or an unknown `columns`.
    """
    if columns not in COLUMNS:
        raise InputError(f"columns is {columns!r}; known: {', '.join(COLUMNS)}")
    for what, values in (("prompt", prompts), ("adapter", adapters), ("strength", strengths)):
        if not values:
            raise InputError(f"there is no {what} to draw with; give at least one")
    for strength in strengths:
        _check_strength(strength, f"strength {strength:g}")
    made = _across_strengths(prompts, adapters, strengths) if columns == COLUMNS[0] else None
    if made is None:
        versions = _versions(adapters, strengths)
        rows = [[Cell(index, one.adapter, one.strength) for one in versions] for index in range(len(prompts))]
        same = _same(adapters, [strength for strength in strengths if strength])
        made = Plan(_table(rows), tuple(prompts), tuple(one.label for one in versions), same)
    if columns == COLUMNS[2]:
        turned = tuple(zip(*made.cells, strict=True))
        made = Plan(turned, made.column_labels, made.row_labels, made.same)
    count = sum(map(len, made.cells))
    if count > MOST:
        raise InputError(
            f"the grid has {len(made.cells)} rows of {len(made.cells[0])}, {count} pictures; at most {MOST} fit into "
            "one: give fewer prompts, strengths or adapters"
        )
    return made


def parse_prompts(text: str) -> list[str]:
    """One prompt a line, empty lines left out; InputError where nothing is left."""
    prompts = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError("prompts is empty; write one prompt a line, such as: a house by the sea")
    return prompts


def parse_strengths(text: str) -> list[float]:
    """Numbers with commas or spaces between them; InputError with the place of what is none."""
    found = []
    for entry in re.finditer(r"[^\s,;]+", text):
        where = f"strengths, character {entry.start() + 1}: {entry[0]!r}"
        try:
            value = float(entry[0])
        except ValueError:
            raise InputError(f"{where} is no number; write numbers such as: 0, 0.5, 1") from None
        found.append(_check_strength(value, where) + 0.0)  # -0.0 is 0
    if not found:
        raise InputError("strengths is empty; write numbers such as: 0, 0.5, 1")
    return found


def _check_strength(value: float, where: str) -> float:
    if not math.isfinite(value) or abs(value) > STRONGEST:
        raise InputError(f"{where} is out of range; wanted a number from {-STRONGEST:g} to {STRONGEST:g}")
    return value


def _across_strengths(prompts: Sequence[str], adapters: Sequence[str], strengths: Sequence[float]) -> Plan:
    rows, labels = [], []
    for index, prompt in enumerate(prompts):
        for number, name in enumerate(adapters):
            rows.append([Cell(index, number if strength else None, strength) for strength in strengths])
            # the prompt always; the adapter only where there are several to tell apart
            labels.append(f"{name}\n{prompt}" if len(adapters) > 1 else prompt)
    shown = tuple(_strength_label(strength) for strength in strengths)
    return Plan(_table(rows), tuple(labels), shown, _same(adapters, []))


def _versions(adapters: Sequence[str], strengths: Sequence[float]) -> list[_Version]:
    """Every adapter at every strength; the model alone once, where strength 0 comes first."""
    several = len({strength for strength in strengths if strength}) > 1
    found: dict[tuple[int | None, float], _Version] = {}
    for number, name in enumerate(adapters):
        for strength in strengths:
            label = _strength_label(strength)
            if strength and len(adapters) > 1:
                label = f"{name}\n{label}" if several else name
            one = _Version(number if strength else None, strength, label)
            found.setdefault((one.adapter, strength), one)
    return list(found.values())


def _same(adapters: Sequence[str], strengths: Sequence[float]) -> tuple[str, ...]:
    """What is not said beside the pictures: the only adapter, and its only strength beside several adapters."""
    if len(adapters) == 1:
        return (adapters[0],)
    return (_strength_label(strengths[0]),) if len(set(strengths)) == 1 else ()


def _strength_label(strength: float) -> str:
    return f"strength {strength:g}" if strength else "without adapter"


def _table(rows: Sequence[Sequence[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(row) for row in rows)
