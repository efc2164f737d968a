from __future__ import annotations

import json
import math
import threading
from dataclasses import replace

import pytest

from tests.test_session import Painter, keep, stop_at, watched
from tests.test_train import CONFIG, make_run
from trilora_core.config import MonitorConfig
from trilora_core.liverun import LiveRun
from trilora_core.milestones import Listeners
from trilora_core.monitor import Measure
from trilora_core.previews import previews_folder
from trilora_core.runlog import log_path
from trilora_core.runrecord import read_log
from trilora_core.train import Step

FACTS = "run node workflow name state text step steps seconds_per_step eta memory can_preview ended problem file"
NAMES = {*FACTS.split(), "points", "measures", "spectra", "previews"}


def step(number, loss=0.5, seconds=2.0):
    return Step(number, 10, loss, 1e-4, 1.0, seconds)


def test_news_are_told_once_and_the_whole_always():
    live = LiveRun("style", 10, node="3:1", workflow="w")
    fresh = live.whole()
    assert fresh.keys() == NAMES and (fresh["node"], fresh["workflow"], fresh["state"]) == ("3:1", "w", "preparing")
    live.began(0, 10, can_preview=True)
    live.uses((1, 2))
    live.stepped(step(1))
    live.measured(Measure(1, math.nan, 0.25))
    first = live.news()
    assert (first["step"], first["eta"], first["memory"]) == (1, 18.0, {"used": 1, "total": 2})
    assert first["points"] == [[1, 0.5, 1e-4]] and first["measures"] == [[1, None, 0.25]]
    live.stepped(step(2, math.inf))
    second = live.news()
    assert second["points"] == [[2, None, 1e-4]] and second["measures"] == [] == live.news()["points"]
    whole = live.whole()
    assert whole["points"] == first["points"] + second["points"] and whole["measures"] == first["measures"]
    json.dumps(whole, allow_nan=False)


def test_an_ended_run_keeps_its_curve_and_says_what_went_wrong():
    live = LiveRun("style", 10)
    live.began(0, 10, can_preview=False)
    live.stepped(step(1))
    live.end("error", problem="it broke")
    whole = live.whole()
    assert (whole["state"], whole["ended"], whole["problem"], whole["eta"]) == ("ended", "error", "it broke", None)
    assert len(whole["points"]) == 1 and live.line()["ended"] == "error"


def test_long_runs_stay_small(tmp_path):
    live = LiveRun("style", 5000)
    for number in range(1, 5001):
        live.stepped(step(number))
        live.measured(Measure(number, 1.0, 0.0))
        live.drawn(number, [tmp_path / f"{number}.png"])
    whole, news = live.whole(), live.news()
    assert len(whole["points"]) <= 2000 and len(news["points"]) <= 256
    assert len(whole["measures"]) <= 500 and len(whole["previews"]) <= 500
    assert len(live._pictures) <= 500
    first, last = whole["previews"][0], whole["previews"][-1]
    assert live.picture(first["pictures"][0]).name == "1.png" and live.picture(last["pictures"][0]).name == "5000.png"
    assert last["pictures"] == [4999] and live.picture(1) is None, "thinned, and numbers are never given twice"


def test_readers_in_other_threads_get_whole_messages():
    live, seen, over = LiveRun("style", 3000), [], threading.Event()

    def read():
        while not over.is_set():
            whole = live.whole()
            seen.append(whole["points"][-1][0] == whole["step"] if whole["points"] else whole["step"] == 0)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 3001):
        live.stepped(step(number))
    over.set()
    thread.join()
    assert seen and all(seen)


def listeners(live):
    return Listeners(live.measured, lambda at, paths: live.drawn(at, paths[:-1]), on_spectrum=live.looked)


def test_what_the_log_tells_is_what_was_told(tmp_path):
    options = {"spectrum_every": 20, "preview_every": 20, "preview_prompts": ("a", "b")}
    run, held_out = watched(**options)
    path, live = tmp_path / "a.safetensors", LiveRun("a", 40)
    keep(run, path, live.stepped, held_out=held_out, previewer=Painter(), listeners=listeners(live))
    told = LiveRun("a", 40)
    told.recall(read_log(log_path(path)), previews_folder(path))
    first, second = live.whole(), told.whole()
    assert len(first["points"]) == 40 and [entry["step"] for entry in first["spectra"]] == [0, 20, 40]
    for name in ("points", "measures", "previews", "step", "steps"):
        assert first[name] == second[name], name
    for one, other in zip(first["spectra"], second["spectra"], strict=True):
        assert one["values"] == pytest.approx(other["values"], rel=1e-3)
        assert one["effective_rank"] == pytest.approx(other["effective_rank"], rel=1e-3) and one["norm"] >= 0
    assert first["previews"][-1] == {"step": 40, "pictures": [4, 5]}
    assert told.picture(5) == previews_folder(path) / "step_00040_1.png"


def test_a_resumed_run_recalls_the_steps_before(tmp_path):
    config = replace(CONFIG, monitor=MonitorConfig(keep_state=True))
    path, live = tmp_path / "a.safetensors", LiveRun("a", 40)
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(config), path, stop_at(15))
    run = make_run(config)

    def begin():
        live.recall(read_log(log_path(path)), previews_folder(path))
        live.began(run.step, 40, can_preview=False)

    keep(run, path, live.stepped, resume=True, listeners=Listeners(on_begin=begin))
    assert [point[0] for point in live.whole()["points"]] == list(range(1, 41))
