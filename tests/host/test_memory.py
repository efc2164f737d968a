"""Memory in the real host: the estimate is said before a run, and a full device leaves file, model and host usable."""

from __future__ import annotations

from pathlib import Path

from .discovery import Host
from .in_process import run_in_host


def test_a_run_says_what_it_needs_and_survives_a_full_device(host: Host) -> None:
    answer = run_in_host(host, "memory", {}, timeout=600)
    assert answer["finished"]
    line = next(text for text in answer["log"] if text.startswith("memory: about "))
    assert "2 x 4 x 8 x 8 latents" in line and "still to come" in line
    error = answer["error"]
    assert answer["kind"] == "InputError" and "out of memory on cpu in step 4 of 6" in error
    assert "part_stopped_at_00003.safetensors" in error and "half the rank" in error
    assert answer["untouched"] and answer["clean"] and answer["again"]
    assert Path(error.rpartition("is kept: ")[2]).name == "part_stopped_at_00003.safetensors"
