"""kill -9 at any moment leaves the last whole state, and what is resumed from it equals the uninterrupted run."""

from __future__ import annotations

import os

import pytest

from tests.faults.kills import kill_encoding, kill_runs

RUNS = 14  # every other one is killed in the resume too
ENCODINGS = 4

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killed processes are forked")


@pytest.mark.slow
def test_twenty_kills_lose_at_most_the_steps_since_the_last_save(tmp_path):
    found = kill_runs(tmp_path, RUNS, seed=4)
    print(dict(found))
    assert found["train: killed"] >= RUNS // 2 and found["resume: killed"] and found["steps lost"]
    assert found["resumed to the same bits"] == RUNS


def test_a_killed_encoding_keeps_what_it_committed(tmp_path):
    found = kill_encoding(tmp_path, ENCODINGS, seed=4)
    print(dict(found))
    assert found["encode: killed"] and found["finished to the same bits"] == ENCODINGS
