"""Run all tests in two processes side by side: those of the package alone, and those that drive a ComfyUI.

`python tests/lanes.py [options of pytest]`. The second lane mostly waits for servers and pages; on one core, lanes
follow each other. Exits with 0 where both lanes pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANES = {
    "unit": ["-m", "not host and not browser", "--cov", "--cov-report=term"],
    "host": ["-m", "host or browser"],
}
NOTHING_CHOSEN = 5  # pytest's exit status where options such as -k leave no test


def main(options: list[str]) -> int:
    """Start the lanes, show their lines as they come, and return the first status that is not 0."""
    beside = len(os.sched_getaffinity(0)) > 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) > 1
    running: list[tuple[subprocess.Popen[str], threading.Thread]] = []
    for name, chosen in LANES.items():
        # not `python -m pytest`, which puts this folder on sys.path, where nodes/ would shadow the host's nodes.py
        command = [str(Path(sys.executable).with_name("pytest")), *chosen, *options]
        lane = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        shown = threading.Thread(target=_show, args=(name, lane))
        shown.start()
        running.append((lane, shown))
        if not beside:
            _end(*running[-1])
    found = [_end(*one) for one in running]
    if set(found) == {NOTHING_CHOSEN}:
        return NOTHING_CHOSEN
    return next((status for status in found if status not in (0, NOTHING_CHOSEN)), 0)


def _show(name: str, lane: subprocess.Popen[str]) -> None:
    assert lane.stdout is not None
    for line in lane.stdout:
        print(f"{name} | {line}", end="", flush=True)


def _end(lane: subprocess.Popen[str], shown: threading.Thread) -> int:
    while True:
        try:
            status = lane.wait()
            shown.join()
            return status
        except KeyboardInterrupt:  # it reached the lane as well, which ends its servers and tells what it did
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
