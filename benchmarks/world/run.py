"""Run what has not been run yet, one line of JSON for each run: `python benchmarks/world/run.py base tune main`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "preserve"), str(HERE.parents[1])]
from plan import BASE, METHODS, STAGES, Task, groups  # noqa: E402

PICTURES = HERE.parents[1] / "build" / "world"


def load(file: Path) -> list[dict]:
    """Every record, once."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return list({record["task"]: record for record in map(json.loads, lines)}.values())


def missing(
    stage: str, records: Sequence[dict], seeds: Sequence[int] | None = None, methods: Sequence[str] | None = None
) -> list[Task]:
    """The runs of a stage that have no record, each once; of all seeds and methods, or of these."""
    there = {record["task"] for record in records}
    wanted = [
        task
        for task in STAGES[stage](records)
        if (seeds is None or task.seed in seeds) and (methods is None or task.method in methods)
    ]
    return list({task.name: task for task in wanted if task.name not in there}.values())


def write(file: Path, task: Task, record: dict) -> None:
    """Append one record, whole."""
    about = {"task": task.name, "method": task.method, "concept": task.about, "shown": task.shown, "seed": task.seed}
    line = json.dumps({**about, "rate": task.rate, "steps": task.steps, **record}) + "\n"
    with os.fdopen(os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644), "w", encoding="utf-8") as out:
        out.write(line)
    told = record.get("best") or {"validation": record["curve"][-1][1]}
    print(f"{task.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in told.items()), flush=True)


def main() -> None:
    """Do the stages that were asked for; one whose tasks follow from its own results goes on until none is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--steep", action="store_true", help="on the base with steep spectra (steep.py)")
    parser.add_argument("--results", type=Path, help="default: results.jsonl beside this file, or steep.jsonl")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="where drawn pictures are kept")
    parser.add_argument("--together", type=int, default=18, help="runs that share a forward pass (default: 18)")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these (default: all; tuning has one of its own)")
    parser.add_argument("--methods", nargs="+", choices=[BASE, *METHODS], metavar="METHOD", help="only these")
    parser.add_argument("--list", action="store_true", help="only say how many runs are missing")
    chosen = parser.parse_args()
    file = chosen.results or HERE / ("steep.jsonl" if chosen.steep else "results.jsonl")

    def left(stage: str) -> list[Task]:
        return missing(stage, load(file), chosen.seeds, chosen.methods)

    if chosen.list:
        for stage in chosen.stages:
            print(f"{stage}: {len(left(stage))} runs are missing")
        return
    torch.set_num_threads(1)
    from trial import World, run_together  # here: --list needs no model

    world = World(chosen.pictures / "steep" if chosen.steep else chosen.pictures, steep=chosen.steep)
    for stage in chosen.stages:
        while wanted := left(stage):
            group = groups(wanted, chosen.together)[0]
            for task, record in zip(group, run_together(world, group), strict=True):
                write(file, task, record)


if __name__ == "__main__":
    main()
