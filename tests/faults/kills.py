"""kill -9 at random moments of training, saving, resuming and encoding: what is lost, and what goes on.

python -m tests.faults.kills --runs 60 --encodings 40
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import safetensors
import torch

from tests.counting import CountingEncoder, config, fill
from trilora_core.checkpoint import state_path
from trilora_core.data import load_folder
from trilora_core.data.cache import DiskStore
from trilora_core.fileformat import read_metadata
from trilora_core.milestones import best_path
from trilora_core.runlog import log_path

EVENTS = 160  # times that a whole run opens, renames or deletes a file, and some: a later number kills nobody
PICTURES = 40
SAVE_EVERY = 3  # of tests/killed.py


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
    root = Path(__file__).resolve().parents[2]
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


def kill_runs(folder: Path, count: int, seed: int) -> Counter[str]:
    """Kill `count` runs, half of them once more in the resume, and finish each: what came of it.

    Every other one kills itself at a file event, which is where saving is; the others are killed by the clock.
    AssertionError where anything is lost but the steps since the last state, or half written.
    """
    found: Counter[str] = Counter()
    whole = folder / "whole" / "a.safetensors"
    with nursery() as parent:
        assert parent.ask("here", whole) == "done"
        started = time.monotonic()
        parent.start("train", folder / "again" / "a.safetensors")
        assert parent.end() == "done"
        took = time.monotonic() - started
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            output = folder / f"{number}" / "a.safetensors"
            for verb in ("train", "resume")[: 1 + number % 2]:
                before = saved_step(output)
                found[f"{verb}: killed"] += killed(parent, verb, output, draw, took, by_event=number % 4 > 1)
                done = before + counted(output)
                check_whole(output)
                if not output.exists():
                    lost = done - saved_step(output)
                    assert lost <= SAVE_EVERY, (number, verb, lost)
                    found["steps lost"] += max(0, lost)
                found["half-written, under names of their own"] += len(list(output.parent.glob(".*.part")))
            parent.start("resume", output)
            assert parent.end() == "done", number
            check_finished(output, whole)
            found["resumed to the same bits"] += 1
    return found


def killed(parent: Nursery, verb: str, output: Path, draw: random.Random, took: float, *, by_event: bool) -> bool:
    """Start a child and have it killed; whether it was before it ended."""
    output.with_suffix(".count").unlink(missing_ok=True)  # of the child before, where this one dies before it counts
    if by_event:
        parent.start(f"{verb}:{draw.randint(1, EVENTS)}", output)
        return parent.end() == "dead"
    child = parent.start(verb, output)
    time.sleep(took * draw.random())
    with suppress(ProcessLookupError):  # it was faster
        os.kill(child, signal.SIGKILL)
    return parent.end() == "dead"


def counted(output: Path) -> int:
    """Steps that the last child did."""
    path = output.with_suffix(".count")
    return path.stat().st_size if path.exists() else 0


def check_whole(output: Path) -> None:
    """Every file under a name of its own can be read to its end; of the log, every line but perhaps the last."""
    for path in (*output.parent.glob("a*.safetensors"), *output.parent.glob("a*.state")):
        assert tensors(path), path
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.metadata(), path
    if log_path(output).exists():
        for line in log_path(output).read_text(encoding="utf-8").split("\n")[:-1]:
            json.loads(line)


def check_finished(output: Path, whole: Path) -> None:
    """All that the finished run left is that of the uninterrupted one."""
    assert equal(output, whole) and equal(best_path(output), best_path(whole))
    assert read_metadata(output)["trilora.history"] == read_metadata(whole)["trilora.history"]
    assert told(output, "step") == told(whole, "step") and told(output, "measure") == told(whole, "measure")
    assert not list(output.parent.glob(".*.part")) and not state_path(output).exists()
    names = [path.name for path in sorted(output.parent.glob("a_step_*"))]
    assert names == ["a_step_00015.safetensors", "a_step_00018.safetensors"]


def kill_encoding(folder: Path, count: int, seed: int) -> Counter[str]:
    """Kill `count` encodings of a folder, each up to three times, and finish each: what came of it."""
    found: Counter[str] = Counter()
    fill(folder / "pictures", PICTURES)
    wanted = load_folder(config(folder / "pictures"), CountingEncoder())
    with nursery() as parent:
        assert parent.ask("here", folder / "warm" / "a.safetensors") == "done"
        started = time.monotonic()
        parent.start("encode", folder / "whole")
        assert parent.end() == "done"
        took = time.monotonic() - started
        for number in range(count):
            draw, place = random.Random(f"{seed} {number}"), folder / f"{number}"
            kept = 0
            for _ in range(draw.randint(1, 3)):
                dead = killed(parent, "encode", place, draw, took, by_event=False)
                found["encode: killed"] += dead
                now = entries(place / "data.sqlite")
                assert now >= kept, "what was committed is gone"
                kept = now
            encoder = CountingEncoder()
            with closing(DiskStore(place / "data.sqlite", 1 << 30)) as store:
                data = load_folder(config(folder / "pictures"), encoder, store)
                assert data.content_hash == wanted.content_hash
                for one, other in zip(data.items, wanted.items, strict=True):
                    assert store.get(one.latents[0]).equal(wanted.store.get(other.latents[0]))
            assert len(encoder.sizes) <= PICTURES + 2 - kept, "what was kept was encoded again"
            assert not list(place.glob("*.broken*"))
            found["entries kept"] += kept
            found["finished to the same bits"] += 1
    return found


def entries(path: Path) -> int:
    """How many values a cache holds after a kill; AssertionError where the file is damaged."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        try:
            (pairs,) = db.execute("SELECT count(*) FROM entries JOIN blobs USING (id)").fetchone()
            (rows,) = db.execute("SELECT count(*) FROM entries").fetchone()
        except sqlite3.OperationalError:  # killed before its tables were there
            return 0
    assert pairs == rows
    return int(rows)


def main() -> int:
    """Kill as often as asked and print what came of it; AssertionError where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--encodings", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for kill, count in ((kill_runs, arguments.runs), (kill_encoding, arguments.encodings)):
        with tempfile.TemporaryDirectory() as name:
            found = kill(Path(name), count, arguments.seed)
        print(*(f"{what}: {number}" for what, number in sorted(found.items())), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
