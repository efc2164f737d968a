"""The long attack: thousands of hostile files through every reader, and what came of each.

python -m tests.hostile.soak --inputs 12000 --seed 0
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from .guard import SECONDS, Fault, outcome
from .readers import Reader, readers

SHARES = {"adapter": 0.55}  # of all inputs; the others share the rest


def attack(
    reader: Reader, count: int, seed: int, folder: Path, keep: Path | None = None
) -> tuple[Counter[str], list[str]]:
    """Outcomes of `count` mutants of a reader's good files, and every fault in words; each follows from its number."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    path = folder / f"mutant{reader.suffix}"
    for number in range(count):
        draw = random.Random(f"{reader.name} {seed} {number}")
        data = reader.mutate(draw.choice(reader.seeds), draw)
        path.write_bytes(data)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # where no Python runs, no clock is heard
        try:
            counts[outcome(lambda: reader.read(path), inside=folder)] += 1
        except Fault as fault:
            counts["fault"] += 1
            faults.append(f"{reader.name} {seed} {number}: {fault}")
            if keep is not None:
                (keep / f"{reader.name}-{seed}-{number}{reader.suffix}").write_bytes(data)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return counts, faults


def main() -> int:
    """Attack every reader and print a table; 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=12_000, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one reader alone")
    parser.add_argument("--keep", type=Path, help="folder for inputs that made a fault")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        good, work = Path(name) / "good", Path(name) / "work"
        good.mkdir()
        work.mkdir()
        found = [one for one in readers(good) if arguments.only in ("", one.name)]
        print(f"{'reader':<12}  inputs    read  refused  faults  seconds", flush=True)
        for one in found:
            share = SHARES.get(one.name, (1 - sum(SHARES.values())) / (len(found) - 1 or 1))
            count = arguments.inputs if arguments.only else round(arguments.inputs * share)
            started = time.perf_counter()
            counts, faults = attack(one, count, arguments.seed, work, arguments.keep)
            seconds = time.perf_counter() - started
            told = "".join(f"{counts[kind]:>9}" for kind in ("read", "refused", "fault"))
            print(f"{one.name:<12}  {count:>6}{told}  {seconds:>7.0f}", flush=True)
            every += faults
    print("\n".join(every))
    return bool(every)


if __name__ == "__main__":
    sys.exit(main())
