from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tests.test_session import keep, rising, stop_at, watched
from tests.test_train import CONFIG, make_run
from tests.toy import ToyDenoiser
from trilora_core.errors import InputError
from trilora_core.runlog import log_path
from trilora_core.runrecord import read_log


def test_a_whole_run_is_read_back(tmp_path):
    run, held_out = watched(validate_every=10, spectrum_every=15, keep_best=True)
    path = tmp_path / "a.safetensors"
    outcome = keep(run, path, held_out=held_out)
    record = read_log(log_path(path))
    assert record.losses() == run.losses and tuple(record.measures) == outcome.measures
    assert (record.planned, record.done, record.ended, record.finished) == (40, 40, "steps", True)
    assert [look.step for look in record.looks] == [0, 15, 30, 40]
    assert record.looks[-1].layers.keys() == outcome.adapter.layers.keys()
    assert record.files[-1] == {"step": 40, "path": str(path), "what": "result"}
    assert record.best == min(outcome.measures[1:], key=lambda measure: measure.validation)
    assert record.starts == [0] and record.skipped == 0
    assert record.steps[3].learning_rate > 0 and record.steps[3].seconds > 0


def test_a_resumed_run_is_one_and_a_killed_one_has_no_end(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(), path, stop_at(7))
    assert read_log(log_path(path)).ended == "interrupt" and not read_log(log_path(path)).finished
    whole = log_path(path).read_text(encoding="utf-8")
    keep(make_run(), path, resume=True)
    text = log_path(path).read_text(encoding="utf-8")
    record = read_log(log_path(path))
    assert record.starts == [0, 7] and record.done == 40 and len(record.steps) == 40
    cut = tmp_path / "cut.log.jsonl"
    cut.write_text(text[: text.index('"step": 30, "loss"') + 25], encoding="utf-8")
    record = read_log(cut)
    assert (record.done, record.ended, record.finished, record.skipped) == (29, "", False, 1)
    assert whole.startswith(text.splitlines()[0])


def test_what_was_left_out_has_no_loss(tmp_path):
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {4}
    path = tmp_path / "a.safetensors"
    keep(make_run(replace(CONFIG, steps=8), denoiser), path)
    record = read_log(log_path(path))
    assert [step.step for step in record.steps if step.dropped] == [4] and math.isnan(record.losses()[3])


def test_an_early_end_is_told(tmp_path):
    run, held_out = watched(patience=2, validate_every=4)
    rising(run, best=8)
    keep(run, tmp_path / "a.safetensors", held_out=held_out)
    record = read_log(log_path(tmp_path / "a.safetensors"))
    assert (record.ended, record.done, record.planned, record.best.step) == ("validation", 16, 40, 8)


def test_strange_lines_are_counted_and_a_strange_file_is_refused(tmp_path):
    good = {"event": "step", "step": 2, "loss": None, "learning_rate": 1e-4, "seconds": 0.5}
    strange = [
        "[]",
        "3",
        '{"event": "step"}',
        '{"event": "step", "step": "two"}',
        '{"event": "dance", "step": 1}',
        '{"event": "spectrum", "step": 2, "effective_rank": 1, "norm": 2, "layers": [1]}',
        '{"event": "spectrum", "step": 2, "effective_rank": 1, "norm": 2, "layers": {"a": 3}}',
        '{"event": "measure", "step": 2, "validation": "low", "drift": 0}',
        '{"event": "st',
    ]
    path = tmp_path / "a.log.jsonl"
    path.write_text("\n".join([*strange, "", json.dumps(good)]), encoding="utf-8")
    record = read_log(path)
    assert record.skipped == len(strange) and record.done == 2 and math.isnan(record.losses()[1])
    assert record.planned == 0 and record.ended == ""
    path.write_text('{"event": "start", "step": 0, "base": 3, "config": {"adapter": []}}', encoding="utf-8")
    record = read_log(path)
    assert record.told("base") == record.told("config", "adapter") == record.told("data", "x") == {}
    path.write_bytes(b"\x00\xff\n" + b"PNG")
    with pytest.raises(InputError, match="holds no line of a run's log"):
        read_log(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_log(tmp_path / "none.log.jsonl")
