"""Trains the toy in processes that a test may kill: reads lines from standard input, forks a child for each.

A line is `train FILE`, `resume FILE` or `encode FOLDER`; the answer is the child's process id, then `done`, or `dead`
if it was killed. `train:7 FILE` kills itself at the seventh time that it opens, renames, deletes or marks a file.
`here FILE` trains without a fork, so that the children find imported what torch imports late; the answer is `done`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from tests.counting import CountingEncoder
from tests.counting import config as data_config
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, MonitorConfig, OptimizerConfig, TrainConfig
from trilora_core.data import cache, load_folder
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
EVENTS = ("open", "os.rename", "os.remove", "os.chmod")


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


def encode(folder: Path) -> None:
    """Encode `pictures` of a folder into its cache; each picture and caption is a transaction of its own."""
    cache.COMMIT_SECONDS = 0.0
    store = cache.DiskStore(folder / "data.sqlite", 1 << 30)
    load_folder(data_config(folder.parent / "pictures"), CountingEncoder(), store)
    store.close()


def die_at(number: int) -> None:
    """Have this process killed at its file event of this number, counted from here."""
    seen = 0

    def hook(event: str, _arguments: object) -> None:
        nonlocal seen
        seen += event in EVENTS
        if seen == number:
            seen += 1  # killing is an event too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def work(verb: str, path: Path) -> None:
    """What a line asks for."""
    if verb == "encode":
        encode(path)
    else:
        train(path, resume=verb == "resume")


def main() -> None:
    """Import once, fork often: starting Python and torch anew would take most of the time."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        verb, path = line.rstrip("\n").split(" ", 1)
        verb, _, number = verb.partition(":")
        if verb == "here":
            train(Path(path), resume=False)
            print("done", flush=True)
            continue
        child = os.fork()
        if child == 0:
            if number:
                die_at(int(number))
            work(verb, Path(path))
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print("done" if status == 0 else "dead", flush=True)


if __name__ == "__main__":
    main()
