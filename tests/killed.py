"""Trains the toy in processes that a test may kill: reads lines from standard input, forks a child for each.

A line is `train FILE` or `resume FILE`; the answer is the child's process id, then `done`, or `dead` if it was killed.
`here FILE` trains without a fork, so that the children find imported what torch imports late; the answer is `done`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, MonitorConfig, OptimizerConfig, TrainConfig
from trilora_core.monitor import split
from trilora_core.session import train_to_file
from trilora_core.train import Run

CONFIG = TrainConfig(
    steps=20,
    batch_size=2,
    seed=5,
    save_every=3,
    ema=0.9,
    adapter=AdapterConfig(rank=4, rank_dropout=0.2),
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=3),
    monitor=MonitorConfig(validation_share=0.25, validate_every=5, keep_best=True, keep_adapters=2),
)


def train(output: Path, *, resume: bool) -> None:
    """Train to `output`, and leave a byte in `output`.count after every step."""
    training, held_out = split(toy_dataset(8), CONFIG.monitor.validation_share, CONFIG.seed)
    denoiser = ToyDenoiser()
    adapter = TriLoRA.create(denoiser.targets(), CONFIG.adapter, seed=CONFIG.seed, data_hash=training.content_hash)
    run = Run(CONFIG, denoiser, training, adapter)
    output.parent.mkdir(exist_ok=True)
    count = os.open(output.with_suffix(".count"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    options = {"metadata": {}, "dtype": torch.float32, "held_out": held_out}
    train_to_file(run, output, on_step=lambda step: os.write(count, b"."), resume=resume, **options)


def main() -> None:
    """Import once, fork often: starting Python and torch anew would take most of the time."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        verb, path = line.rstrip("\n").split(" ", 1)
        if verb == "here":
            train(Path(path), resume=False)
            print("done", flush=True)
            continue
        child = os.fork()
        if child == 0:
            train(Path(path), resume=verb == "resume")
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print("done" if status == 0 else "dead", flush=True)


if __name__ == "__main__":
    main()
