"""The picture of an adapter, or of several beside each other: spectra, energy, effective ranks, and where they act."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from .anatomy import KIND_NAMES, Anatomy, anatomy, overlaps
from .canvas import GREY, GRID, INK, Canvas, Frame, fitting, round_ticks, viridis
from .errors import InputError
from .fileformat import Adapter
from .plots_map import KIND_COLOURS, KIND_LABELS, draw_map, kind_entries, shade

__all__ = ["draw_adapters", "plot_adapters"]

_BOLD, _BAND, _ACCENT = "#1f4e9c", "#cfdcee", "#c2571a"
_SERIES = ("#0b7a75", "#d1495b", "#e0a030", "#30638e", "#6d597a", "#8d99ae")  # one colour an adapter
_AT_MOST = len(_SERIES)
_DECADES = 3.0  # of singular values that the colours resolve below the largest
_NAMED_LAYERS = 24  # whose own names fit beside the colours; with more, one name a block
_PAGE = 1800  # pixels across


def plot_adapters(adapters: Sequence[Adapter], names: Sequence[str], output: Path) -> None:
    """Write what `draw_adapters` draws as a PNG."""
    draw_adapters(adapters, names).save(output)


def draw_adapters(adapters: Sequence[Adapter], names: Sequence[str]) -> Canvas:
    """Draw one adapter (singular values by layer, energy curve, effective ranks, map of the model) or up to six.

    Several: a map of each, their energy curves, effective ranks by kind, and how far they overlap. Raises InputError
    for none or too many, for adapters without layers or whose layers differ in shape.
    """
    if not 0 < len(adapters) <= _AT_MOST or len(adapters) != len(names):
        raise InputError(f"{len(adapters)} adapters and {len(names)} names to draw; give 1 to {_AT_MOST}, each named")
    found = [anatomy(adapter, name) for adapter, name in zip(adapters, names, strict=True)]
    return _one(found[0]) if len(found) == 1 else _several(found, adapters)


def _one(adapter: Anatomy) -> Canvas:
    canvas = Canvas(_PAGE, 1260)
    _head(canvas, adapter.name, _facts(adapter))
    table = _table(adapter)
    _draw_heat(Frame(canvas, 110, 130, 850, 440), adapter, table)
    _draw_energy(Frame(canvas, 1160, 130, 600, 440, 0.5, table.shape[1] + 0.5, 0, 103), table)
    place = Frame(canvas, 60, 690, 960, 480)
    place.title("Where it acts: share of the energy of each block")
    draw_map(place, adapter)
    place.legend(kind_entries([adapter]), 1215)
    highest = table.shape[1]
    _draw_ranks(Frame(canvas, 1160, 690, 600, 430, -0.5, len(adapter.layers) - 0.5, 0, highest * 1.06), adapter)
    return canvas


def _several(found: Sequence[Anatomy], adapters: Sequence[Adapter]) -> Canvas:
    columns = 2 if len(found) in (2, 4) else 3
    rows = -(-len(found) // columns)
    width, height = (_PAGE - 60) / columns, 330 if columns == 3 else 430
    lower = 150 + rows * (height + 60) + 70
    canvas = Canvas(_PAGE, lower + 520)
    _head(
        canvas, f"{len(found)} adapters", "share of each adapter's energy by block, above; spectra and overlap, below"
    )
    for index, (adapter, colour) in enumerate(zip(found, _SERIES, strict=False)):
        row, column = divmod(index, columns)
        place = Frame(canvas, 50 + column * width, 150 + row * (height + 60), width - 50, height)
        canvas.box(place.left, place.top - 29, 16, 16, colour)
        canvas.text(place.left + 24, place.top - 14, fitting(adapter.name, width - 90, 17), 17, colour, "ls", True)
        draw_map(place, adapter)
    Frame(canvas, 0, 0, _PAGE, 0).legend(kind_entries(found), lower - 62)
    longest = max(len(layer.values) for adapter in found for layer in adapter.layers)
    _draw_curves(Frame(canvas, 90, lower, 460, 400, 0.5, longest + 0.5, 0, 103), found)
    _draw_ranks_by_kind(canvas, 740, lower, found)
    sides = [overlaps(adapters, side).numpy() for side in ("in", "out")]
    _draw_overlap(canvas, 1350, lower, [adapter.name for adapter in found], *sides)
    return canvas


def _head(canvas: Canvas, title: str, line: str) -> None:
    canvas.text(30, 26, fitting(title, _PAGE - 60, 27), 27, bold=True)
    canvas.text(30, 66, line, 16, GREY)


def _facts(adapter: Anatomy) -> str:
    mean = numpy.mean([layer.effective for layer in adapter.layers])
    largest = max(float(layer.values.max()) for layer in adapter.layers)
    return (
        f"{len(adapter.layers)} layers, {adapter.rank}, effective rank {mean:.1f} on average;"
        f" energy {_short(adapter.energy)}, largest singular value {_short(largest)}"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(adapter: Anatomy) -> Any:
    """Singular values (layers, largest rank), NaN where a layer has fewer."""
    table = numpy.full((len(adapter.layers), max(len(layer.values) for layer in adapter.layers)), numpy.nan)
    for index, layer in enumerate(adapter.layers):
        table[index, : len(layer.values)] = layer.values.numpy()
    return table


# --- one adapter -----------------------------------------------------------------------------------------------------


def _draw_heat(place: Frame, adapter: Anatomy, table: Any) -> None:
    """Singular values as colours on a logarithmic scale, a row for each layer."""
    canvas, (rows, columns) = place.canvas, table.shape
    top = math.log10(largest) if (largest := float(numpy.nanmax(table))) > 0 else 0.0
    with numpy.errstate(divide="ignore"):
        strength = (numpy.log10(table) - top) / _DECADES + 1
    colours = viridis(numpy.nan_to_num(strength, nan=0.0, neginf=0.0))
    colours[numpy.isnan(table)] = (236, 238, 241)
    canvas.pixels(place.left, place.top, place.width, place.height, colours)
    place.title("Singular values by layer")
    names = (
        [layer.short for layer in adapter.layers]
        if rows <= _NAMED_LAYERS
        else [_block(layer) for layer in adapter.layers]
    )
    groups = _groups(names)
    last = -99.0
    for name, (first, end) in groups:
        y = place.top + (first + end) / 2 / rows * place.height
        if y - last >= 15:
            canvas.text(place.left - 8, y, fitting(name, place.left - 12, 13), 13, anchor="rm")
            last = y
    for column in sorted({0, *range(max(1, -(-columns // 8)) - 1, columns, max(1, -(-columns // 8)))}):
        x = place.left + (column + 0.5) / columns * place.width
        canvas.text(x, place.top + place.height + 8, str(column + 1), 14, anchor="ma")
    middle = place.left + place.width / 2
    canvas.text(middle, place.top + place.height + 30, "singular value, largest first", 15, anchor="ma")
    _scale(canvas, place.left + place.width + 25, place.top, place.height, top)


def _scale(canvas: Canvas, x: float, y: float, height: float, top: float) -> None:
    """What the colours stand for."""
    canvas.pixels(x, y, 20, height, viridis(numpy.linspace(1, 0, 200))[:, None, :])
    for decade in range(math.ceil(top - _DECADES), math.floor(top) + 1):
        at = y + (top - decade) / _DECADES * height
        canvas.line([(x + 20, at), (x + 26, at)], INK)
        canvas.text(x + 31, at, f"{10.0**decade:g}", 14, anchor="lm")


def _block(layer: Any) -> str:
    place = layer.place
    return place.part if place.part in ("mid", "other") else f"{place.part} {place.block}"


def _groups(names: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """Runs of equal names: (name, (first, end))."""
    starts = [index for index, name in enumerate(names) if index == 0 or names[index - 1] != name]
    return [(names[start], (start, end)) for start, end in zip(starts, [*starts[1:], len(names)], strict=True)]


def _draw_energy(place: Frame, table: Any) -> None:
    """Share of a layer's energy in its first singular values: the median layer, and where most layers lie."""
    canvas = place.canvas
    ranks = range(1, table.shape[1] + 1)
    place.title("Energy in the first singular values")
    place.axes(_whole_ticks(len(ranks)), range(0, 101, 20), "singular values kept", "energy kept, %")
    squares = numpy.nan_to_num(table) ** 2
    alive = squares.sum(axis=1) > 0
    if not alive.any():
        return
    share = 100.0 * numpy.cumsum(squares[alive], axis=1) / squares[alive].sum(axis=1, keepdims=True)
    low, middle, high = numpy.percentile(share, (10, 50, 90), axis=0)
    band = [(place.x(r), place.y(v)) for r, v in zip(ranks, low, strict=True)]
    band += [(place.x(r), place.y(v)) for r, v in zip(reversed(ranks), reversed(high), strict=True)]
    if len(ranks) > 1:
        canvas.area(band, _BAND)
    canvas.line([(place.left, place.y(90)), (place.left + place.width, place.y(90))], _ACCENT, 1.2, dash=6)
    points = [(place.x(r), place.y(v)) for r, v in zip(ranks, middle, strict=True)]
    canvas.line(points, _BOLD, 3)
    for x, y in points if len(points) <= 32 else []:
        canvas.dot(x, y, 4.5, _BOLD)
    enough = int(numpy.argmax(middle >= 90.0)) + 1
    right, bottom = place.left + place.width - 6, place.top + place.height
    canvas.text(right, bottom - 86, f"{enough} of {len(ranks)} hold 90% in the median layer", 15, _ACCENT, "rs")
    canvas.box(right - 130, bottom - 62, 26, 14, _BAND)
    canvas.text(right - 96, bottom - 55, "8 of 10 layers", 14, anchor="lm")
    canvas.line([(right - 130, bottom - 28), (right - 104, bottom - 28)], _BOLD, 3)
    canvas.text(right - 96, bottom - 28, "median layer", 14, anchor="lm")


