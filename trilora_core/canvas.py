"""A drawing surface for charts on Pillow alone, which every ComfyUI has: shapes, text, axes; smooth edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, ImageDraw, ImageFont

from .atomic import write_atomic

__all__ = ["GREY", "GRID", "INK", "Canvas", "Frame", "fitting", "round_ticks", "viridis"]

INK = "#22262b"
GREY = "#7b8794"
GRID = "#e3e6ea"

_FINER = 2  # drawn at this many times the size, then shrunk
# Nine colours of matplotlib's map of this name (Smith, van der Walt and Firing 2015), evenly spaced.
_VIRIDIS = numpy.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ]
)


class Canvas:
    """A white picture; positions and sizes in its pixels, y downwards."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._sheet = Image.new("RGB", (width * _FINER, height * _FINER), "white")
        self._pen = ImageDraw.Draw(self._sheet, "RGBA")

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str | None = None) -> None:
        """A filled rectangle with its upper left corner at x, y."""
        if width > 0 and height > 0:
            corners = [*_fine(x, y), *(value - 1 for value in _fine(x + width, y + height))]
            if corners[2] >= corners[0] and corners[3] >= corners[1]:
                self._pen.rectangle(corners, fill, edge, _FINER if edge else 0)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0, dash: float = 0.0) -> None:
        """A line through the points; `dash` is the length of its strokes and gaps, 0 for none."""
        fine = [_fine(x, y) for x, y in points]
        if not dash:
            self._pen.line(fine, colour, round(width * _FINER), "curve")
            return
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0)
            for start in numpy.arange(0, length, 2 * dash):
                ends = [(x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length)
                        for at in (start, min(start + dash, length))]  # fmt: skip
                self._pen.line([_fine(*end) for end in ends], colour, round(width * _FINER))

    def area(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """A filled polygon."""
        self._pen.polygon([_fine(x, y) for x, y in points], fill)

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        """A filled circle."""
        self._pen.ellipse([*_fine(x - radius, y - radius), *_fine(x + radius, y + radius)], fill)

    def text(
        self, x: float, y: float, text: str, size: float = 14, colour: str = INK, anchor: str = "la", bold: bool = False
    ) -> None:
        """Text with Pillow's anchors: "l", "m", "r" across; "a" top, "m" middle, "s" baseline."""
        stroke = 1 if bold else 0
        self._pen.text(_fine(x, y), text, colour, _font(size), anchor, stroke_width=stroke, stroke_fill=colour)

    def turned(self, x: float, y: float, text: str, size: float = 14, angle: float = 90, colour: str = INK) -> None:
        """Text that is turned anticlockwise and ends at x, y; at 90 degrees its middle is there."""
        font = _font(size)
        width, height = math.ceil(font.getlength(text)) + 4, math.ceil(size * 1.3 * _FINER)
        label = Image.new("L", (width, height), 0)
        ImageDraw.Draw(label).text((width - 2, height // 2), text, 255, font, "rm")
        label = label.rotate(angle, expand=True, resample=Image.Resampling.BICUBIC)
        px, py = _fine(x, y)
        corner = (px - label.width // 2, py - label.height // 2) if angle == 90 else (px - label.width, py)
        self._sheet.paste(Image.new("RGB", label.size, colour), corner, label)

    def pixels(self, x: float, y: float, width: float, height: float, colours: Any) -> None:
        """An array of colours (rows, columns, 3) as even rectangles over the place."""
        left, top = _fine(x, y)
        right, bottom = _fine(x + width, y + height)
        image = Image.fromarray(colours.astype(numpy.uint8))
        # many rows to a pixel are averaged, few are drawn as they are
        step = Image.Resampling.BOX if image.height > bottom - top else Image.Resampling.NEAREST
        self._sheet.paste(image.resize((right - left, bottom - top), step), (left, top))

    def picture(self) -> Image.Image:
        """What was drawn so far."""
        return self._sheet.resize(self.size, Image.Resampling.BOX)

    def save(self, output: Path) -> None:
        """Write a PNG, whole or not at all."""
        picture = self.picture()
        write_atomic(output, lambda path: picture.save(path, format="PNG"))


@dataclass(frozen=True)
class Frame:
    """The part of a canvas that a chart takes, and the ranges of its axes; y upwards unless y1 < y0."""

    canvas: Canvas
    left: float
    top: float
    width: float
    height: float
    x0: float = 0.0
    x1: float = 1.0
    y0: float = 0.0
    y1: float = 1.0

    def x(self, value: float) -> float:
        """From a value to a place on the canvas."""
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1.0) * self.width

    def y(self, value: float) -> float:
        """From a value to a place on the canvas."""
        return self.top + self.height - (value - self.y0) / ((self.y1 - self.y0) or 1.0) * self.height

    def title(self, text: str, colour: str = INK, bold: bool = False) -> None:
        """Above the chart, at its left edge."""
        self.canvas.text(self.left, self.top - 14, text, 17, colour, "ls", bold)

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str = "", y_name: str = "") -> None:
        """Both axes with numbers, lines across at the numbers of y, and names."""
        bottom = self.top + self.height
        for value in y_ticks:
            self.canvas.line([(self.left, self.y(value)), (self.left + self.width, self.y(value))], GRID)
            self.canvas.text(self.left - 8, self.y(value), f"{value:g}", 14, anchor="rm")
        for value in x_ticks:
            self.canvas.line([(self.x(value), bottom), (self.x(value), bottom + 5)], INK)
            self.canvas.text(self.x(value), bottom + 8, f"{value:g}", 14, anchor="ma")
        self.canvas.line([(self.left, self.top), (self.left, bottom), (self.left + self.width, bottom)], INK)
        self.canvas.text(self.left + self.width / 2, bottom + 28, x_name, 15, anchor="ma")
        if y_name:
            self.canvas.turned(self.left - 50, self.top + self.height / 2, y_name, 15)

    def legend(self, entries: Sequence[tuple[str, str]], y: float, size: float = 14) -> None:
        """Coloured squares and names (colour, name) in a row, in the middle of the frame at `y` on the canvas."""
        widths = [_font(size).getlength(name) / _FINER + 42 for _, name in entries]
        at = self.left + (self.width - sum(widths)) / 2
        for (colour, name), width in zip(entries, widths, strict=True):
            self.canvas.box(at, y - 7, 14, 14, colour)
            self.canvas.text(at + 21, y, name, size, anchor="lm")
            at += width


def round_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers within a range, about `count` of them."""
    raw = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [
        float(f"{index * step:.6g}")
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def viridis(values: Any) -> Any:
    """Colours (…, 3), 0 to 255, of values (…) from 0 to 1."""
    places = numpy.clip(values, 0.0, 1.0) * (len(_VIRIDIS) - 1)
    return numpy.stack([numpy.interp(places, range(len(_VIRIDIS)), _VIRIDIS[:, channel]) for channel in range(3)], -1)


def fitting(text: str, width: float, size: float) -> str:
    """The text, its middle left out where it is wider than `width` pixels."""
    font = _font(size)
    kept = len(text)
    shown = text
    while font.getlength(shown) > width * _FINER and kept > 6:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def _fine(x: float, y: float) -> tuple[int, int]:
    return round(x * _FINER), round(y * _FINER)


def _font(size: float) -> Any:
    return ImageFont.load_default(size * _FINER)
