"""Pictures: the loss curve, a labelled grid. Only this module uses matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, ImageDraw, ImageFont

from .atomic import write_atomic
from .errors import InputError

__all__ = [
    "ACCENT",
    "BOLD",
    "FAINT",
    "INK",
    "blank_figure",
    "draw_losses",
    "dress",
    "new_figure",
    "picture_grid",
    "plot_losses",
    "save_figure",
    "short_name",
    "smooth",
]

INK = "#22262b"
FAINT = "#9fb7d9"
BOLD = "#1f4e9c"
ACCENT = "#c2571a"


def plot_losses(losses: Sequence[float], output: Path, *, title: str = "Training loss") -> None:
    """Draw the loss of every optimizer step, raw and smoothed; steps that are not finite are marked.

    Raises InputError for an empty run and when matplotlib is missing.
    """
    if not losses:
        raise InputError("there is no loss to plot; train for at least one step")
    values = numpy.asarray(losses, dtype=float)
    figure, axes = new_figure(8.0, 4.2)
    draw_losses(axes, values)
    dress(axes, title, "optimizer step", "loss")
    save_figure(figure, output)


def draw_losses(axes: Any, losses: Any) -> None:
    """The loss of steps 1, 2, …: raw, smoothed, and where it is not finite."""
    values = numpy.asarray(losses, dtype=float)
    steps = numpy.arange(1, len(values) + 1)
    marker = "o" if len(values) < 3 else ""
    axes.plot(steps, values, color=FAINT, linewidth=1.0, marker=marker, label="each step")
    if len(values) >= 10:
        window = _window(len(values))
        axes.plot(steps, smooth(values, window), color=BOLD, linewidth=2.4, label=f"mean of {window} steps")
    dropped = ~numpy.isfinite(values)
    if dropped.any():
        floor = numpy.full(int(dropped.sum()), axes.get_ylim()[0])
        axes.plot(steps[dropped], floor, "x", color=ACCENT, label="dropped step", clip_on=False)
    axes.set_xlim(min(1, len(values) - 1), max(2, len(values)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper right")


def smooth(values: Any, window: int) -> Any:
    """Centred moving average that ignores values that are not finite; the window shrinks at both ends."""
    finite = numpy.isfinite(values)
    half = window // 2
    kernel = numpy.ones(2 * half + 1)
    total = numpy.convolve(numpy.where(finite, values, 0.0), kernel, mode="full")[half : half + len(values)]
    count = numpy.convolve(finite.astype(float), kernel, mode="full")[half : half + len(values)]
    return numpy.where(count > 0, total / numpy.maximum(count, 1.0), numpy.nan)


def picture_grid(
    rows: Sequence[Sequence[Image.Image]],
    output: Path,
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    cell: int = 192,
) -> None:
    """Write pictures as a grid with a label at each row and column; small ones are enlarged to `cell` pixels.

    Raises InputError when the labels do not match the pictures.
    """
    if not rows or len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})} pictures"
        raise InputError(f"{shape} for {len(row_labels)} row labels and {len(column_labels)} column labels")
    size = max(cell, *(picture.width for row in rows for picture in row))
    gap, font, bold = 10, _font(size // 11), _font(size // 10)
    side = min(size, 3 * cell)
    top = (bold.size * 2 if title else 0) + font.size * 2
    sheet = Image.new("RGB", (side + len(column_labels) * (size + gap) + gap, top + len(rows) * (size + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((gap, gap), title, fill=INK, font=bold)
    for column, label in enumerate(column_labels):
        centre = side + column * (size + gap) + size // 2
        pen.text((centre, top - font.size * 0.4), label, fill=INK, font=font, anchor="ms")
    for index, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + index * (size + gap)
        text = _wrap(pen, label, font, side - 2 * gap)
        pen.multiline_text((gap, y + size // 2), text, fill=INK, font=font, anchor="lm", spacing=4)
        for column, picture in enumerate(row):
            sheet.paste(_fit(picture, size), (side + column * (size + gap), y))
    write_atomic(output, lambda path: sheet.save(path, format="PNG"))


def short_name(stem: str) -> str:
    """A layer's file stem, shortened to what tells layers of one model apart."""
    for pattern, replacement in _SHORTER:
        stem = re.sub(pattern, replacement, stem)
    return stem.strip(" _.")


_SHORTER = (
    (r"^lora_unet_|^transformer\.", ""),
    (r"^lora_te(\d?)_text_model_encoder_layers_", r"text\1 "),
    (r"(down|up|mid|input|output|middle|double|single)_blocks?_?", r"\1 "),
    (r"_?attentions_(\d+)", r".\1"),
    (r"[_.]?transformer_blocks[_.](\d+)", r" block \1"),
    (r"_attn(\d)_to_(out)_0|_attn(\d)_to_([qkv])", lambda m: f" attn{m[1] or m[3]} {m[2] or m[4]}"),
    (r"_", " "),
    (r" +\.", "."),
    (r" +", " "),
)


def _wrap(pen: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """Break a label into lines of at most `width` pixels where its words allow it."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and pen.textlength(longer, font=font) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return "\n".join(lines)


def _fit(picture: Image.Image, size: int) -> Image.Image:
    scale = size / max(picture.size)
    wanted = (round(picture.width * scale), round(picture.height * scale))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    canvas = Image.new("RGB", (size, size), "white")
    fitted = picture.convert("RGB").resize(wanted, method)
    canvas.paste(fitted, ((size - wanted[0]) // 2, (size - wanted[1]) // 2))
    return canvas


def _font(size: int) -> Any:
    return ImageFont.load_default(max(12, size))


def new_figure(width: float, height: float, columns: int = 1, widths: tuple[float, ...] | None = None) -> Any:
    """A figure in inches, and its axes side by side: (figure, axes)."""
    figure = blank_figure(width, height)
    return figure, figure.subplots(1, columns, width_ratios=widths)


def blank_figure(width: float, height: float) -> Any:
    """A figure in inches that needs no display and touches no global state; InputError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('plots need matplotlib, which is not installed; run: pip install "matplotlib>=3.8"') from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Any, title: str, x: str, y: str, *, grid: bool = True) -> None:
    """Title, labels and the look that all plots share."""
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    for side in ("top", "right", *(() if grid else ("left", "bottom"))):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)


def _window(count: int) -> int:
    """An odd number of steps, about a twentieth of the run."""
    return max(5, count // 20) | 1


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure as PNG."""
    write_atomic(output, lambda path: figure.savefig(path, format="png"))
