"""Pictures as one labelled sheet: a text beside every row and above every column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .data.lettering import Face, lettered, wrapped
from .errors import InputError

__all__ = ["fit", "labelled_sheet"]

INK = "#22262b"
GREY = "#5c6773"
GAP = 10  # pixels
SMALLEST = 12  # of letters, in pixels
MOST_LINES = 4  # above a column


def labelled_sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    note: str = "",
    cell: int = 192,
    label_width: int = 0,
) -> Image.Image:
    """The pictures, fitted into cells with a longer side of `cell` pixels, in rows of one length.

    Labels are wrapped, and get smaller letters where they are long; beside the rows they are `label_width` wide (0: a
    cell). `title` stands above, `note` in one grey line below. Raises InputError when the labels do not match the
    pictures.
    """
    if not rows or len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})} pictures"
        raise InputError(f"{shape} for {len(row_labels)} row labels and {len(column_labels)} column labels")
    fitted = [[fit(picture, cell) for picture in row] for row in rows]
    width = max(picture.width for row in fitted for picture in row)
    height = max(picture.height for row in fitted for picture in row)
    side, letters = label_width or cell, max(SMALLEST, cell // 11)
    heads = [_Text.fitting(label, width, letters, MOST_LINES * _pitch(letters)) for label in column_labels]
    whole = side + len(column_labels) * (width + GAP) + GAP
    name = _Text.fitting(title, whole - 2 * GAP, max(SMALLEST, cell // 10), 2 * _pitch(letters)) if title else None
    foot = _Text.fitting(note, whole - 2 * GAP, max(SMALLEST, cell // 16), _pitch(letters)) if note else None
    top = (name.height + GAP if name else 0) + max(head.height for head in heads) + GAP
    bottom = foot.height + GAP if foot else 0
    sheet = Image.new("RGB", (whole, top + len(rows) * (height + GAP) + bottom), "white")
    pen = ImageDraw.Draw(sheet)
    if name:
        name.draw(pen, GAP, GAP // 2)
    for column, head in enumerate(heads):
        head.draw(pen, side + column * (width + GAP) + width // 2, top - head.height - GAP // 2, "ma")
    for index, (row, label) in enumerate(zip(fitted, row_labels, strict=True)):
        y = top + index * (height + GAP)
        text = _Text.fitting(label, side - 2 * GAP, letters, height)
        text.draw(pen, GAP, y + (height - text.height) // 2)
        for column, picture in enumerate(row):
            left = side + column * (width + GAP) + (width - picture.width) // 2
            sheet.paste(picture, (left, y + (height - picture.height) // 2))
    if foot:
        foot.draw(pen, GAP, sheet.height - foot.height - GAP // 2, colour=GREY)
    return sheet


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of `side` pixels; small ones are enlarged, pixel by pixel from twice on."""
    scale = side / max(picture.size)
    wanted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if wanted == picture.size:
        return picture.convert("RGB")
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(wanted, method)


@dataclass(frozen=True)
class _Text:
    lines: list[tuple[str, Face]]
    pitch: int  # pixels from line to line

    @property
    def height(self) -> int:
        return len(self.lines) * self.pitch

    @classmethod
    def fitting(cls, text: str, width: int, largest: int, height: int) -> _Text:
        """A text in lines of `width` pixels, in the largest letters that fit into `height`, else cut."""
        sizes = sorted({max(SMALLEST, round(largest * share)) for share in (1, 0.85, 0.7, 0.55)}, reverse=True)
        for size in sizes:
            most = max(1, height // _pitch(size))
            lines = _lines(text, size, width, most + 1)
            if len(lines) <= most:
                break
        else:
            lines = _lines(text, sizes[-1], width, most)[:most]
        return cls(lines, _pitch(size))

    def draw(self, pen: ImageDraw.ImageDraw, x: int, y: int, anchor: str = "la", colour: str = INK) -> None:
        for index, (line, face) in enumerate(self.lines):
            pen.text((x, y + index * self.pitch), line, colour, face, anchor)


def _lines(text: str, size: int, width: int, most: int) -> list[tuple[str, Face]]:
    """Lines of `width` pixels, at most about `most`: paragraphs share them, each has at least one."""
    found: list[tuple[str, Face]] = []
    paragraphs = text.split("\n")
    for index, paragraph in enumerate(paragraphs):
        letters, face = lettered(paragraph, size)
        room = max(1, most - len(found) - (len(paragraphs) - 1 - index))
        found += [(line, face) for line in wrapped(letters, face, width, room)]
    return found


def _pitch(size: int) -> int:
    return round(size * 1.3)
