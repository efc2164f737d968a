"""Let people choose between pictures: write a page that hides which is which, or count what they chose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import InputError
from ..evaluate_sets import names_of, read_set
from ..rating import QUESTIONS, Key, read_key, write_rating
from ..rating_results import Duel, Strength, Vote, bradley_terry, duels, read_votes
from .parser import Arguments, OneLineParser, whole
from .pictures import reported
from .saving import check_page, check_report

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "DIR DIR [DIR …] --output PAGE.html [options] | --results FILE.csv [FILE.csv …] --key PAGE.key.json [options]"
EXAMPLES = """\
examples:
  python -m trilora_core rate report_pictures/base-* report_pictures/lora-* report_pictures/trilora-* \\
      --captions PICTURES --output study.html
  (give study.html to people; keep study.key.json; collect the CSV files that they save)
  python -m trilora_core rate --results rating-*.csv --key study.key.json --output study.json"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    page = parser.add_argument_group("a page to rate on")
    page.add_argument(
        "folders", metavar="DIR", nargs="*", help="pictures of one method in each; one name for one prompt"
    )
    page.add_argument("--captions", metavar="DIR", help="take captions from the pictures of these names")
    page.add_argument("--pairs", type=whole, metavar="N", help="comparisons (default: 50)")
    page.add_argument("--seed", type=whole, metavar="N", help="of the order, the sides and the choice (default: 30)")
    page.add_argument(
        "--question",
        metavar="TEXT",
        nargs="+",
        help="what is asked of each pair (default: the paper's two, text and looks)",
    )
    results = parser.add_argument_group("or what was chosen")
    results.add_argument("--results", metavar="FILE.csv", type=Path, nargs="+", help="the files that raters saved")
    results.add_argument("--key", metavar="FILE", type=Path, help="PAGE.key.json, which was written beside the page")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (.html), or the figures (.json, optional)"
    )


def run(arguments: Arguments) -> int:
    """Write a page, or count votes."""
    return _count(arguments) if arguments.results else _make(arguments)


def _make(arguments: Arguments) -> int:
    if arguments.key:
        raise InputError("--key goes with --results; a new page writes a key of its own")
    if not arguments.folders or arguments.output is None:
        raise InputError(
            "give two folders or more and --output PAGE.html, or --results with --key; --help has examples"
        )
    output = check_page(arguments.output)
    known = read_set(arguments.captions).captions() if arguments.captions else {}
    names = names_of(arguments.folders)
    sets = [read_set(folder, name, 1).captioned(known) for folder, name in zip(arguments.folders, names, strict=True)]
    with reported("writing", "pair", False, delay=1.0) as progress:
        key = write_rating(
            sets,
            output,
            pairs=50 if arguments.pairs is None else arguments.pairs,
            seed=30 if arguments.seed is None else arguments.seed,
            questions=arguments.question or QUESTIONS,
            progress=progress,
        )
    print(f"page: {output.resolve()} ({len(read_key(key).pairs)} pairs)")
    print(f"key:  {key.resolve()} (keep it; without it nobody knows which is which)")
    return 0


_PAGE_ONLY = {"folders": "a folder"} | {name: f"--{name}" for name in ("captions", "pairs", "seed", "question")}


def _count(arguments: Arguments) -> int:
    idle = [word for name, word in _PAGE_ONLY.items() if getattr(arguments, name) not in (None, [])]
    if idle:
        raise InputError(f"{idle[0]} is for a new page, and does nothing with --results; leave it out")
    if arguments.key is None:
        raise InputError("--results needs --key, the .key.json that was written beside the page")
    output = check_report(arguments.output) if arguments.output else None
    key = read_key(arguments.key)
    votes = read_votes(arguments.results, key)
    found = duels(votes, key.methods)
    strengths = _all_strengths(votes, key) if len(key.methods) > 2 else {}
    print(_text(votes, key, found, strengths))
    if output is not None:
        write_text(output, json.dumps(_json(votes, key, found, strengths), indent=2, ensure_ascii=False) + "\n")
        print(f"figures: {output.resolve()}")
    return 0


def _all_strengths(votes: Sequence[Vote], key: Key) -> dict[int, list[Strength]]:
    asked = sorted({vote.question for vote in votes})
    return {number: bradley_terry([v for v in votes if v.question == number], key.methods) for number in asked}


def _unrated(key: Key, strengths: dict[int, list[Strength]]) -> dict[int, list[str]]:
    """The sets that no vote is about, which have no strength, by question."""
    return {
        number: [name for name in key.methods if name not in {one.name for one in several}]
        for number, several in strengths.items()
    }


def _text(votes: Sequence[Vote], key: Key, found: Sequence[Duel], strengths: dict[int, list[Strength]]) -> str:
    raters = {vote.rater for vote in votes}
    lines = [f"{len(votes)} choices of {len(raters)} rater{'s' * (len(raters) != 1)}; intervals are of 95 %"]
    for number in sorted({duel.question for duel in found}):
        lines += ["", key.questions[number]]
        lines += [f"  {_line(duel)}" for duel in found if duel.question == number]
        for one in sorted(strengths.get(number, []), key=lambda one: -one.chance):
            lines.append(
                f"  {one.name}: wins {one.chance:.0%} against an average one [{one.low:.0%}, {one.high:.0%}]"
                " (Bradley-Terry)"
            )
        lines += [f"  {name}: no choice yet" for name in _unrated(key, strengths).get(number, [])]
    return "\n".join(lines)


def _line(duel: Duel) -> str:
    low, high = duel.bounds
    text = (
        f"{duel.first} over {duel.second}: {duel.share:.0%} of {duel.wins + duel.losses} decided"
        f" [{low:.0%}, {high:.0%}], {duel.ties} without difference"
    )
    if duel.raters < 2:
        return text
    leaning = duel.raters_first + duel.raters_second
    low, high = duel.raters_bounds
    return f"{text}; {duel.raters_first} of {leaning} raters that lean [{low:.0%}, {high:.0%}]"


def _json(
    votes: Sequence[Vote], key: Key, found: Sequence[Duel], strengths: dict[int, list[Strength]]
) -> dict[str, Any]:
    return {
        "format": 1,
        "study": key.study,
        "methods": list(key.methods),
        "questions": list(key.questions),
        "raters": sorted({vote.rater for vote in votes}),
        "duels": [
            {**asdict(duel), "share": duel.share, "interval": duel.bounds, "raters_interval": duel.raters_bounds}
            for duel in found
        ],
        "strengths": {str(number): [asdict(one) for one in several] for number, several in strengths.items()},
        "unrated": {str(number): names for number, names in _unrated(key, strengths).items()},
    }
