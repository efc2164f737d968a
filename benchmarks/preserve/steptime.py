"""Process time of a step with and without preservation, in turns: `python benchmarks/preserve/steptime.py`."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from measure import BATCH, RANK, Bench  # noqa: E402

from trilora_core.adapter import TriLoRA  # noqa: E402
from trilora_core.config import AdapterConfig, PreserveConfig, TrainConfig  # noqa: E402
from trilora_core.preserve import LEVELS  # noqa: E402
from trilora_core.train import Run, train  # noqa: E402

ROUNDS, STEPS = 8, 10


def seconds(bench: Bench, level: str, batch: int) -> float:
    """Per step, the first one of each round left out."""
    config = TrainConfig(
        steps=STEPS + 1, batch_size=batch, adapter=AdapterConfig(rank=RANK), preserve=PreserveConfig(level)
    )
    kept = None if level == "off" else bench.kept("style", LEVELS[level], "broad")
    adapter = TriLoRA.create(bench.targets, config.adapter, seed=0, data_hash="x")
    run = Run(config, bench.denoiser, bench.data("style")[0], adapter, kept=kept)
    with adapter.attach(bench.targets), closing(train(run)) as steps:
        next(steps)
        started = time.process_time()
        for _ in steps:
            pass
        return (time.process_time() - started) / STEPS


def main() -> None:
    """Print medians and their ratio."""
    torch.set_num_threads(1)
    bench = Bench()
    for batch in (BATCH, 12):
        found = [(seconds(bench, "off", batch), seconds(bench, "light", batch)) for _ in range(ROUNDS)]
        off, on = (median(column) for column in zip(*found, strict=True))
        ratio = median(b / a for a, b in found)
        print(f"batch {batch}: {1000 * off:.0f} ms without, {1000 * on:.0f} ms with, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
