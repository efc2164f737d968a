"""A contact sheet of what the trainer will really see: crops in their buckets, masks, captions and marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from ..errors import InputError
from .dataset import Dataset, Item
from .lettering import fitted, lettered, wrapped
from .report import Report, report
from .report_text import short, size_text
from .seen import MOST_FURTHER, further_crops, seen

__all__ = ["contact_sheet"]

COLUMNS = 8
LEAST_COLUMNS = 4  # for the width of the heading
CAPTION_LINES = 2

PAPER = (30, 31, 34)  # dark and without hue, so that the pictures have all the colour
TILE = (46, 48, 52)
INK = (232, 233, 236)
QUIET = (152, 156, 164)
CAPTION = (196, 199, 205)
ALARM = (240, 178, 74)  # of marks


def contact_sheet(dataset: Dataset, most: int = 60, cell: int = 160) -> Image.Image:
    """Draw up to `most` pictures as they are seen in training, grouped by size; RGB, one cell `cell` pixels wide.

    Of a larger data set an even choice is shown. Only the shown pictures are opened, one at a time; one that cannot be
    read now gets a tile that says so. Raises InputError for numbers too small to draw.
    """
    if most < 1 or cell < 64:
        raise InputError(f"most is {most} and cell {cell}; wanted at least 1 picture, and cells of at least 64 pixels")
    found = report(dataset)
    groups = _chosen(found, dataset.items, most)
    shown = sum(len(group.items) for group in groups)
    columns = min(COLUMNS, max(LEAST_COLUMNS, shown))
    return _Sheet(_Look(cell), found, _marks(found), dataset.config.masks.floor).draw(_rows(groups, columns), columns)


# --- what is shown ------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Pictures of one bucket: those that are shown, and how many there are."""

    size: tuple[int, ...]
    count: int
    items: tuple[Item, ...]


