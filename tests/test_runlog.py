from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path

import pytest

from tests.test_train import CONFIG, make_run
from tests.toy import toy_dataset
from trilora_core import runlog
from trilora_core.errors import InputError
from trilora_core.runlog import RunLog, log_path, run_facts, tensorboard_folder


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in log_path(output).read_text(encoding="utf-8").splitlines()]


def steps_of(output: Path) -> list[int]:
    return [line["step"] for line in lines(output) if line["event"] == "step"]


def test_the_log_lies_beside_the_adapter(tmp_path):
    assert log_path(tmp_path / "style.safetensors") == tmp_path / "style.log.jsonl"


def test_lines_are_json_and_numbers_that_are_not_finite_are_null(tmp_path):
    output = tmp_path / "a.safetensors"
    with RunLog(output, 0) as log:
        log.write("step", 1, {"loss": math.nan, "grad_norm": math.inf, "names": ["größe", (1.5, -math.inf)]})
    assert lines(output) == [
        {"event": "step", "step": 1, "loss": None, "grad_norm": None, "names": ["größe", [1.5, None]]}
    ]
    assert "größe" in log_path(output).read_text(encoding="utf-8")


def test_lines_wait_and_come_together(tmp_path, monkeypatch):
    output, now = tmp_path / "a.safetensors", [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with RunLog(output, 0) as log:
        for step in range(1, 6):
            log.write("step", step, {})
        assert lines(output) == []
        now[0] += 10
        log.write("step", 6, {})
        assert steps_of(output) == [1, 2, 3, 4, 5, 6]
        log.write("step", 7, {})
        assert steps_of(output)[-1] == 6
        log.flush()
        assert steps_of(output)[-1] == 7


def test_a_resumed_run_cuts_what_lies_beyond_its_step(tmp_path):
    output = tmp_path / "a.safetensors"
    with RunLog(output, 0) as log:
        log.write("start", 0, {})
        for step in range(1, 6):
            log.write("step", step, {"try": 1})
    with log_path(output).open("a") as file:
        file.write('{"event": "step", "step": 6, "lo')  # the process was killed here
    with RunLog(output, 3) as log:
        log.write("step", 4, {"try": 2})
    found = [(line["step"], line.get("try")) for line in lines(output)]
    assert found == [(0, None), (1, 1), (2, 1), (3, 1), (4, 2)]


def test_a_new_run_starts_a_new_log_and_a_resumed_one_needs_none(tmp_path):
    output = tmp_path / "a.safetensors"
    for first in (1, 7):
        with RunLog(output, 0) as log:
            log.write("step", first, {})
        assert steps_of(output) == [first]
    log_path(output).unlink()
    with RunLog(output, 3) as log:
        log.write("step", 4, {})
    assert steps_of(output) == [4]


def test_a_crash_is_the_last_line(tmp_path):
    output = tmp_path / "a.safetensors"
    with pytest.raises(MemoryError), RunLog(output, 0) as log:
        log.write("step", 1, {})
        raise MemoryError("too little")
    assert lines(output)[-1] == {"event": "end", "step": 1, "ended": "error", "problem": "MemoryError: too little"}


def test_a_full_disk_leaves_no_half_line_and_the_lines_come_later(tmp_path):
    disk = pytest.importorskip("tests.faults.disk", reason="needs POSIX", exc_type=ImportError)
    output, problems = tmp_path / "a.safetensors", []
    log = RunLog(output, 0, problems.append)
    log.write("step", 1, {"loss": 1.0})
    log.flush()
    before = log_path(output).read_bytes()
    log.write("step", 2, {"loss": 2.0})
    with disk.at_most(len(before) + 10):
        log.flush()
    assert log_path(output).read_bytes() == before and "make room there" in problems[0]
    log.flush()
    assert [line["step"] for line in lines(output)] == [1, 2] and len(problems) == 1


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    output = tmp_path / "a.safetensors"
    problems = []
    log = RunLog(output, 0, problems.append)
    log_path(output).unlink()
    log_path(output).mkdir()
    log.write("step", 1, {})
    log.flush()
    log.flush()
    assert len(problems) == 1 and problems[0].startswith("cannot write the log ") and "a.log.jsonl" in problems[0]
    with pytest.raises(InputError, match="cannot read the log"):
        RunLog(output, 3)


class Board:
    """TensorBoard's writer on a disk that is full."""

    def __init__(self, *_, **__):
        pass

    def add_scalar(self, *_):
        raise OSError(28, "No space left on device")

    flush = close = lambda self: None


@pytest.mark.parametrize("full", ["at_once", "later"])
def test_a_full_disk_ends_tensorboards_curves_and_no_run(tmp_path, monkeypatch, full):
    def writer(folder, step):
        if full == "at_once":
            raise FileExistsError(17, "File exists")
        return Board()

    monkeypatch.setattr(runlog, "_summary_writer", writer)
    output, problems = tmp_path / "a.safetensors", []
    with RunLog(output, 0, problems.append) as log:
        log.write("step", 1, {"loss": 0.5})
        log.write("step", 2, {"loss": 0.5})
    assert steps_of(output) == [1, 2]
    assert len(problems) == 1 and problems[0].startswith("TensorBoard's curves end here: ")


def test_half_a_character_is_written_as_well_as_can_be(tmp_path):
    output = tmp_path / "a.safetensors"
    with RunLog(output, 0) as log:
        log.write("step", 1, {"names": ["caf\udce9"]})
    assert steps_of(output) == [1]


def test_the_facts_say_what_was_trained_on_what(tmp_path):
    run = make_run(prior=toy_dataset(2, seed=9))
    facts = run_facts(run, tmp_path / "a.safetensors", toy_dataset(3))
    assert facts["config"]["seed"] == CONFIG.seed and facts["steps"] == 40 and facts["device"] == "cpu"
    counts = {name: facts["data"][name] for name in ("pictures", "held_out", "prior", "looks_per_epoch")}
    assert counts == {"pictures": 6, "held_out": 3, "prior": 2, "looks_per_epoch": 6}
    assert facts["base"]["name"] == "toy" and facts["fingerprint"] == run.fingerprint()
    assert facts["adapter"]["parameters"] == sum(p.numel() for p in run.trainable.trainable())
    assert set(facts["versions"]) == {"trilora", "python", "torch", "safetensors", "pillow"}
    assert json.dumps(facts)


def test_without_tensorboard_nothing_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with RunLog(tmp_path / "a.safetensors", 0) as log:
        log.write("step", 1, {"loss": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["a.log.jsonl"]


@pytest.mark.skipif(runlog.importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_the_curves_of_a_resumed_run(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, clock = tmp_path / "a.safetensors", iter(range(10**9, 10**9 + 10**6))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))  # files are read in the order of their seconds
    with RunLog(output, 0) as log:
        for step in range(1, 6):
            log.write("step", step, {"loss": float(step), "grad_norm": math.nan})
        log.write("measure", 5, {"validation": 0.25, "drift": 0.1})
        log.write("file", 5, {"path": "x"})
    with RunLog(output, 3) as log:
        log.write("step", 4, {"loss": 40.0})
    events = EventAccumulator(str(tensorboard_folder(output))).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert events.Scalars("validation") == [], "the measure lay beyond the step"
    assert set(events.Tags()["scalars"]) == {"loss", "validation", "drift"}
    with RunLog(output, 0) as log:
        log.write("step", 1, {"loss": 9.0})
    events = EventAccumulator(str(tensorboard_folder(output))).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(1, 9)]
