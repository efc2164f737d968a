"""A sheet of what runs have drawn: `python benchmarks/world/pictures.py benchmarks/world/pictures.jpg`.

It is put together from the pictures that run.py keeps (`build/world`); nothing is drawn anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "preserve"), str(HERE.parents[1])]
from lessons import CONCEPT_NAMES, test  # noqa: E402
from plan import BASE, STEPS, Task, best_rates  # noqa: E402
from report import load  # noqa: E402
from run import PICTURES  # noqa: E402
from trial import drawing  # noqa: E402

from trilora_core.demo.world import SIZE  # noqa: E402
from trilora_core.plots import picture_grid  # noqa: E402

SHOWN = (2, 7)  # of each concept's captions
Row = list[Image.Image]


def row(place: Path, tasks: Sequence[Task], which: str) -> Row | None:
    """The chosen pictures of one run for each concept; None where a run is missing."""
    files = [drawing(place, task, which) for task in tasks]
    if not all(file.is_file() for file in files):
        return None
    found = []
    for file in files:
        with Image.open(file) as sheet:
            found += [sheet.crop((SIZE * n, 0, SIZE * (n + 1), SIZE)).copy() for n in SHOWN]
    return found


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--place", type=Path, default=PICTURES, help="where run.py keeps drawn pictures")
    parser.add_argument("--methods", nargs="+", default=["lora", "svd-mean", "svd", "dora", "pissa", "svd-mean, light"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=12, help="pictures trained on")
    parser.add_argument("--times", type=float, default=1, help="of the best rate")
    parser.add_argument("--rate", type=float, help="one for all, in place of so many times the best")
    parser.add_argument("--longer", type=int, default=1, help="times the steps")
    parser.add_argument("--which", choices=("best", "last"), default="best")
    chosen = parser.parse_args()
    rates = best_rates(load(chosen.results))
    labels, rows = ["drawn, not learned"], [[test(about)[n][0] for about in CONCEPT_NAMES for n in SHOWN]]
    wanted = {"base": [Task(BASE, about, 12, 0, 0.0, 0) for about in CONCEPT_NAMES]}
    for method in chosen.methods:
        rate, steps = chosen.rate or chosen.times * rates.get(method, 0.0), chosen.longer * STEPS
        wanted[method] = [Task(method, about, chosen.shown, chosen.seed, rate, steps) for about in CONCEPT_NAMES]
    for label, tasks in wanted.items():
        found = row(chosen.place, tasks, "best" if label == "base" else chosen.which)
        if found is None:
            print(f"{label}: not all of its pictures are in {chosen.place}; run.py draws them")
            continue
        labels.append(label)
        rows.append(found)
    columns = [test(about)[n][1] for about in CONCEPT_NAMES for n in SHOWN]
    with TemporaryDirectory() as place:
        sheet = Path(place) / "sheet.png"
        picture_grid(rows, sheet, row_labels=labels, column_labels=columns, cell=96)
        with Image.open(sheet) as picture:
            picture.convert("RGB").save(chosen.output, quality=85)


if __name__ == "__main__":
    main()
