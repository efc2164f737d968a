"""A long training at full speed, with all that a run can watch: does memory, pace, log or panel drift?

python -m tests.faults.long --minutes 60
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tests.test_session import Painter, watched
from tests.test_train import CONFIG
from trilora_core.liverun import LiveRun
from trilora_core.milestones import Listeners
from trilora_core.runlog import log_path
from trilora_core.runrecord import read_log
from trilora_core.session import train_to_file
from trilora_core.train import Run, Step

MOST_STEPS = 5_000_000
OF_A_STEP = 256  # bytes that a step may leave: its loss in a list, our own note of it, and what the allocator keeps
PARTS = 10


@dataclass
class Watch:
    """What was seen of a run, a part of its time after the other."""

    seconds: float
    run: Run
    live: LiveRun
    started: float = field(default_factory=time.monotonic)
    costs: list[list[float]] = field(default_factory=lambda: [[]])  # processor seconds of the steps of each part
    rows: list[tuple[int, int, int]] = field(default_factory=list)  # step, bytes resident, tensors alive
    sent: int = 0
    cost: float = field(default_factory=time.thread_time)

    def step(self, step: Step) -> None:
        """Hear of a step; ask the run to stop when the time is over."""
        self.live.stepped(step)
        if step.step % 50 == 0:
            self.sent += len(self.live.news()["points"])
        now = time.thread_time()
        self.costs[-1].append(now - self.cost)
        passed = time.monotonic() - self.started
        if passed >= self.seconds * len(self.costs) / PARTS:
            self.rows.append((step.step, resident(), tensors()))
            self.costs.append([])
        if passed >= self.seconds:
            self.run.request_stop()
        self.cost = time.thread_time()


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * 4096 if path.exists() else 0


def tensors() -> int:
    """Tensors that Python knows."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def train_long(folder: Path, seconds: float) -> dict[str, Any]:
    """Train that long; what was seen. AssertionError where something drifts or the log or the panel is wrong."""
    config = replace(CONFIG, steps=MOST_STEPS, save_every=1000, ema=0.9)
    config = replace(config, optimizer=replace(config.optimizer, schedule="constant", learning_rate=1e-3))
    watch = {"validate_every": 1000, "preview_every": 5000, "preview_prompts": ("a",), "spectrum_every": 1000}
    run, held_out = watched(config, keep_adapters=2, keep_best=True, **watch)
    live = LiveRun("long", MOST_STEPS)
    seen, problems = Watch(seconds, run, live), list[str]()
    heard = Listeners(live.measured, lambda at, paths: live.drawn(at, paths[:-1]), problems.append, live.looked)
    outcome = train_to_file(
        run,
        folder / "long.safetensors",
        metadata={},
        on_step=seen.step,
        held_out=held_out,
        previewer=Painter(),
        listeners=heard,
    )
    assert outcome.ended == "stop" and not problems, problems
    check_log_and_panel(folder, seen, outcome.steps_done)
    return figures(seen, outcome.steps_done)


def check_log_and_panel(folder: Path, seen: Watch, steps: int) -> None:
    """Every step is in the log once; the panel has the first, the last, and not too many."""
    record = read_log(log_path(folder / "long.safetensors"))
    assert record.skipped == 0 and [one.step for one in record.steps] == list(range(1, steps + 1))
    assert [round(loss, 6) for loss in record.losses()] == [round(loss, 6) for loss in seen.run.losses]
    assert record.end["ended"] == "stop" and record.end["step"] == steps
    points = seen.live.whole()["points"]
    assert points[0][0] == 1 and points[-1][0] == steps and len(points) <= 2000
    assert len(list(folder.glob("long_step_*"))) <= 2 and not list(folder.glob(".*.part"))


def figures(seen: Watch, steps: int) -> dict[str, Any]:
    """The drift of pace and memory between the first parts, once all is warm, and the last."""
    paces = [statistics.median(part) for part in seen.costs if part]
    (early, before, held), (late, after, alive) = seen.rows[1], seen.rows[-1]
    return {
        "steps": steps,
        "minutes": (time.monotonic() - seen.started) / 60,
        "ms a step, by tenths": " ".join(f"{1000 * pace:.2f}" for pace in paces),
        "pace, last to second": paces[-1] / paces[1],
        "MiB, by tenths": " ".join(f"{bytes_ / 2**20:.0f}" for _, bytes_, _ in seen.rows),
        "growth in bytes a step": (after - before) / max(1, late - early),
        "tensors more": alive - held,
    }


def check(found: dict[str, Any]) -> None:
    """AssertionError where memory or pace drift."""
    assert found["tensors more"] <= 0, found
    assert found["growth in bytes a step"] <= OF_A_STEP or found["minutes"] < 1, found
    assert found["pace, last to second"] < 1.15 or found["minutes"] < 1, found


def main() -> int:
    """Train, print what was seen; 1 where something drifts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = train_long(Path(name), 60 * arguments.minutes)
    for what, value in found.items():
        print(f"{what:<24} {value:.3f}" if isinstance(value, float) else f"{what:<24} {value}", flush=True)
    check(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
