"""Text in drawn pictures: Pillow's own font, and a font of the system for letters that this one lacks."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont

from .report_text import printable

__all__ = ["Face", "fitted", "lettered", "wrapped"]

Face = ImageFont.FreeTypeFont

# What Pillow's own font holds; it draws an empty box for all else.
OWN_LETTERS = frozenset(map(chr, range(32, 127))) | frozenset("©«°±´·»‘’“”…‹›⁄™")
# Of Windows, macOS and Linux, those with most letters first; Pillow looks for them where the system keeps fonts.
SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "segoeui.ttf",
    "arial.ttf",
    "Arial.ttf",
)
NOWHERE = "\uffff"  # never a letter: drawn as whatever a font draws for those it lacks


def lettered(text: str, size: int) -> tuple[str, Face]:
    """The text as it can be drawn and the font to draw it with, `size` in pixels.

    The font is the one that has most of its letters; of those that it lacks, accents are dropped and the others become
    question marks.
    """
    text = printable(text)
    foreign = set(text) - OWN_LETTERS
    if not foreign:
        return text, _own(size)
    best = max(_of_system(size), key=lambda face: sum(_has(face, letter) for letter in foreign), default=_own(size))
    known = OWN_LETTERS | {letter for letter in foreign if best != _own(size) and _has(best, letter)}
    return "".join(letter if letter in known else _plain(letter) for letter in text), best


def fitted(text: str, face: Face, width: int) -> str:
    """As much of the text as fits into `width` pixels, with an ellipsis where it is cut."""
    if len(text) <= width and face.getlength(text) <= width:
        return text
    text = text[:width]  # no letter is thinner than a pixel
    low, high = 0, len(text)  # bisection: measuring is the slow part
    while low < high:
        middle = (low + high + 1) // 2
        if face.getlength(text[:middle].rstrip() + "…") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def wrapped(text: str, face: Face, width: int, lines: int) -> list[str]:
    """The text in at most `lines` lines of `width` pixels, broken between words where it has any."""
    found: list[str] = []
    rest = text.strip()
    while rest and len(found) < lines - 1:
        cut = _line(rest, face, width)
        found.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*found, fitted(rest, face, width)] if rest else found


def _line(text: str, face: Face, width: int) -> int:
    """How many letters the first line takes, at least one."""
    low, high = 1, min(len(text), max(1, width))
    while low < high:
        middle = (low + high + 1) // 2
        if face.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    space = text.rfind(" ", 0, low + 1)
    return low if low == len(text) or space < 1 else space


def _plain(letter: str) -> str:
    parts = [part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part)]
    return "".join(part if part in OWN_LETTERS else "?" for part in parts)


@cache
def _own(size: int) -> Face:
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)  # always, where a size is given
    return face


@cache
def _of_system(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    found = []
    for name in SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # not on this machine
            continue
    return tuple(found)


@cache
def _has(face: ImageFont.FreeTypeFont, letter: str) -> bool:
    if letter.isspace():
        return True
    drawn, missing = face.getmask(letter), face.getmask(NOWHERE)
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
