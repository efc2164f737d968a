"""Run what has not been run yet, one line of JSON for each run: `python benchmarks/preserve/run.py main`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from measure import BATCH, Bench, run_together  # noqa: E402
from methods import METHODS, STAGES, Task, tasks  # noqa: E402


def done(file: Path) -> set[str]:
    """Names of the runs that have a record."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {json.loads(line)["task"] for line in lines}


def groups(wanted: Sequence[Task], most: int) -> list[list[Task]]:
    """Runs that can go together, in their order: as many rows in each step, and as many steps."""
    found: dict[tuple[float, int], list[list[Task]]] = {}
    for task in wanted:
        rows = BATCH * METHODS[task.method].get("keep", {"share": 0.0}).get("share", 1 / 3)
        parts = found.setdefault((rows, task.steps), [[]])
        if len(parts[-1]) == most:
            parts.append([])
        parts[-1].append(task)
    together = [part for parts in found.values() for part in parts]
    return sorted(together, key=lambda part: wanted.index(part[0]))


def write(file: Path, task: Task, record: dict) -> None:
    """Append one record, whole."""
    about = {"task": task.name, "method": task.method, "concept": task.concept, "seed": task.seed, "rate": task.rate}
    line = json.dumps({**about, "steps": task.steps, **record}) + "\n"
    with os.fdopen(os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w", encoding="utf-8") as out:
        out.write(line)
    held, drift = record["curve"][-1][1:3]
    print(f"{task.name}: held out {held:.4f}, drift {drift:.4f}", flush=True)


def main() -> None:
    """Do the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", help=", ".join(STAGES))
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--together", type=int, default=9, help="runs that share a forward pass (default: 9)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    for stage in chosen.stages:  # what another process has begun is done twice, and counts once
        there = done(chosen.results)
        for group in groups([task for task in tasks(stage) if task.name not in there], chosen.together):
            records = run_together(bench, [METHODS[task.method] for task in group], group)
            for task, record in zip(group, records, strict=True):
                write(chosen.results, task, record)


if __name__ == "__main__":
    main()
