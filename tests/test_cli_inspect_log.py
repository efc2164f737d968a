"""inspect with the log of a run."""

from __future__ import annotations

import json

import pytest

from tests.test_session import keep, stop_at, watched
from tests.test_train import make_run
from trilora_core.__main__ import main
from trilora_core.runlog import log_path


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "style.safetensors"
    run, held_out = watched(validate_every=10, spectrum_every=20)
    keep(run, path, held_out=held_out)
    return log_path(path)


def test_the_table_says_how_the_run_went(log, capsys):
    assert main(["inspect", str(log)]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "base model  toy (toy) on cpu",
        "pictures    6, 2 more held out",
        "adapter     trilora, rank 4, 8 layers",
        "steps       40 of 40, ",
        "ended       all steps were done",
        "validation  best ",
        " at step 40; 3 looks",
        f"{log.parent / 'style.safetensors'} (result, step 40)",
    ):
        assert wanted in text, wanted


def test_json_holds_everything(log, capsys):
    assert main(["inspect", str(log), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == {"planned": 40, "done": 40, "dropped": 0}
    assert found["ended"] == "steps" and found["finished"] is True and found["problem"] is None
    assert [step for step, _, _ in found["spectrum"]] == [0, 20, 40]
    assert [step for step, _, _ in found["measures"]] == [0, 10, 20, 30, 40]
    assert found["best"]["validation"] == min(value for step, value, _ in found["measures"] if step)
    assert len(found["singular_values"]) == 8 and found["config"]["adapter"]["rank"] == 4
    assert found["loss"]["last"] == pytest.approx(found["loss"]["first"]), "fewer steps than the mean takes"


def test_the_picture_is_drawn_and_named(log, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "run.png"
    assert main(["inspect", str(log), "--plot", str(plot)]) == 0
    assert plot.is_file() and f"curves: {plot.resolve()}" in capsys.readouterr().out


def test_an_unfinished_run_says_so(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(), path, stop_at(3))
    log = log_path(path)
    assert main(["inspect", str(log)]) == 0
    assert "ended       interrupted; resume goes on" in capsys.readouterr().out
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20], encoding="utf-8")
    assert main(["inspect", str(log)]) == 0
    text = capsys.readouterr().out
    assert "not yet, or killed: the log stops at step 2" in text and "unread      1 lines" in text


def test_bad_input_is_one_line(tmp_path, log, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for argv, wanted in (
        ([str(empty)], "holds no line of a run's log"),
        ([str(tmp_path / "no.log.jsonl")], "cannot be read"),
        ([str(log), "--layers"], "--layers is for adapters"),
    ):
        assert main(["inspect", *argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and wanted in error and len(error.splitlines()) == 1
