"""Pictures: the loss curve, the spectrum of an adapter, a labelled grid. Only this module uses matplotlib."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image, ImageDraw, ImageFont

from .atomic import write_atomic
from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

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
    "plot_spectrum",
    "save_figure",
    "short_name",
    "smooth",
]

INK = "#22262b"
FAINT = "#9fb7d9"
BOLD = "#1f4e9c"
ACCENT = "#c2571a"
_NAMES_AT_MOST = 40  # layers whose names still fit beside the heat map
_DECADES = 3.0  # of singular values that the colours resolve below the largest


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


def plot_spectrum(spectra: Mapping[str, Tensor], output: Path, *, title: str = "Spectrum") -> None:
    """Draw the singular values of each layer (k,) as a heat map, and the energy that the first of them hold.

    Raises InputError for an adapter without layers and when matplotlib is missing.
    """
    if not spectra:
        raise InputError("there is no spectrum to plot; the adapter has no layers")
    names = sorted(spectra, key=_natural)
    table = _table([spectra[name].detach().float().cpu().numpy() for name in names])
    height = min(max(4.2, 1.6 + 0.19 * len(names)), 9.0)
    figure, (heat, curve) = new_figure(12.0, height, columns=2, widths=(1.35, 1.0))
    _draw_heat(figure, heat, table, names)
    _draw_energy(curve, table)
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", x=0.01, ha="left")
    save_figure(figure, output)


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


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Order by words and numbers, so that block 10 comes after block 2."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _table(rows: Sequence[Any]) -> Any:
    """Singular values (layers, largest rank), NaN where a layer has fewer."""
    table = numpy.full((len(rows), max(len(row) for row in rows)), numpy.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def _draw_heat(figure: Any, axes: Any, table: Any, names: Sequence[str]) -> None:
    largest = float(numpy.nanmax(table))
    top = math.log10(largest) if largest > 0 else 0.0
    with numpy.errstate(divide="ignore"):
        shown = numpy.log10(table)
    image = axes.imshow(
        shown, aspect="auto", interpolation="nearest", cmap="viridis", vmin=top - _DECADES, vmax=max(top, top - 1)
    )
    axes.set_facecolor("#eceef1")
    places, labels = _row_labels(names)
    axes.set_yticks(places, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    _number_ticks(axes, table.shape[1])
    dress(axes, "Singular values by layer", "singular value, largest first", "", grid=False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, extend="min")
    decades = numpy.arange(math.ceil(top - _DECADES), math.floor(top) + 1)
    bar.set_ticks(decades, labels=[f"$10^{{{int(decade)}}}$" for decade in decades])
    bar.outline.set_visible(False)


def _number_ticks(axes: Any, count: int) -> None:
    """Number the columns of a heat map from 1, at most about ten of them."""
    places = [0, *range(max(1, -(-count // 8)) - 1, count, max(1, -(-count // 8)))]
    axes.set_xticks(sorted(set(places)), [str(place + 1) for place in sorted(set(places))])


def _row_labels(names: Sequence[str]) -> tuple[list[float], list[str]]:
    """Every layer's name when they fit, otherwise one label in the middle of each block of layers."""
    short = [short_name(name) for name in names]
    if len(names) <= _NAMES_AT_MOST:
        return [float(place) for place in range(len(names))], short
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(short):
        groups.setdefault(_block(name), []).append(place)
    step = -(-len(groups) // _NAMES_AT_MOST)
    chosen = list(groups.items())[::step]
    return [sum(places) / len(places) for _, places in chosen], [block for block, _ in chosen]


def _block(short: str) -> str:
    found = re.match(r"[^\d.]*\d*", short)
    return found.group().strip() if found else short


def _draw_energy(axes: Any, table: Any) -> None:
    """Share of a layer's energy in its first singular values: the median layer, and where most layers lie."""
    squares = numpy.nan_to_num(table) ** 2
    total = squares.sum(axis=1, keepdims=True)
    alive = total[:, 0] > 0
    if alive.any():
        share = 100.0 * numpy.cumsum(squares[alive], axis=1) / total[alive]
        ranks = numpy.arange(1, table.shape[1] + 1)
        low, middle, high = numpy.percentile(share, (10, 50, 90), axis=0)
        axes.fill_between(ranks, low, high, color=FAINT, alpha=0.45, linewidth=0, label="8 of 10 layers")
        axes.plot(
            ranks, middle, color=BOLD, linewidth=2.4, marker="o" if len(ranks) <= 16 else "", label="median layer"
        )
        enough = int(numpy.argmax(middle >= 90.0)) + 1
        axes.axhline(90.0, color=ACCENT, linewidth=1.0, linestyle=(0, (4, 3)))
        text = f"{enough} of {len(ranks)} hold 90 %"
        axes.annotate(text, (ranks[-1], 90.0), (-2, -12), textcoords="offset points", ha="right", color=ACCENT)
        axes.legend(frameon=False, loc="lower right")
        axes.set_xlim(0.5, len(ranks) + 0.5)
    axes.set_ylim(0, 103)
    dress(axes, "Energy in the first singular values", "singular values kept", "energy kept, %")
    axes.xaxis.get_major_locator().set_params(integer=True)


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
