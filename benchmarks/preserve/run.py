"""Run what has not been run yet, one line of JSON for each run: `python benchmarks/preserve/run.py --stage main`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from measure import Bench, one_run
from methods import METHODS, Task, tasks


def done(file: Path) -> set[str]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {json.loads(line)["task"] for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="main", help="of methods.STAGES")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--worker", default="0/1", help="N/M: every M-th of the runs from the N-th on")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    number, workers = map(int, chosen.worker.split("/"))
    wanted = tasks(chosen.stage)
    bench = Bench()
    for task in wanted[number::workers]:
        if task.name in done(chosen.results):
            continue
        record = one_run(bench, METHODS[task.method], task.concept, task.seed, task.rate, task.steps)
        write(chosen.results, task, record)


def write(file: Path, task: Task, record: dict) -> None:
    about = {"task": task.name, "method": task.method, "concept": task.concept, "seed": task.seed, "rate": task.rate}
    line = json.dumps({**about, "steps": task.steps, **record}) + "\n"
    with os.fdopen(os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w", encoding="utf-8") as out:
        out.write(line)
    held, drift = record["curve"][-1][1:]
    print(f"{task.name}: held out {held:.4f}, drift {drift:.4f}, {record['seconds'] * 1000:.0f} ms a step", flush=True)


if __name__ == "__main__":
    main()
