"""A blind rating page: pairs of pictures side by side, with nothing in the page that tells which is which."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any

from .atomic import write_text
from .errors import InputError
from .evaluate_report import PAGES, data_uri
from .evaluate_sets import PictureSet, Shown, open_shown

__all__ = ["QUESTIONS", "Key", "Pair", "plan_pairs", "read_key", "write_rating"]

# The two that the paper's user study asked (Table 2).
QUESTIONS = ("Which picture fits the text better?", "Which picture looks better?")
_FORMAT = 1


@dataclass(frozen=True)
class Pair:
    """One comparison: an id that tells nothing, the caption, and the set and picture on each side."""

    id: str
    caption: str
    left: str
    right: str
    left_picture: str
    right_picture: str


@dataclass(frozen=True)
class Key:
    """What the page hides: which set each side is of. It is kept by whoever evaluates."""

    study: str
    methods: tuple[str, ...]
    questions: tuple[str, ...]
    pairs: tuple[Pair, ...]


def plan_pairs(sets: Sequence[PictureSet], count: int, seed: int) -> list[tuple[Pair, Shown, Shown]]:
    """Choose captions and pairs of sets, every pair of sets as often, and each of them as often left as right.

    All follow from the seed. Pictures of one name, whatever the ending, belong together; those count that every set
    has. Raises InputError for fewer than two sets or none in common.
    """
    if len(sets) < 2:
        raise InputError(f"a rating compares sets of pictures, and {len(sets)} was given; give two folders or more")
    if count < 1:
        raise InputError(f"pairs is {count}; wanted at least 1")
    tables = [_by_stem(one) for one in sets]
    shared = [stem for stem in tables[0] if all(stem in table for table in tables)]
    if not shared:
        raise _nothing_shared(sets, tables)
    draw = random.Random(f"trilora rating {seed}")
    draw.shuffle(shared)
    duels = list(combinations(range(len(sets)), 2))
    chosen = [(shared[index // len(duels) % len(shared)], duels[index % len(duels)]) for index in range(count)]
    # a caption meets a pair of sets once at most
    chosen = list(dict.fromkeys(chosen))
    sides: dict[tuple[int, int], list[bool]] = {duel: [] for duel in duels}
    for duel in duels:
        often = sum(other == duel for _, other in chosen)
        sides[duel] = [bool((index + draw.getrandbits(1) * (often % 2)) % 2) for index in range(often)]
        draw.shuffle(sides[duel])
    draw.shuffle(chosen)
    return [_pair(sets, tables, stem, duel, sides[duel].pop(), seed) for stem, duel in chosen]


def write_rating(
    sets: Sequence[PictureSet],
    output: Path,
    *,
    pairs: int,
    seed: int,
    questions: Sequence[str] = QUESTIONS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the page, and beside it the key that tells sides apart; gives the path of the key."""
    planned = plan_pairs(sets, pairs, seed)
    asked = tuple(questions)
    told = json.dumps([[asdict(pair) for pair, _, _ in planned], asked])
    study = hashlib.sha256(told.encode()).hexdigest()[:12]
    key = Key(study, tuple(one.name for one in sets), asked, tuple(pair for pair, _, _ in planned))
    shown = []
    for number, (pair, left, right) in enumerate(planned):
        shown.append({"id": pair.id, "caption": pair.caption, "left": _picture(left), "right": _picture(right)})
        if progress:
            progress(number + 1, len(planned))
    where = output.with_name(f"{output.stem}.key.json")
    write_text(where, json.dumps({"format": _FORMAT, **asdict(key)}, indent=2, ensure_ascii=False) + "\n")
    write_text(output, _page(study, asked, shown))
    return where


def read_key(path: Path) -> Key:
    """Read what `write_rating` wrote beside a page; InputError for anything else."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        pairs = tuple(Pair(**pair) for pair in found["pairs"])
        return Key(str(found["study"]), tuple(found["methods"]), tuple(found["questions"]), pairs)
    except OSError as error:
        raise InputError(f"the key {path} cannot be read ({error.strerror or error}); it is written beside the page, or"
                         " again by the same command with the same seed") from error  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no key of a rating page; wanted the .key.json that was written beside it"
        ) from error


def _by_stem(pictures: PictureSet) -> dict[str, Shown]:
    return {one.stem: one for one in pictures.pictures}


def _nothing_shared(sets: Sequence[PictureSet], tables: Sequence[dict[str, Shown]]) -> InputError:
    """Which folders have no name in common: the first and another, where there is one, else all together."""
    other = next((one for one, table in zip(sets, tables, strict=True) if not table.keys() & tables[0].keys()), None)
    who = f"{sets[0].folder} and {other.folder}" if other else "all folders together"
    return InputError(f"{who} have no picture name in common; pictures of one prompt must have one name in all folders")


def _pair(
    sets: Sequence[PictureSet],
    tables: Sequence[dict[str, Shown]],
    stem: str,
    duel: tuple[int, int],
    swapped: bool,
    seed: int,
) -> tuple[Pair, Shown, Shown]:
    first, second = reversed(duel) if swapped else duel
    left, right = tables[first][stem], tables[second][stem]
    name = hashlib.sha256(f"trilora pair {seed} {stem} {duel}".encode()).hexdigest()[:8]
    caption = left.caption or right.caption
    return Pair(name, caption, sets[first].name, sets[second].name, left.name, right.name), left, right


def _picture(shown: Shown) -> str:
    """Decoded and encoded anew: nothing that a file says of itself gets into the page."""
    return data_uri(open_shown(shown), 1024, quality=95)


def _page(study: str, questions: Sequence[str], shown: Sequence[dict[str, str]]) -> str:
    data = json.dumps({"study": study, "questions": list(questions), "pairs": list(shown)}, ensure_ascii=False)
    template = Template((PAGES / "rate.html").read_text(encoding="utf-8"))
    # "<" cannot end the script element that the data stands in
    return template.substitute(data=data.replace("<", "\\u003c"), title=escape("Which picture?"))