def _whole_ticks(count: int) -> list[float]:
    return [value for value in round_ticks(0, count, 8) if value == int(value) and value >= 1] or [1.0]


def _draw_ranks(place: Frame, adapter: Anatomy) -> None:
    """Effective rank of every layer in the order of the model, a colour for each kind; blocks marked below."""
    canvas, count = place.canvas, len(adapter.layers)
    place.title("Effective rank by layer")
    place.axes([], round_ticks(0, place.y1), "", f"effective rank (of {max(len(x.values) for x in adapter.layers)})")
    groups = _groups([_block(layer) for layer in adapter.layers])
    bottom, last = place.top + place.height, -99.0
    for name, (first, end) in groups:
        if first and len(groups) <= 20:
            canvas.line([(place.x(first - 0.5), place.top), (place.x(first - 0.5), bottom)], GRID)
        x = place.x((first + end - 1) / 2)
        if x - last >= 22:
            canvas.turned(x + 5, bottom + 8, name, 13, 40)
            last = x
    radius = 4.0 if count < 200 else 2.6
    for index, layer in enumerate(adapter.layers):
        canvas.dot(place.x(index), place.y(layer.effective), radius, KIND_COLOURS[layer.kind] + "cc")


# --- several adapters ------------------------------------------------------------------------------------------------


