"""The picture of a whole run, from its log: loss, validation and drift, singular values over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy

from .errors import InputError
from .monitor import Measure
from .plots import ACCENT, BOLD, INK, blank_figure, draw_losses, dress, save_figure
from .runrecord import Look, RunRecord

__all__ = ["plot_run"]

_WIDTH, _ROW = 12.0, 3.9  # inches
_DECADES = 3.0  # of singular values that the colours resolve below the largest
_GREY = "#eceef1"  # nothing learned yet


def plot_run(record: RunRecord, output: Path, *, title: str) -> None:
    """Draw what the log has: curves of the loss, and of validation and singular values where these were watched.

    Raises InputError where not one step was logged and when matplotlib is missing.
    """
    if not record.steps:
        raise InputError(f"the log {record.path} has no step yet; there is nothing to plot")
    rows = [["loss", "validation"] if record.measures else ["loss", "loss"]]
    rows += [["values", "rank"]] if record.looks else []
    figure = blank_figure(_WIDTH, _ROW * len(rows) + 0.4)
    panels = figure.subplot_mosaic(rows)
    draw_losses(panels["loss"], record.losses())
    dress(panels["loss"], "Training loss", "optimizer step", "loss")
    if record.measures:
        _draw_measures(panels["validation"], record.measures, record.best)
    if record.looks:
        _draw_values(figure, panels["values"], record.looks)
        _draw_ranks(panels["rank"], record.looks)
    last = max(record.done, 2)
    for panel in panels.values():
        panel.set_xlim(0, last)
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", x=0.01, ha="left")
    save_figure(figure, output)


def _draw_measures(axes: Any, measures: Sequence[Measure], best: Measure | None) -> None:
    """Validation loss with its best circled, and drift on an axis of its own at the right."""
    steps = [measure.step for measure in measures]
    (line,) = axes.plot(steps, [m.validation for m in measures], color=BOLD, linewidth=2.2, marker=_marker(steps))
    title = "Validation" if best is None else f"Validation, best at step {best.step}"
    dress(axes, title, "optimizer step", "validation loss")
    handles = [line]
    if best is not None:
        axes.plot(best.step, best.validation, "o", markersize=11, markerfacecolor="none", color=INK)
    other = _second_axis(axes, "drift from the base", ACCENT)
    handles += other.plot(steps, [m.drift for m in measures], color=ACCENT, linewidth=1.8, linestyle=(0, (5, 2)))
    other.set_ylim(bottom=0)
    _legend_above(axes, handles, ["validation", "drift"])


def _draw_values(figure: Any, axes: Any, looks: Sequence[Look]) -> None:
    """Mean singular values of the layers, largest first, as a heat map over the steps."""
    table = numpy.stack([_mean_values(look, max(map(_rank, looks))) for look in looks], axis=1)
    largest = float(numpy.nanmax(table, initial=0.0))
    top = math.log10(largest) if largest > 0 else 0.0
    shown = numpy.ma.masked_invalid(numpy.log10(numpy.where(table > 0, table, numpy.nan)))
    steps, rows = _edges([look.step for look in looks]), numpy.arange(table.shape[0] + 1) + 0.5
    image = axes.pcolormesh(steps, rows, shown, cmap="viridis", vmin=top - _DECADES, vmax=top)
    axes.set_facecolor(_GREY)
    axes.invert_yaxis()
    axes.yaxis.get_major_locator().set_params(integer=True)
    title = f"Singular values, mean of {len(looks[-1].layers)} layers"
    dress(axes, title, "optimizer step", "singular value, largest first", grid=False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, extend="min")
    decades = numpy.arange(math.ceil(top - _DECADES), math.floor(top) + 1)
    bar.set_ticks(decades, labels=[f"$10^{{{int(decade)}}}$" for decade in decades])
    bar.outline.set_visible(False)


def _draw_ranks(axes: Any, looks: Sequence[Look]) -> None:
    """Mean effective rank, and the norm of the whole change on an axis of its own at the right."""
    steps = [look.step for look in looks]
    alive = [look.effective_rank if look.effective_rank > 0 else math.nan for look in looks]
    (line,) = axes.plot(steps, alive, color=BOLD, linewidth=2.2, marker=_marker(steps))
    dress(axes, "Rank and size of the change", "optimizer step", "effective rank, mean of layers")
    axes.set_ylim(0, max(map(_rank, looks)) * 1.05)
    other = _second_axis(axes, "Frobenius norm of all ΔW", ACCENT)
    (dashed,) = other.plot(steps, [look.norm for look in looks], color=ACCENT, linewidth=1.8, linestyle=(0, (5, 2)))
    other.set_ylim(bottom=0)
    _legend_above(axes, [line, dashed], ["effective rank", "norm"])


def _second_axis(axes: Any, label: str, color: str) -> Any:
    other = axes.twinx()
    other.set_ylabel(label, color=color)
    other.tick_params(axis="y", colors=color)
    for side in ("top", "left"):
        other.spines[side].set_visible(False)
    return other


def _legend_above(axes: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Beside the title, where no curve can lie under it."""
    where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.01), "borderaxespad": 0.0}
    axes.legend(handles, names, frameon=False, ncols=len(names), fontsize=9, columnspacing=1.2, **where)


def _mean_values(look: Look, rank: int) -> Any:
    """(rank,): the mean over the layers that have this many values; NaN where none has."""
    table = numpy.full((max(1, len(look.layers)), rank), numpy.nan)
    for row, values in enumerate(look.layers.values()):
        table[row, : len(values)] = values
    known = numpy.isfinite(table)
    return numpy.where(known.any(axis=0), numpy.nansum(table, axis=0) / numpy.maximum(known.sum(axis=0), 1), numpy.nan)


def _rank(look: Look) -> int:
    return max((len(values) for values in look.layers.values()), default=1) or 1


def _edges(steps: Sequence[int]) -> Any:
    """Borders between looks: halfway to the next one, the first and the last where the run begins and ends."""
    middles = [(one + other) / 2 for one, other in pairwise(steps)]
    return numpy.array([steps[0], *middles, max(steps[-1], steps[0] + 1)], dtype=float)


def _marker(steps: Sequence[int]) -> str:
    return "o" if len(steps) <= 30 else ""
