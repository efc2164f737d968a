"""kill -9 at any moment leaves the last whole state, and what is resumed from it equals the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import safetensors
import torch

from trilora_core.checkpoint import state_path
from trilora_core.fileformat import read_metadata
from trilora_core.milestones import best_path
from trilora_core.runlog import log_path

KILLS = 20
SAVE_EVERY = 3  # of tests/killed.py

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killed processes are forked")


class Nursery:
    """A process that has imported everything and forks a training child on each request."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def ask(self, verb: str, output: Path) -> str:
        self.process.stdin.write(f"{verb} {output}\n")
        self.process.stdin.flush()
        return self.end()

    def start(self, verb: str, output: Path) -> int:
        return int(self.ask(verb, output))

    def end(self) -> str:
        return self.process.stdout.readline().strip()


@contextmanager
def nursery() -> Iterator[Nursery]:
    command = [sys.executable, "-m", "tests.killed"]
    root = Path(__file__).resolve().parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # with a GPU, torch starts threads, and processes with threads cannot be forked
    with subprocess.Popen(command, cwd=root, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, **pipes) as process:
        yield Nursery(process)
        process.stdin.close()
        assert process.wait(10) == 0


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def equal(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saved_step(output: Path) -> int:
    """The step of the state that is there, which must be whole; 0 without one."""
    if not state_path(output).is_file():
        return 0
    assert tensors(state_path(output))
    with safetensors.safe_open(state_path(output), framework="pt") as file:
        return json.loads(file.metadata()["trilora.state"])["step"]


def told(output: Path, event: str) -> list[dict]:
    """The lines of the log without what differs from machine to machine."""
    lines = [json.loads(line) for line in log_path(output).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "path")} for line in lines if line["event"] == event]


@pytest.mark.slow
def test_twenty_kills_lose_at_most_the_steps_since_the_last_save(tmp_path):
    whole, chance = tmp_path / "whole" / "a.safetensors", random.Random(4)
    lost, in_time, leftovers = [], 0, 0
    with nursery() as parent:
        assert parent.ask("here", whole) == "done"
        started = time.monotonic()
        parent.start("train", tmp_path / "again" / "a.safetensors")
        assert parent.end() == "done"
        took = time.monotonic() - started
        history = read_metadata(whole)["trilora.history"]
        for number in range(KILLS):
            output = tmp_path / f"{number}" / "a.safetensors"
            child = parent.start("train", output)
            time.sleep(took * chance.random())
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
            in_time += parent.end() == "dead"
            done = output.with_suffix(".count").stat().st_size if output.with_suffix(".count").exists() else 0
            if not output.exists():
                lost.append(done - saved_step(output))
            leftovers += len(list(output.parent.glob(".*.part")))
            parent.start("resume", output)
            assert parent.end() == "done", number
            assert equal(output, whole) and equal(best_path(output), best_path(whole)), number
            assert read_metadata(output)["trilora.history"] == history
            assert told(output, "step") == told(whole, "step") and told(output, "measure") == told(whole, "measure")
            assert not list(output.parent.glob(".*.part")) and not state_path(output).exists()
            kept = [path.name for path in sorted(output.parent.glob("a_step_*"))]
            assert kept == ["a_step_00015.safetensors", "a_step_00018.safetensors"], number
    print(
        f"{in_time} of {KILLS} killed in time; steps lost: {lost}; half-written files: {leftovers}; run: {took:.2f} s"
    )
    assert in_time >= KILLS // 2 and max(lost) <= SAVE_EVERY and any(lost)
