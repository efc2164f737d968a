"""The report on a data set as a page of plain text: problems with what to do first, then what there is."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report

__all__ = ["printable", "report_text", "short", "size_text"]

WIDTH = 100  # characters of a line
NAMES = 6  # of each problem that are shown, fewer where they take more than two lines
SIZES = 8  # rows
FOLDERS = 5  # rows
MESSAGES = 3
HELD = "\xa0"  # a space where no line is broken, inside of names
TAGS = 20
TAG_COLUMNS = 3
TAG_WIDTH = 24  # characters


def report_text(report: Report) -> str:
    """Lay out a report in at most about sixty lines."""
    problems = [*_skipped(report), *(line for problem in _problems(report) for line in _problem(*problem))]
    found = ["", "Worth a look", *problems] if problems else ["", "No problems found."]
    parts = (_sizes(report), _folders(report), _captions(report), _masks(report), _notes(report))
    lines = [_head(report), *found, *(line for part in parts if part for line in ("", *part))]
    return printable("\n".join(lines))


def size_text(size: Sequence[int]) -> str:
    """Width and height of a bucket, or the shape of latents."""
    joined = " x ".join(map(str, size))
    return joined if len(size) == 2 else f"latents {joined}"


def _more(entries: Sequence[str], most: int, joint: str = ", ") -> str:
    rest = len(entries) - most
    return joint.join(entries[:most]) + (f" … and {rest:,} more" if rest > 0 else "")


def _head(report: Report) -> str:
    looks = f"{_count(report.looks, 'look')} in each epoch"
    if report.looks < report.repeated:
        looks += f", drawn anew from {report.repeated:,}"
    size = f" · resolution {report.resolution}" if report.resolution else ""
    return f"{_count(report.pictures, 'picture')} · {looks}{size}"


# --- problems -----------------------------------------------------------------

_Problem = tuple[str, str, Sequence[str]]  # what is wrong, what to do, which pictures


def _problem(what: str, do: str, which: Sequence[str]) -> Iterator[str]:
    yield from _wrap(f"{what} {do}", "  ! ", "    ")
    if which:
        yield from _names(which, "      ")


def _skipped(report: Report) -> Iterator[str]:
    if report.skipped:
        yield f"  ! {_count(len(report.skipped), 'picture')} cannot be used, so the model will not see:"
        yield from _messages(report.skipped, "      ")


def _problems(report: Report) -> Iterator[_Problem]:
    yield from _caption_problems(report)
    yield from _picture_problems(report)
    if report.unmasked and not report.masked:
        yield (
            "No picture has a mask, although masks are asked for: all of every picture counts.",
            "Check the folder of the masks and their names."
            if report.config.masks.source == "folder"
            else "Save the pictures with transparency, in PNG or WebP, or turn masks off.",
            (),
        )
    if report.alone:
        whose = "its" if len(report.alone) == 1 else "their"
        yield (
            f"{_count(len(report.alone), 'picture')} alone at {whose} size, so in mixed batches: correct but slower.",
            "Crop like others.",
            [f"{entry.names[0]} ({size_text(entry.size)})" for entry in report.alone],
        )


def _caption_problems(report: Report) -> Iterator[_Problem]:
    if report.uncaptioned:
        got = Counter(entry.caption for entry in report.uncaptioned)
        nothing = got.pop("", 0)
        spelled = [f'"{short(text, 40)}"' + (f" ({count})" if len(got) > 1 else "") for text, count in got.items()]
        seen = [f"the model sees {_more(spelled, 2)}"] if spelled else []
        stops = f"training stops at {'them' if nothing > 1 else 'it'}, for want of a trigger word"
        seen += [f"{stops} ({nothing})" if spelled else stops] if nothing else []
        yield (
            f"{_count(len(report.uncaptioned), 'picture')} without a caption: {', '.join(seen)}.",
            "Write one into a .txt file beside each." if report.config.folder else "Give one for each picture.",
            [entry.name for entry in report.uncaptioned],
        )
    if report.untriggered:
        trigger = " ".join(report.config.trigger_word.split())
        yield (
            f'{_count(len(report.untriggered), "caption")} without the trigger word "{trigger}".',
            "Add it to them, or to the caption prefix.",
            report.untriggered,
        )


def _picture_problems(report: Report) -> Iterator[_Problem]:
    if report.small:
        yield (
            f"{_count(len(report.small), 'picture')} too small for resolution {report.resolution}: "
            f"{'enlarged, so soft' if report.config.framing.upscale else 'seen smaller'}.",
            "Find larger ones, or leave these out.",
            [f"{entry.name} ({size_text(entry.size)})" for entry in report.small],
        )
    if report.cropped:
        yield (
            f"{_count(len(report.cropped), 'picture')} losing more than a quarter to the crop.",
            "Cut them by hand to what matters." if report.config.framing.buckets else "Turn buckets on, or cut them.",
            [f"{entry.name} ({100 * entry.cut:.0f} % cut off)" for entry in report.cropped],
        )
    if report.duplicates:
        extra = sum(map(len, report.duplicates)) - len(report.duplicates)
        yield (
            f"{_count(extra, 'copy', 'copies')} of other pictures, which count for more.",
            "Remove them, or use repeats if that is meant.",
            [_more(names, 3, " = ") for names in report.duplicates],
        )


# --- what there is ------------------------------------------------------------


def _sizes(report: Report) -> list[str]:
    if not report.buckets:
        return []
    rows = [(size_text(entry.size), f"{len(entry.names):,}", f"{100 * entry.cut:.0f} %") for entry in report.buckets]
    known = 3 if report.resolution else 2  # columns: nobody knows how latents were cut
    framing = report.config.framing
    views = [f"up to {report.crops} random crops of each" if report.crops > 1 else ""]
    views.append("half of the looks mirrored" if framing.flip else "")
    title = "; ".join(["Sizes they are seen at", *filter(None, views)])
    return [title, *_table(("size", "pictures", "cut off")[:known], [row[:known] for row in rows], SIZES)]


def _folders(report: Report) -> list[str]:
    subsets = report.subsets
    if len(subsets) == 1 and subsets[0].repeats == 1 and not subsets[0].name:
        return []
    rows = [
        (short(entry.name, 40) or "(no class)", f"{entry.pictures:,}", f"x {entry.repeats}", f"{looks:,}")
        for entry in subsets
        for looks in [entry.pictures * entry.repeats]
    ]
    return ["Folders", *_table(("class", "pictures", "repeats", "looks"), rows, FOLDERS)]


def _captions(report: Report) -> list[str]:
    if report.captions == 0 or (report.captions == 1 and not report.tags):
        return []
    shared = f"; {report.shared_captions:,} pictures share theirs with another" if report.shared_captions else ""
    lines = ["Captions", f"  {report.captions:,} different for {_count(report.pictures, 'picture')}{shared}"]
    common = [entry for entry in report.tags if entry[1] > 1][:TAGS]
    if not common:
        return lines
    rest = len(report.tags) - len(common)
    lines.append(f"  {_count(len(report.tags), 'different tag')}" + ("; the most common:" if rest else ":"))
    cells = [f"  {count:>6,}  {short(tag, TAG_WIDTH):<{TAG_WIDTH}}" for tag, count in common]
    height = -(-len(cells) // TAG_COLUMNS)
    return lines + ["".join(cells[row::height]).rstrip() for row in range(height)]


def _masks(report: Report) -> list[str]:
    if not report.masked:
        return []
    lines = ["Masks", f"  {_count(report.masked, 'picture')} with a mask"]
    if report.unmasked:
        lines.append(f"  {_count(len(report.unmasked), 'picture')} without, all of which counts:")
        lines += _names(report.unmasked, "    ", 1)
    return lines


def _notes(report: Report) -> list[str]:
    return ["Notes", *_messages(report.notes, "  ")] if report.notes else []


def _messages(texts: Sequence[str], indent: str) -> list[str]:
    rest = len(texts) - MESSAGES
    lines = [line for text in texts[:MESSAGES] for line in _wrap(text, indent, indent + "  ")]
    return lines + ([f"{indent}… and {rest:,} more"] if rest > 0 else [])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    """Columns in line, the first to the left; `most` of the rows."""
    most += len(rows) == most + 1  # rather than a line that says so
    shown = [list(row) for row in (head, *rows[:most])]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  " + "   ".join((first, *others)).rstrip())
    rest = len(rows) - most
    return lines + ([f"  … and {rest:,} more"] if rest > 0 else [])


def _names(names: Sequence[str], indent: str, room: int = 2) -> list[str]:
    """As many names as fit into `room` lines, one at least."""
    for most in range(NAMES, 0, -1):
        held = [name.replace(" ", HELD) for name in names[:most]]
        lines = _wrap(_more([*held, *names[most:]], most), indent, indent)
        if len(lines) <= room:
            break
    return lines


def _wrap(text: str, first: str, further: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)
    return [line.replace(HELD, " ") for line in lines]


def printable(text: str) -> str:
    """A text without what would steer a terminal or cannot be written as UTF-8; names of files can hold both."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _count(number: int, word: str, plural: str = "") -> str:
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def short(text: str, most: int) -> str:
    """A text of at most `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
