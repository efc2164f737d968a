"""The fast part of the faults that `make soak` makes by the hundred: full disks, Ctrl-C, a long run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.long import train_long

posix = pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="needs POSIX")
SECONDS = 1.5
ROOT = Path(__file__).resolve().parents[2]


@posix
@pytest.mark.parametrize("mounted", [False, True], ids=["limit", "disk"])
def test_a_full_disk_costs_no_work_and_tears_no_file(tmp_path, mounted):
    from tests.faults.disk import fill_rooms, may_mount

    if mounted and not may_mount(tmp_path):
        pytest.skip("this user may mount no disk in memory")
    found = fill_rooms(tmp_path / "rooms", 6, 2, mounted=mounted)
    assert found["came to the same bits"] == 6 and found["had room for all"] < 6, found


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX")
def test_control_c_at_any_moment_leaves_the_model_and_the_work():
    """In a process of its own: where it hits coverage's measuring, which holds a lock meanwhile, all waits for ever."""
    command = [sys.executable, "-m", "tests.faults.interrupts", "--count", "6", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    assert found["finished to the same bits"] == "6" and found.get("ended before it") != "6", found


def test_a_long_run_has_a_whole_log_a_bounded_panel_and_no_leak(tmp_path):
    """With figures of seconds only; tests.faults.long takes an hour for those of pace and memory."""
    found = train_long(tmp_path, SECONDS)
    assert found["tensors more"] <= 0, found
    assert os.name != "posix" or found["MiB, by tenths"]
