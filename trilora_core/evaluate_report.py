"""What an evaluation found, for people: a table in text, JSON, and one HTML page with everything in it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from .atomic import write_text
from .evaluate_figures import ENOUGH, KINDS, Figure, Judged, Look
from .evaluate_sets import Shown, open_shown

__all__ = ["Report", "data_uri", "page", "table", "write_report"]

_ROWS = 12  # of pictures
_SIDE = 320  # pixels of the longer side of a picture in the page
PAGES = Path(__file__).parent / "pages"


@dataclass(frozen=True)
class Report:
    """Everything of one evaluation; `settings` say how it was made, in the order in which they are shown."""

    lines: tuple[Judged, ...]  # the real set first
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    looks: tuple[Look, ...]  # in the order of the lines
    size: tuple[int, int]


def table(report: Report) -> str:
    """The figures in columns, a star at the best of each."""
    kinds = _kinds(report)
    rows = [["", "pictures", *(KINDS[kind].heading for kind in kinds)]]
    for line in report.lines:
        cells = [_cell(report, kind, line) for kind in kinds]
        rows.append([line.name, str(line.count), *(_text(text, best) for text, best in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    shown = []
    for row in rows:
        cells_ = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        shown.append("  ".join([row[0].ljust(widths[0]), *cells_]).rstrip())
    return "\n".join(shown)


def write_report(report: Report, stem: Path) -> tuple[Path, Path]:
    """Write stem.html and stem.json, each whole or not at all."""
    paths = stem.with_name(f"{stem.name}.html"), stem.with_name(f"{stem.name}.json")
    text = json.dumps(_json(report), indent=2, ensure_ascii=False)
    write_text(paths[0], page(report))
    write_text(paths[1], text + "\n")
    return paths


def page(report: Report) -> str:
    """The HTML page; pictures are in it, nothing is loaded from elsewhere."""
    kinds = _kinds(report)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    rows = _rows(report)
    captions = len({shown.caption or shown.stem for shown in report.looks[1].pictures.pictures})
    return Template((PAGES / "report.html").read_text(encoding="utf-8")).substitute(
        title="TriLoRA evaluation",
        settings=escape(" · ".join(f"{name}: {value}" for name, value in report.settings.items())),
        rendering="pixelated" if max(report.size) <= _SIDE // 2 else "auto",
        notes=f'<div class="notes"><ul>{notes}</ul></div>' if notes else "",
        heads="<th>set</th><th>pictures</th>" + "".join(map(_head, kinds)),
        lines="\n".join(_line(report, kinds, line) for line in report.lines),
        meanings="".join(f"<dt>{escape(KINDS[k].heading)}</dt><dd>{escape(KINDS[k].sentence)}</dd>" for k in kinds),
        shown=f"{len(rows)} of {captions} captions; one caption in a row, one set in a column.",
        columns="<th></th>" + "".join(f"<th>{escape(line.name)}</th>" for line in report.lines),
        rows="\n".join(rows),
    )


def data_uri(picture: Image.Image, side: int = 0, quality: int = 85) -> str:
    """A picture as a data URI of WebP, its longer side cut down to `side` pixels (0: as it is)."""
    if side and max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    found = io.BytesIO()
    # small ones would lose most to the compression, and cost least without it
    picture.save(found, "WEBP", quality=quality, lossless=max(picture.size) <= 128)
    return "data:image/webp;base64," + base64.b64encode(found.getvalue()).decode("ascii")


# --- figures ------------------------------------------------------------------


def _kinds(report: Report) -> list[str]:
    return [kind for kind in KINDS if any(kind in line.figures for line in report.lines)]


def _cell(report: Report, kind: str, line: Judged) -> tuple[str, bool]:
    """What stands in a cell, and whether it is the best of its column; the real set does not compete."""
    figure = line.figures.get(kind)
    if figure is None:
        return "–", False
    text = KINDS[kind].show(figure)
    if kind == "fid" and min(line.count, report.lines[0].count) < ENOUGH:
        text = f"({text})"
    rivals = [other.figures[kind].value for other in report.lines[1:] if kind in other.figures]
    if kind == "drift":  # the base has none, which is no merit
        rivals = [value for value in rivals if value]
    choose = {"lower": min, "higher": max}.get(KINDS[kind].better)
    best = choose is not None and line is not report.lines[0] and len(set(rivals)) > 1
    return text, best and choose is not None and figure.value == choose(rivals)


def _text(text: str, best: bool) -> str:
    return f"{text} *" if best else text


def _json(report: Report) -> dict[str, Any]:
    return {
        "format": 1,
        "settings": dict(report.settings),
        "notes": list(report.notes),
        "sets": [
            {
                "name": line.name,
                "folder": str(one.pictures.folder),
                "pictures": line.count,
                "figures": {kind: _figure(figure) for kind, figure in line.figures.items()},
                "spots": {shown.name: found.spots for shown, found in _spotted(one)},
            }
            for line, one in zip(report.lines, report.looks, strict=True)
        ],
    }


def _figure(figure: Figure) -> dict[str, float | None]:
    return {"value": figure.value, "standard_error": figure.error}


def _spotted(one: Look) -> list[tuple[Shown, Any]]:
    pairs = zip(one.pictures.pictures, one.artefacts, strict=True)
    return [(shown, found) for shown, found in pairs if found.spots]


# --- the page -----------------------------------------------------------------


def _head(kind: str) -> str:
    better = KINDS[kind].better
    return f'<th>{escape(KINDS[kind].heading)}<span class="way">{better and f"{better} is better"}&nbsp;</span></th>'


def _line(report: Report, kinds: Sequence[str], line: Judged) -> str:
    cells = []
    for kind in kinds:
        text, best = _cell(report, kind, line)
        value, _, error = text.partition(" ± ")
        small = f' <span class="error">± {escape(error)}</span>' if error else ""
        shade = ' class="best"' if best else ""
        cells.append(f"<td{shade}>{escape(value)}{small}</td>")
    kind_of = ' class="real"' if line is report.lines[0] else ""
    return f"<tr{kind_of}><td>{escape(line.name)}</td><td>{line.count}</td>{''.join(cells)}</tr>"


def _rows(report: Report) -> list[str]:
    """Rows of pictures for captions that are spread over the first drawn set."""
    pictures = report.looks[1].pictures.pictures
    first: dict[str, Shown] = {}
    for shown in pictures:
        first.setdefault(shown.caption or shown.stem, shown)
    chosen = list(first.values())
    step = max(1, -(-len(chosen) // _ROWS))
    return [_row(report, shown) for shown in chosen[::step]]


def _row(report: Report, wanted: Shown) -> str:
    cells = [f'<td class="caption">{escape(wanted.caption or wanted.stem)}</td>']
    for one in report.looks:
        found = _match(one, wanted)
        if found is None:
            cells.append('<td class="none">none</td>')
            continue
        shown, spots = found
        uri = data_uri(open_shown(shown, report.size), _SIDE)
        mark = f'<span class="mark">{spots} spot{"s" * (spots != 1)}</span>' if spots else ""
        text = escape(f"{one.pictures.name}: {shown.caption or shown.name}", quote=True)
        cells.append(f'<td><img src="{uri}" alt="{text}">{mark}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _match(one: Look, wanted: Shown) -> tuple[Shown, int] | None:
    """The picture of a set for the same caption, that of the same name first."""
    pairs = [(shown, found.spots) for shown, found in zip(one.pictures.pictures, one.artefacts, strict=True)]
    named = [pair for pair in pairs if pair[0].stem == wanted.stem]
    alike = [pair for pair in pairs if wanted.caption and pair[0].caption == wanted.caption]
    return next(iter([*named, *alike]), None)
