"""A disk that becomes full: what a run says, keeps and goes on to, with room for so many bytes only.

    python -m tests.faults.disk --rooms 100

The room is the system's own limit of the size of a file (RLIMIT_FSIZE), and where this user may mount one, a small
disk in memory: there, all files share it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.faults.kills import check_whole, equal
from tests.killed import CONFIG
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.errors import InputError
from trilora_core.milestones import Listeners, best_path
from trilora_core.monitor import split
from trilora_core.session import train_to_file
from trilora_core.train import Run

LARGEST = 60_000  # bytes: the state, the largest file of the run, is less


@dataclass
class Told:
    """What a run told: "steps" or why it was refused, the step at which it ended, and what went wrong on the way."""

    ended: str
    step: int
    problems: list[str] = field(default_factory=list)


def fill_rooms(folder: Path, count: int, seed: int, *, mounted: bool) -> Counter[str]:
    """Train in `count` rooms of random size, then once more with enough: what came of it.

    AssertionError where a run ends otherwise than with a result or one clear line, where a file under a name of its own
    is torn, or where the run with room does not come to the bits of one that always had it.
    """
    found: Counter[str] = Counter()
    whole = folder / "whole" / "a.safetensors"
    assert train(whole) == Told("steps", CONFIG.steps)
    for number in range(count):
        size, place = random.Random(f"{seed} {number}").randint(1, LARGEST), folder / f"{number}"
        if mounted:
            with small_disk(folder / "disk", 4 * size) as disk:
                told = train(disk / "a.safetensors")
                shutil.copytree(disk, place)
            shutil.rmtree(folder / "disk")
        else:
            with at_most(size):
                told = train(place / "a.safetensors")
        check(told, place)
        found[kind(told)] += 1
        found["complaints on the way"] += len(told.problems)
        if mounted and told.ended != "steps" and told.step:
            check_rescued(told, whole)
            found["of these, kept among the temporary files"] += 1
        if told.ended != "steps":
            assert train(place / "a.safetensors", resume=True).ended == "steps", (size, told)
        assert equal(place / "a.safetensors", whole), (size, told)
        if told.ended != "steps" or not told.problems:
            assert equal(best_path(place / "a.safetensors"), best_path(whole)), (size, told)
        found["came to the same bits"] += 1
    return found


def kind(told: Told) -> str:
    """How a run ended, for the table."""
    if told.ended == "steps":
        return "trained to its end, in spite of what could not be written" if told.problems else "had room for all"
    return "refused before the first step" if told.step == 0 else "trained to its end, result refused"


def train(output: Path, *, resume: bool = False) -> Told:
    """Train the toy; what it told."""
    training, held_out = split(toy_dataset(8), CONFIG.monitor.validation_share, CONFIG.seed)
    denoiser, problems = ToyDenoiser(), list[str]()
    adapter = TriLoRA.create(denoiser.targets(), CONFIG.adapter, seed=1, data_hash=training.content_hash)
    run = Run(CONFIG, denoiser, training, adapter)
    try:
        outcome = train_to_file(
            run,
            output,
            metadata={},
            on_step=lambda step: None,
            resume=resume,
            held_out=held_out,
            listeners=Listeners(on_problem=problems.append),
        )
    except InputError as error:
        return Told(str(error), run.step, problems)
    return Told(outcome.ended, run.step, problems)


def check(told: Told, folder: Path) -> None:
    """Every complaint says what to do, no file is torn, nothing half-written is left behind."""
    for line in [*told.problems, *([told.ended] if told.ended != "steps" else [])]:
        assert "make room there" in line, told
    if folder.exists():
        check_whole(folder / "a.safetensors")
        assert not list(folder.glob(".*.part")), told


def check_rescued(told: Told, whole: Path) -> None:
    """What had no room where it should lie is whole elsewhere, and the message says where."""
    place = re.search(r"is kept as (\S+): move it", told.ended)
    assert place is not None, told
    assert equal(Path(place[1]), whole)
    shutil.rmtree(Path(place[1]).parent)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A disk in memory of so many bytes, rounded up to pages; CalledProcessError where this user may mount none."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a disk in memory."""
    if os.name != "posix" or shutil.which("mount") is None:
        return False
    try:
        with small_disk(folder / "try", 8192):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> int:
    """Fill as many disks as asked and print what came of it; AssertionError where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for mounted in [False, True] if may_mount(Path(name)) else [False]:
            found = fill_rooms(Path(name) / str(mounted), arguments.rooms, arguments.seed, mounted=mounted)
            print("a small disk" if mounted else "a limit on each file", flush=True)
            print(*(f"  {what}: {number}" for what, number in sorted(found.items())), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