def _chosen(found: Report, items: Sequence[Item], most: int) -> list[_Group]:
    by_name = {item.name: item for item in items}
    sizes = [len(entry.names) for entry in found.buckets]
    groups = []
    for entry, share in zip(found.buckets, _shares(sizes, most), strict=True):
        count = len(entry.names)
        names = [entry.names[(2 * place + 1) * count // (2 * share)] for place in range(share)]
        if names:
            groups.append(_Group(entry.size, count, tuple(by_name[name] for name in names)))
    return groups


def _shares(sizes: Sequence[int], most: int) -> list[int]:
    """How many of each group to show, larger ones first: one of each in half of the places, the rest in proportion."""
    shares = [0] * len(sizes)
    for _ in range(min(most, sum(sizes))):
        open_places = [place for place, size in enumerate(sizes) if shares[place] < size]
        first = [place for place in open_places[: max(1, most // 2)] if not shares[place]]
        # Sainte-Laguë: the next one goes where it adds least above the proportion.
        chosen = first[0] if first else min(open_places, key=lambda place: (2 * shares[place] + 1) / sizes[place])
        shares[chosen] += 1
    return shares


def _marks(found: Report) -> dict[str, list[str]]:
    """What is wrong with pictures, in a word or two, by name."""
    marks: dict[str, list[str]] = {}
    for mark, names in (
        ("no caption", [entry.name for entry in found.uncaptioned]),
        ("duplicate", [name for group in found.duplicates for name in group]),
        ("small", [entry.name for entry in found.small]),
        ("much cut off", [entry.name for entry in found.cropped]),
    ):
        for name in names:
            marks.setdefault(name, []).append(mark)
    return marks


_Row = list[tuple[int, _Group, bool]]  # column, part of a group, and whether its heading stands above it


def _rows(groups: Sequence[_Group], columns: int) -> list[_Row]:
    """Lay groups side by side; one that does not fit into what is left of a row begins a new one."""
    rows: list[_Row] = []
    column = columns
    for group in groups:
        if column + len(group.items) > columns:
            rows.append([])
            column = 0
        for first in range(0, len(group.items), columns):
            if first:
                rows.append([])
            part = replace(group, items=group.items[first : first + columns])
            rows[-1].append((column, part, first == 0))
        column += (len(group.items) - 1) % columns + 1
    return rows


# --- drawing ------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """Sizes in pixels, all from the width of a cell."""

    cell: int

    @property
    def gap(self) -> int:
        return self.cell // 9

    @property
    def small(self) -> int:
        return max(9, round(self.cell * 0.075))

    @property
    def large(self) -> int:
        return max(11, round(self.cell * 0.095))

    @property
    def title(self) -> int:
        return max(14, round(self.cell * 0.13))

    @property
    def line(self) -> int:
        return round(self.small * 1.4)

    @property
    def heading(self) -> int:
        return round(self.large * 1.9)

    @property
    def top(self) -> int:
        return self.gap + round(self.title * 1.5) + self.line + self.gap

    def tile(self, size: Sequence[int]) -> tuple[int, int]:
        """Width and height of the tile of a bucket, or of latents (C, h, w)."""
        width, height = size if len(size) == 2 else (size[-1], size[-2]) if len(size) > 1 else (1, 1)
        scale = self.cell / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def inset(self, size: Sequence[int]) -> tuple[int, int]:
        width, height = self.tile(size)
        inner = (width - (MOST_FURTHER - 1) * self.edge) // MOST_FURTHER
        return max(1, inner), max(1, round(height * inner / width))

    @property
    def edge(self) -> int:
        return max(2, self.cell // 40)

    def height(self, part: _Group) -> int:
        """Of a tile with its insets and its text."""
        below = self.edge + self.inset(part.size)[1] if any(map(further_crops, part.items)) else 0
        return self.tile(part.size)[1] + below + self.line * (2 + CAPTION_LINES) + self.gap // 2


@dataclass(frozen=True)
class _Sheet:
    look: _Look
    found: Report
    marks: dict[str, list[str]]
    floor: float  # weight of what a mask covers

    def draw(self, rows: Sequence[_Row], columns: int) -> Image.Image:
        look = self.look
        heights = [
            look.heading * any(titled for _, _, titled in row) + max(look.height(part) for _, part, _ in row)
            for row in rows
        ]
        width = columns * look.cell + (columns + 1) * look.gap
        sheet = Image.new("RGB", (width, look.top + sum(heights) + len(heights) * look.gap), PAPER)
        pen = ImageDraw.Draw(sheet)
        self._head(pen, sum(len(part.items) for row in rows for _, part, _ in row), width - 2 * look.gap)
        y = look.top
        for row, height in zip(rows, heights, strict=True):
            below = y + look.heading * any(titled for _, _, titled in row)
            for column, part, titled in row:
                x = look.gap + column * (look.cell + look.gap)
                if titled:
                    room = len(part.items) * (look.cell + look.gap) - look.gap
                    text = f"{size_text(part.size)} · {part.count:,} picture{'s' * (part.count != 1)}"
                    self._text(pen, (x, y), text, look.large, INK, room)
                for place, item in enumerate(part.items):
                    self._cell(sheet, pen, (x + place * (look.cell + look.gap), below), part.size, item)
            y += height + look.gap
        return sheet

    def _head(self, pen: ImageDraw.ImageDraw, shown: int, width: int) -> None:
        look, config = self.look, self.found.config
        count = self.found.pictures
        title = f"{count:,} picture{'s' * (count != 1)}" if shown == count else f"{shown:,} of {count:,} shown"
        facts = [f"resolution {self.found.resolution}"] * bool(self.found.resolution)
        facts.append(f"{self.found.looks:,} looks in each epoch")
        facts += [f"up to {self.found.crops} random crops of each"] * (self.found.crops > 1)
        facts += ["half of the looks mirrored"] * config.framing.flip
        facts += [f"{len(self.found.skipped):,} left out"] * bool(self.found.skipped)
        facts += ["what a mask covers is dimmed"] * bool(self.found.masked)
        self._text(pen, (look.gap, look.gap), title, look.title, INK, width)
        below = look.gap + round(look.title * 1.5)
        self._text(pen, (look.gap, below), " · ".join(facts), look.small, QUIET, width)

    def _cell(
        self, sheet: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], size: Sequence[int], item: Item
    ) -> None:
        look, (x, y) = self.look, at
        tile = look.tile(size)
        further = further_crops(item)
        inset = look.inset(size)
        marks = self.marks.get(item.name, [])
        try:
            pictures = seen(item, [tile, *[inset] * len(further)], self.floor)
        except InputError as error:
            pictures = []
            self._blank(pen, at, tile, f"cannot be read now: {error}", ALARM, bool(marks))
        if pictures:
            sheet.paste(pictures[0], at)
        elif item.open is None:
            self._blank(pen, at, tile, "no picture, latents only", QUIET, bool(marks))
        y += tile[1]
        for place, picture in enumerate(pictures[1:]):
            sheet.paste(picture, (x + place * (inset[0] + look.edge), y + look.edge))
        y += (look.edge + inset[1]) * bool(further) + look.gap // 2
        self._pills(pen, at, tile[0], marks)
        self._text(pen, (x, y), _tail(item.name, look), look.small, INK, look.cell)
        meta = [size_text(size), f"{item.repeats} repeats" if item.repeats > 1 else ""]
        self._text(pen, (x, y + look.line), " · ".join(filter(None, meta)), look.small, QUIET, look.cell)
        text, face = lettered(short(item.caption, 200), look.small)
        colour = CAPTION if item.written else ALARM
        for place, line in enumerate(wrapped(text, face, look.cell, CAPTION_LINES)):
            self._text(pen, (x, y + (2 + place) * look.line), line, look.small, colour, look.cell)

    def _blank(
        self,
        pen: ImageDraw.ImageDraw,
        at: tuple[int, int],
        tile: tuple[int, int],
        text: str,
        colour: tuple[int, ...],
        marked: bool,
    ) -> None:
        """A tile with words in place of a picture, below its marks if there are any."""
        look, (x, y), pad = self.look, at, self.look.gap // 2
        pen.rectangle((x, y, x + tile[0] - 1, y + tile[1] - 1), fill=TILE)
        top = pad + (look.line + look.edge) * marked
        written, face = lettered(text, look.small)
        for place, line in enumerate(wrapped(written, face, tile[0] - 2 * pad, max(1, (tile[1] - top) // look.line))):
            self._text(pen, (x + pad, y + top + place * look.line), line, look.small, colour, tile[0])

    def _pills(self, pen: ImageDraw.ImageDraw, at: tuple[int, int], width: int, marks: Sequence[str]) -> None:
        look, pad = self.look, max(2, self.look.edge)
        x, y = at[0] + pad, at[1] + pad
        for mark in marks:
            text, face = lettered(mark, look.small)
            right = x + round(face.getlength(text)) + 2 * pad
            if x > at[0] + pad and right > at[0] + width - pad:
                right, x, y = right - x + at[0] + pad, at[0] + pad, y + look.line + pad
            pen.rectangle((x, y, right - 1, y + look.line - 1), fill=ALARM)
            self._text(pen, (x + pad, y), text, look.small, PAPER, right - x)
            x = right + pad

    def _text(
        self,
        pen: ImageDraw.ImageDraw,
        at: tuple[int, int],
        text: str,
        size: int,
        colour: tuple[int, ...],
        width: int,
    ) -> None:
        """One line, its upper left corner at `at`, cut to `width` pixels."""
        written, face = lettered(text, size)
        # On a base line, because fonts differ in what they call their top.
        pen.text((at[0], at[1] + round(size * 1.05)), fitted(written, face, width), fill=colour, font=face, anchor="ls")


def _tail(name: str, look: _Look) -> str:
    """The file's own name where the whole one is too long."""
    text, face = lettered(name, look.small)
    return text if face.getlength(text) <= look.cell else text.rpartition("/")[2]
