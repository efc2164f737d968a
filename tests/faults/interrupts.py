"""Ctrl-C at random moments of training on the toy, from its preparation to its last file: what is left each time.

python -m tests.faults.interrupts --count 100
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.faults.kills import check_whole, equal
from tests.killed import CONFIG
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.checkpoint import state_path
from trilora_core.monitor import split
from trilora_core.session import train_to_file
from trilora_core.train import Run


def interrupt(folder: Path, count: int, seed: int) -> Counter[str]:
    """Interrupt `count` runs on one model and finish each: what came of it.

    AssertionError where the model is not as before to its bits and hooks, a file is torn, something that was trained is
    neither in a file nor in a state, or the resumed run does not come to the bits of the uninterrupted one.
    """
    found, denoiser = Counter[str](), ToyDenoiser()
    before, whole = contents(denoiser), folder / "whole" / "a.safetensors"
    train(denoiser, whole, resume=False)
    started = time.process_time()
    train(denoiser, folder / "again" / "a.safetensors", resume=False)
    took, alive = time.process_time() - started, tensors()
    for number in range(count):
        output = folder / f"{number}" / "a.safetensors"
        found[cut(denoiser, output, took * random.Random(f"{seed} {number}").random())] += 1
        assert contents(denoiser) == before, number
        check_whole(output)
        found["temporary files left"] += len(list(output.parent.glob(".*.part")))  # the next run clears them away
        if not output.exists():
            train(denoiser, output, resume=True)
        assert equal(output, whole) and contents(denoiser) == before, number
        found["finished to the same bits"] += 1
    found["tensors more"] = tensors() - alive
    assert found["tensors more"] <= 0, found
    return found


def cut(denoiser: ToyDenoiser, output: Path, after: float) -> str:
    """Start a run and press Ctrl-C after so many seconds of the processor."""
    steps, armed = list[int](), [True]
    signal.signal(signal.SIGPROF, lambda number, frame: armed and os.kill(os.getpid(), signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_PROF, max(1e-4, after))
        train(denoiser, output, resume=False, steps=steps)
        armed.clear()
    except KeyboardInterrupt:
        armed.clear()
        if output.exists():
            return "interrupted with the result written"
        kept = list(output.parent.glob("a_stopped_at_*.safetensors"))
        assert bool(steps) <= bool(kept or state_path(output).exists()), steps
        return "interrupted, kept" if kept else "interrupted before the first step"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "ended before it"


def train(denoiser: ToyDenoiser, output: Path, *, resume: bool, steps: list[int] | None = None) -> None:
    """The run that tests/killed.py kills."""
    training, held_out = split(toy_dataset(8), CONFIG.monitor.validation_share, CONFIG.seed)
    adapter = TriLoRA.create(denoiser.targets(), CONFIG.adapter, seed=1, data_hash=training.content_hash)
    heard = [] if steps is None else steps
    run = Run(CONFIG, denoiser, training, adapter)
    train_to_file(
        run, output, metadata={}, on_step=lambda step: heard.append(step.step), resume=resume, held_out=held_out
    )


def contents(denoiser: ToyDenoiser) -> Any:
    """The bits of a model, and what hangs on its modules."""
    weights = [tensor.numpy().tobytes() for tensor in denoiser.model.state_dict().values()]
    return weights, [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in modules(denoiser)]


def modules(denoiser: ToyDenoiser) -> list[torch.nn.Module]:
    """The model and all below it."""
    return list(denoiser.model.modules())


def tensors() -> int:
    """Tensors that Python knows."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def main() -> int:
    """Interrupt as often as asked and print what came of it; AssertionError where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell begins without
    with tempfile.TemporaryDirectory() as name:
        found = interrupt(Path(name), arguments.count, arguments.seed)
    print(*(f"{what}: {number}" for what, number in sorted(found.items())), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
