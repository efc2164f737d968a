"""Pictures: the loss curve, a labelled grid. Only this module uses matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from .atomic import write_atomic
from .errors import InputError
from .grid_sheet import labelled_sheet

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
    size = max(cell, *(max(picture.size) for row in rows for picture in row), 1)
    sheet = labelled_sheet(
        rows,
        row_labels=row_labels,
        column_labels=column_labels,
        title=title,
        cell=size,
        label_width=min(size, 3 * cell),
    )
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