def _draw_curves(place: Frame, found: Sequence[Anatomy]) -> None:
    place.title("Energy in the first singular values")
    place.axes(_whole_ticks(int(place.x1)), range(0, 101, 20), "singular values kept", "energy kept, %")
    place.canvas.line([(place.left, place.y(90)), (place.left + place.width, place.y(90))], GREY, 1, dash=6)
    for number, (adapter, colour) in enumerate(zip(found, _SERIES, strict=False)):
        squares = (numpy.nan_to_num(_table(adapter)) ** 2).sum(axis=0)
        share = 100.0 * numpy.cumsum(squares) / (squares.sum() or 1.0)
        points = [(place.x(rank + 1), place.y(value)) for rank, value in enumerate(share)]
        place.canvas.line(points, colour, 3)
        y = place.top + place.height - 24 * (len(found) - number) + 6
        place.canvas.line([(place.left + 190, y), (place.left + 216, y)], colour, 3)
        place.canvas.text(place.left + 224, y, fitting(adapter.name, place.width - 230, 14), 14, anchor="lm")


def _draw_ranks_by_kind(canvas: Canvas, left: float, top: float, found: Sequence[Anatomy]) -> None:
    kinds = [kind for kind in KIND_NAMES if any(layer.kind == kind for adapter in found for layer in adapter.layers)]
    means = [
        [float(numpy.mean([x.effective for x in adapter.layers if x.kind == kind] or [0.0])) for kind in kinds]
        for adapter in found
    ]
    place = Frame(canvas, left, top, 340, 400, 0, 1.05 * max(max(row) for row in means) or 1.0, len(kinds), 0)
    place.title("Effective rank by kind, mean over layers")
    place.axes(round_ticks(0, place.x1, 5), [], "effective rank")
    thick = place.height / len(kinds) * 0.8 / len(found)
    for row, kind in enumerate(kinds):
        canvas.text(left - 10, place.y(row + 0.5), KIND_LABELS[kind], 15, anchor="rm")
        for number, values in enumerate(means):
            y = place.y(row + 0.1) + number * thick
            canvas.box(left + 1, y, place.x(values[row]) - left, thick * 0.86, _SERIES[number])


def _draw_overlap(canvas: Canvas, left: float, top: float, names: Sequence[str], reads: Any, writes: Any) -> None:
    """Above the diagonal what both read, below it what both write."""
    size = 400 / len(names)
    canvas.text(left - 40, top - 34, "Overlap of what they read (above the", 17, anchor="ls")
    canvas.text(left - 40, top - 12, "diagonal) and of what they write (below)", 17, anchor="ls")
    for row in range(len(names)):
        for column in range(len(names)):
            value = float((reads if column > row else writes)[row, column])
            x, y, blank = left + column * size, top + row * size, row == column or not math.isfinite(value)
            canvas.box(x, y, size - 3, size - 3, "#eceef1" if blank else shade(value))
            if row == column:
                canvas.box(x + size / 2 - 9, y + size / 2 - 9, 18, 18, _SERIES[row])
            else:
                text = "no common layer" if blank else f"{100 * value:.0f}%"
                ink = "white" if not blank and value > 0.27 else INK
                canvas.text(x + size / 2, y + size / 2, fitting(text, size - 8, 17), 17, ink, "mm")
