from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.test_train import CONFIG, make_run, same, values
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.checkpoint import state_path
from trilora_core.config import MonitorConfig
from trilora_core.errors import InputError
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.milestones import Listeners, best_path, step_path
from trilora_core.monitor import best_measure, split
from trilora_core.runlog import log_path
from trilora_core.runrecord import read_log
from trilora_core.session import find_finished, train_to_file
from trilora_core.train import TrainingDiverged


def stop_at(number):
    def on_step(step):
        if step.step == number:
            raise KeyboardInterrupt

    return on_step


def keep(run, path, on_step=lambda step: None, **options):
    return train_to_file(run, path, metadata={"modelspec.title": "toy"}, on_step=on_step, **options)


def files(folder: Path) -> list[str]:
    """What lies in a folder; TensorBoard's own, where it is installed, does not count."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("_tensorboard"))


def watched(config=CONFIG, *, count=8, denoiser=None, **monitor):
    """A run with two pictures held out, and those two."""
    monitor = MonitorConfig(**{"validation_share": 0.25, "validate_every": 10, **monitor})
    config = replace(config, monitor=monitor)
    training, held_out = split(toy_dataset(count), monitor.validation_share, config.seed)
    return make_run(config, denoiser, training), held_out


def rising(run, best):
    """Make validation fall until step `best` and rise from there on: a stand-in for overfitting."""
    inner = run.predict

    def predict(rows):
        prediction, target = inner(rows)
        return prediction, target + 10 * abs(run.step - best)

    run.predict = predict


def test_a_finished_run_leaves_one_file_and_is_found_again(tmp_path):
    run, path = make_run(), tmp_path / "style.safetensors"
    outcome = keep(run, path)
    assert outcome.finished and outcome.path == path and outcome.steps_done == 40 and len(outcome.losses) == 40
    assert files(tmp_path) == ["style.log.jsonl", "style.safetensors"]
    again = find_finished(path, run.fingerprint())
    assert again is not None and again.finished and again.losses == pytest.approx(run.losses, rel=1e-3)
    assert find_finished(path, "other") is None and find_finished(tmp_path / "none.safetensors", "x") is None
    metadata = read_metadata(path)
    assert metadata["modelspec.title"] == "toy" and metadata["ss_steps"] == "40"
    assert outcome.ended == again.ended == "steps" and outcome.note == "" and "trilora.history" not in metadata


def test_the_file_holds_what_was_trained(tmp_path):
    run = make_run()
    outcome = keep(run, tmp_path / "a.safetensors", dtype=torch.float32)
    trained = run.trainable.canonical()
    assert set(outcome.adapter.layers) == set(trained)
    for stem, layer in outcome.adapter.layers.items():
        ours, theirs = ((x.svd.u * x.svd.s) @ x.svd.vh for x in (layer, trained[stem]))
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_an_interrupt_keeps_the_work_and_resume_equals_the_whole_run(tmp_path):
    whole, path = make_run(), tmp_path / "whole.safetensors"
    keep(whole, path)
    interrupted, part = make_run(), tmp_path / "part.safetensors"
    with pytest.raises(KeyboardInterrupt):
        keep(interrupted, part, stop_at(13))
    stopped = tmp_path / "part_stopped_at_00013.safetensors"
    assert stopped.is_file() and state_path(part).is_file() and not part.exists()
    assert read_metadata(stopped)["trilora.finished"] == "false"
    resumed = make_run()
    keep(resumed, part, resume=True)
    assert part.is_file() and not state_path(part).exists() and same(values(whole), values(resumed))


def test_a_second_stop_at_the_same_step_overwrites_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            keep(make_run(), tmp_path / "a.safetensors", stop_at(3))
    names = ["a.log.jsonl", "a.state", "a_stopped_at_00003.safetensors", "a_stopped_at_00003_2.safetensors"]
    assert files(tmp_path) == names


def test_a_requested_stop_goes_on_with_what_is_trained(tmp_path):
    run = make_run()
    outcome = keep(run, tmp_path / "a.safetensors", lambda step: run.request_stop() if step.step == 5 else None)
    assert not outcome.finished and outcome.path.name == "a_stopped_at_00005.safetensors" and outcome.adapter.layers
    assert outcome.ended == "stop" and outcome.steps_done == 5 == len(outcome.losses)
    metadata = read_metadata(outcome.path)
    assert (metadata["trilora.finished"], metadata["trilora.ended"]) == ("false", "stop")
    assert state_path(tmp_path / "a.safetensors").is_file(), "it can go on later"


def test_periodic_state_survives_a_crash(tmp_path):
    def crash(step):
        if step.step == 9:
            raise SystemExit  # as nothing that is caught on the way: the process ends

    with pytest.raises(SystemExit):
        keep(make_run(replace(CONFIG, save_every=4)), tmp_path / "a.safetensors", crash)
    resumed = make_run(replace(CONFIG, save_every=4))
    seen = []
    keep(resumed, tmp_path / "a.safetensors", lambda step: seen.append(step.step), resume=True)
    assert seen[0] == 9


@pytest.mark.parametrize(
    "error", [InputError("a cached picture was removed"), RuntimeError("CUDA error"), OSError("x")]
)
def test_any_other_error_keeps_the_work_and_goes_on(tmp_path, error):
    def break_off(step):
        if step.step == 9:
            raise error

    kept, path = [], tmp_path / "a.safetensors"
    with pytest.raises(type(error)) as caught:
        keep(make_run(), path, break_off, on_stopped=kept.append)
    assert caught.value is error and kept == [tmp_path / "a_stopped_at_00009.safetensors"]
    end = json.loads(log_path(path).read_text(encoding="utf-8").splitlines()[-1])
    assert end["ended"] == "error" and end["file"] == str(kept[0]) and end["problem"].endswith(str(error))
    whole, resumed = make_run(), make_run()
    keep(whole, tmp_path / "whole.safetensors")
    keep(resumed, path, resume=True)
    assert same(values(whole), values(resumed))


def test_an_error_before_the_first_step_leaves_no_adapter(tmp_path):
    run = make_run()
    run.denoiser.predict = None
    with pytest.raises(TypeError):
        keep(run, tmp_path / "a.safetensors")
    assert files(tmp_path) == ["a.log.jsonl"]


@pytest.mark.parametrize("steps", [10, 40])
def test_a_step_that_broke_the_adapter_is_taken_back_at_the_next(tmp_path, steps):
    """Also where that next one is the last, or Ctrl-C follows."""
    run = make_run(replace(CONFIG, steps=steps))

    def poison(step):
        if step.step == 9:
            with torch.no_grad():
                run.trainable.trainable()[0].fill_(float("inf"))
        if step.step == 10 < steps:
            raise KeyboardInterrupt

    path = tmp_path / "a.safetensors"
    if steps == 10:
        keep(run, path, poison)
    else:
        with pytest.raises(KeyboardInterrupt):
            keep(run, path, poison)
        path = tmp_path / "a_stopped_at_00010.safetensors"
    assert all(layer.svd.s.isfinite().all() for layer in read_adapter(path).layers.values())


def test_a_state_with_more_steps_than_wanted_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(), tmp_path / "a.safetensors", stop_at(13))
    before = files(tmp_path)
    with pytest.raises(
        InputError, match=r"a\.state has done 13 steps, more than the 12 that are wanted; set steps to 13"
    ):
        keep(make_run(replace(CONFIG, steps=12)), tmp_path / "a.safetensors", resume=True)
    assert files(tmp_path) == before


def test_a_state_goes_on_with_checkpointing_where_memory_ran_out(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(), tmp_path / "a.safetensors", stop_at(13))
    run = make_run(replace(CONFIG, gradient_checkpointing=True))
    assert keep(run, tmp_path / "a.safetensors", resume=True).steps_done == 40


def test_a_state_whose_history_is_damaged_is_named(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(), tmp_path / "a.safetensors", stop_at(3))
    monkeypatch.setattr("trilora_core.session.load_state", lambda *_: {"measures": [[1]]})
    with pytest.raises(InputError, match="is damaged"):
        keep(make_run(), tmp_path / "a.safetensors", resume=True)


def test_a_damaged_adapter_with_a_whole_header_keeps_no_run_from_starting(tmp_path):
    run, path = make_run(), tmp_path / "a.safetensors"
    keep(run, path)
    data = bytearray(path.read_bytes())
    data[-64:] = b"\xff" * 64  # NaN
    path.write_bytes(data)
    assert find_finished(path, run.fingerprint()) is None


def test_a_result_counts_though_its_state_cannot_be_kept(tmp_path, monkeypatch):
    def full(*_):
        raise InputError("no room")

    monkeypatch.setattr("trilora_core.keeper.save_state", full)
    problems = []
    config = replace(CONFIG, monitor=MonitorConfig(keep_state=True))
    outcome = keep(make_run(config), tmp_path / "a.safetensors", listeners=Listeners(on_problem=problems.append))
    assert outcome.finished and problems == ["the state was not saved at step 40: no room"]


def test_a_kept_adapter_that_cannot_be_deleted_ends_nothing(tmp_path):
    config = replace(CONFIG, save_every=10, monitor=MonitorConfig(keep_adapters=1))

    def block(step):
        if step.step == 11:
            step_path(tmp_path / "a.safetensors", 10).unlink()
            step_path(tmp_path / "a.safetensors", 10).mkdir()  # no unlink takes it away

    assert keep(make_run(config), tmp_path / "a.safetensors", block).finished


def test_divergence_saves_the_last_good_adapter_and_names_it(tmp_path):
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {6, 7, 8}
    with pytest.raises(TrainingDiverged, match=r"Saved: .*a_stopped_at_00008\.safetensors"):
        keep(make_run(denoiser=denoiser), tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a_stopped_at_00008.safetensors")
    assert all(torch.isfinite(layer.svd.s).all() for layer in adapter.layers.values())
    assert [step.step for step in read_log(log_path(tmp_path / "a.safetensors")).steps] == list(range(1, 9))


def test_an_unwritable_folder_is_named_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    run = make_run()
    with pytest.raises(InputError, match="cannot write"):
        keep(run, tmp_path / "file" / "a.safetensors")
    assert run.step == 0


def test_checkpointing_is_undone_and_changes_nothing(tmp_path):
    plain, recomputed = make_run(), make_run(replace(CONFIG, gradient_checkpointing=True))
    keep(plain, tmp_path / "a.safetensors")
    keep(recomputed, tmp_path / "b.safetensors")
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(values(plain), values(recomputed), strict=True))
    assert not any("forward" in vars(block) for block in recomputed.denoiser.blocks())


def lines(path: Path, event: str) -> list[dict]:
    found = [json.loads(line) for line in log_path(path).read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["event"] == event]


# --- measures -----------------------------------------------------------------


def test_measures_reach_everyone_and_change_nothing(tmp_path):
    run, held_out = watched()
    plain = make_run(data=run.dataset)
    keep(plain, tmp_path / "plain.safetensors")
    path, heard = tmp_path / "a.safetensors", []
    outcome = keep(run, path, held_out=held_out, listeners=Listeners(on_measure=heard.append))
    assert same(values(plain), values(run)) and plain.losses == run.losses
    assert [measure.step for measure in heard] == [0, 10, 20, 30, 40] and tuple(heard) == outcome.measures
    assert heard[0].drift == 0 < heard[-1].drift
    logged = [(line["step"], line["validation"], line["drift"]) for line in lines(path, "measure")]
    assert logged == [(measure.step, measure.validation, measure.drift) for measure in heard]
    again = find_finished(path, run.fingerprint())
    assert again is not None and again.measures == outcome.measures


def test_the_end_is_measured_also_between_two_times(tmp_path):
    run, held_out = watched(replace(CONFIG, steps=13))
    assert [m.step for m in keep(run, tmp_path / "a.safetensors", held_out=held_out).measures] == [0, 10, 13]


def test_patience_ends_the_run_under_its_own_name(tmp_path):
    run, held_out = watched(patience=2, keep_best=True, validate_every=4)
    rising(run, best=8)
    path = tmp_path / "a.safetensors"
    outcome = keep(run, path, held_out=held_out)
    assert outcome.finished and outcome.path == path and outcome.ended == "validation" and outcome.steps_done == 16
    assert best_measure(outcome.measures).step == 8 and outcome.best == best_path(path)
    assert "Ended after step 16: the validation loss was best at step 8" in outcome.note
    assert str(best_path(path)) in outcome.note
    metadata = read_metadata(path)
    assert (metadata["trilora.finished"], metadata["trilora.ended"], metadata["ss_steps"]) == (
        "true",
        "validation",
        "16",
    )
    assert files(tmp_path) == ["a.log.jsonl", "a.safetensors", "a_best.safetensors"]
    again = find_finished(path, run.fingerprint())
    assert again is not None and (again.ended, again.best, again.note) == ("validation", outcome.best, outcome.note)


def test_the_best_adapter_is_that_of_its_step(tmp_path):
    run, held_out = watched(keep_best=True, validate_every=4)
    rising(run, best=8)
    keep(run, tmp_path / "a.safetensors", held_out=held_out, dtype=torch.float32)
    short = make_run(replace(run.config, monitor=MonitorConfig()), data=run.dataset)
    keep(
        short, tmp_path / "b.safetensors", lambda s: short.request_stop() if s.step == 8 else None, dtype=torch.float32
    )
    best, wanted = (read_adapter(tmp_path / name) for name in ("a_best.safetensors", "b_stopped_at_00008.safetensors"))
    for stem, layer in best.layers.items():
        assert all(torch.equal(one, other) for one, other in zip(layer.svd, wanted.layers[stem].svd, strict=True))
    metadata = read_metadata(tmp_path / "a_best.safetensors")
    assert (metadata["trilora.kept"], metadata["trilora.finished"], metadata["ss_steps"]) == ("best", "false", "8")
    assert find_finished(tmp_path / "a_best.safetensors", run.fingerprint()) is None, "it is not the end of the run"


def test_best_and_patience_go_on_in_a_resumed_run(tmp_path):
    """Stopped one measure before its patience ends, it does not start to wait anew."""
    ends = []
    for name, stops in (("whole", (0,)), ("parts", (13, 0))):
        for stop in stops:
            run, held_out = watched(patience=2, keep_best=True, validate_every=4)
            rising(run, best=8)

            def on_step(step, run=run, stop=stop):
                if step.step == stop:
                    run.request_stop()

            outcome = keep(run, tmp_path / name / "a.safetensors", on_step, held_out=held_out, resume=True)
        ends.append((outcome.steps_done, outcome.ended, outcome.measures, outcome.best.name, values(run)))
    assert ends[0][:4] == ends[1][:4] and same(ends[0][4], ends[1][4])


def test_a_measure_that_an_interrupt_prevented_is_made_up_for(tmp_path):
    class Interrupted(Exception):
        pass

    def measured(measure):
        if measure.step == 20 and not resumed:
            raise Interrupted

    path, resumed = tmp_path / "a.safetensors", False
    run, held_out = watched()
    monitored = {"held_out": held_out, "listeners": Listeners(on_measure=measured), "interrupts": (Interrupted,)}
    inner, run.predict = run.predict, lambda rows: _raise(Interrupted) if run.step == 20 else inner(rows)
    with pytest.raises(Interrupted):
        keep(run, path, **monitored)
    assert (tmp_path / "a_stopped_at_00020.safetensors").is_file()
    resumed = True
    run, _ = watched()
    assert [m.step for m in keep(run, path, resume=True, **monitored).measures] == [0, 10, 20, 30, 40]
    assert [line["step"] for line in lines(path, "measure")] == [0, 10, 20, 30, 40]


def _raise(kind):
    raise kind


# --- files on the way ---------------------------------------------------------


def test_the_latest_adapters_by_step_stay_and_nothing_else_is_deleted(tmp_path):
    config = replace(CONFIG, save_every=5, monitor=MonitorConfig(keep_adapters=2))
    path, mine = tmp_path / "a.safetensors", tmp_path / "a_step_00001.safetensors"
    mine.write_text("of the user")
    outcome = keep(make_run(config), path)
    assert outcome.kept == (step_path(path, 30), step_path(path, 35)) and mine.read_text() == "of the user"
    names = ["a.log.jsonl", "a.safetensors", mine.name, "a_step_00030.safetensors", "a_step_00035.safetensors"]
    assert files(tmp_path) == names
    assert read_metadata(outcome.kept[0])["trilora.kept"] == "step"
    assert [line["what"] for line in lines(path, "file")] == ["step"] * 7 + ["result"]


def test_a_resumed_run_goes_on_to_delete_what_it_kept_before(tmp_path):
    config = replace(CONFIG, save_every=5, monitor=MonitorConfig(keep_adapters=2))
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        keep(make_run(config), path, stop_at(13))
    assert [name for name in files(tmp_path) if "step" in name] == [
        "a_step_00005.safetensors",
        "a_step_00010.safetensors",
    ]
    outcome = keep(make_run(config), path, resume=True)
    assert [name for name in files(tmp_path) if "step_" in name] == [file.name for file in outcome.kept]


def test_a_state_may_stay_and_go_on_to_more_steps(tmp_path):
    path = tmp_path / "a.safetensors"
    config = replace(CONFIG, monitor=MonitorConfig(keep_state=True))
    constant = replace(config, optimizer=replace(config.optimizer, schedule="constant"))
    keep(make_run(constant), path)
    assert state_path(path).is_file()
    longer, whole = make_run(replace(constant, steps=50)), make_run(replace(constant, steps=50))
    seen = []
    keep(longer, path, lambda step: seen.append(step.step), resume=True)
    keep(whole, tmp_path / "b.safetensors")
    assert seen[0] == 41 and same(values(longer), values(whole))


def test_options_that_could_do_nothing_are_refused_before_the_first_step(tmp_path):
    previews = MonitorConfig(preview_every=5, preview_prompts=("a",))
    cases = (
        (MonitorConfig(validation_share=0.1), "no pictures were held out"),
        (previews, "nothing here to draw with"),
        (MonitorConfig(keep_adapters=2), "save_every is 0"),
    )
    for monitor, message in cases:
        run = make_run(replace(CONFIG, monitor=monitor))
        with pytest.raises(InputError, match=message):
            keep(run, tmp_path / "a.safetensors")
        assert run.step == 0 and files(tmp_path) == []


# --- previews -----------------------------------------------------------------


class Painter:
    """Draws pictures of one colour; `broken` are the calls that fail as an overflowing VAE does."""

    def __init__(self, broken: set[int] = frozenset()) -> None:
        self.broken, self.calls = broken, 0

    def preview(self, prompts, seeds):
        self.calls += 1
        torch.manual_seed(0)
        if self.calls in self.broken:
            raise InputError("the picture is not finite")
        return [Image.new("RGB", (16, 16), (seed, 0, 0)) for seed in seeds]


def preview_run(**monitor):
    monitor = MonitorConfig(preview_every=15, preview_prompts=("a", "b"), preview_seed=7, **monitor)
    return make_run(replace(CONFIG, monitor=monitor))


def test_previews_are_drawn_at_the_start_on_the_way_and_at_the_end(tmp_path):
    run, plain, heard = preview_run(), make_run(), []
    path = tmp_path / "a.safetensors"
    keep(plain, tmp_path / "plain.safetensors")
    keep(
        run, path, previewer=Painter(), listeners=Listeners(on_preview=lambda step, paths: heard.append((step, paths)))
    )
    assert same(values(plain), values(run)), "the previewer seeded the global generator, to no effect"
    assert [step for step, _ in heard] == [0, 15, 30, 40]
    assert [file.name for file in heard[1][1]] == ["step_00015_0.png", "step_00015_1.png", "strip.png"]
    assert len(list((tmp_path / "a_previews").iterdir())) == 4 * 2 + 1
    assert Image.open(heard[-1][1][-1]).width == 5 * 264


# what someone asks for while the run goes on


def asking(**asked):
    """Ask for things in the step of that number, as another thread would."""

    def on_step(step):
        for name, at in asked.items():
            if step.step == at:
                getattr(on_step.run, f"request_{name}")()

    return on_step


def test_a_save_on_request_changes_nothing_and_can_be_resumed(tmp_path):
    config = replace(CONFIG, ema=0.9, save_every=10, monitor=MonitorConfig(keep_adapters=1))
    plain, run, path, saved, ask = make_run(config), make_run(config), tmp_path / "a.safetensors", [], asking(save=12)
    keep(plain, tmp_path / "plain.safetensors")
    ask.run = run

    def on_step(step):
        ask(step)
        if step.step == 19:
            raise KeyboardInterrupt
        if step.step == 13:
            states.append(state_path(path).read_bytes())

    states = []
    with pytest.raises(KeyboardInterrupt):
        keep(run, path, on_step, listeners=Listeners(on_save=saved.append))
    assert saved == [step_path(path, 13)]
    there = read_adapter(saved[0])
    assert there.metadata["trilora.kept"] == "step" and there.metadata["ss_steps"] == "13"
    state_path(path).write_bytes(states[0])  # as a kill right after the save leaves it
    again = make_run(config)
    outcome = keep(again, path, resume=True)
    assert same(values(again), values(plain)) and outcome.steps_done == 40
    assert outcome.kept == (step_path(path, 13), step_path(path, 30)), "what was asked for is not cleared away"


def test_previews_on_request_are_drawn_and_change_nothing(tmp_path):
    config = replace(CONFIG, monitor=MonitorConfig(preview_prompts=("a", "b")))
    plain, run, painter, ask = make_run(), make_run(config), Painter(), asking(preview=12, save=12)
    ask.run = run
    keep(plain, tmp_path / "plain.safetensors")
    keep(run, tmp_path / "a.safetensors", ask, previewer=painter)
    assert same(values(run), values(plain)) and painter.calls == 1
    assert files(tmp_path / "a_previews") == ["step_00013_0.png", "step_00013_1.png", "strip.png"]
    assert (tmp_path / "a_step_00013.safetensors").is_file()


def test_a_request_that_cannot_be_met_does_not_end_the_run(tmp_path):
    run, problems, ask = make_run(), [], asking(save=5, preview=5)
    ask.run = run
    step_path(tmp_path / "a.safetensors", 6).mkdir()  # a folder where the file should be
    outcome = keep(run, tmp_path / "a.safetensors", ask, listeners=Listeners(on_problem=problems.append))
    assert (
        outcome.finished
        and len(problems) == 1
        and problems[0].startswith("the adapter was not saved at step 6: cannot write")
    )


def test_a_request_whose_state_has_no_room_keeps_the_adapter_and_says_which(tmp_path, monkeypatch):
    def full(*_):
        raise InputError("cannot write: no space")

    run, problems, ask = make_run(), [], asking(save=5)
    ask.run = run
    monkeypatch.setattr("trilora_core.keeper.save_state", full)
    keep(run, tmp_path / "a.safetensors", ask, listeners=Listeners(on_problem=problems.append))
    assert problems == ["the state was not saved at step 6: cannot write: no space"]
    assert step_path(tmp_path / "a.safetensors", 6).is_file()


def test_a_preview_that_fails_does_not_end_the_run(tmp_path):
    run, problems = preview_run(), []
    path = tmp_path / "a.safetensors"
    outcome = keep(run, path, previewer=Painter({2}), listeners=Listeners(on_problem=problems.append))
    assert outcome.finished and problems == ["no preview at step 15: the picture is not finite"]
    assert [("problem" in line, line["step"]) for line in lines(path, "preview")] == [
        (False, 0),
        (True, 15),
        (False, 30),
        (False, 40),
    ]


def test_a_resumed_run_draws_what_is_missing_and_one_strip(tmp_path):
    path, painter = tmp_path / "a.safetensors", Painter()
    with pytest.raises(KeyboardInterrupt):
        keep(preview_run(), path, stop_at(15), previewer=painter)
    keep(preview_run(), path, resume=True, previewer=painter)
    assert painter.calls == 4
    with Image.open(tmp_path / "a_previews" / "strip.png") as strip:
        assert strip.width == 5 * 264


# --- the end ------------------------------------------------------------------


def test_the_log_tells_the_whole_run_once_however_often_it_was_stopped(tmp_path):
    path = tmp_path / "a.safetensors"
    for stop in (7, 19):
        with pytest.raises(KeyboardInterrupt):
            keep(make_run(), path, stop_at(stop), resume=True)
    run = make_run()
    keep(run, path, resume=True)
    assert [line["step"] for line in lines(path, "step")] == list(range(1, 41))
    assert [line["loss"] for line in lines(path, "step")] == run.losses
    assert [line["step"] for line in lines(path, "start")] == [0, 7, 19]
    assert [(line["ended"], line["step"]) for line in lines(path, "end")] == [
        ("interrupt", 7),
        ("interrupt", 19),
        ("steps", 40),
    ]
    assert lines(path, "end")[-1]["file"] == str(path)


def test_a_stop_in_the_middle_of_accumulation_waits_for_the_whole_step(tmp_path):
    config = replace(CONFIG, batch_size=1, optimizer=replace(CONFIG.optimizer, accumulation=4))
    whole, stopped, path = make_run(config), make_run(config), tmp_path / "a.safetensors"
    keep(whole, tmp_path / "whole.safetensors")
    inner = stopped.denoiser.predict

    def predict(*args):
        if stopped.denoiser.calls == 4 * 6 + 2:  # the third of four batches of step 7
            stopped.request_stop()
        return inner(*args)

    stopped.denoiser.predict = predict
    assert keep(stopped, path).path.name == "a_stopped_at_00007.safetensors"
    resumed = make_run(config)
    keep(resumed, path, resume=True)
    assert same(values(whole), values(resumed))


@pytest.mark.skipif(os.name == "nt", reason="no signal to itself")
def test_control_c_in_the_middle_of_a_step_waits_until_it_is_whole(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell begins without
    assert threading.current_thread() is threading.main_thread()
    whole, stopped, path = make_run(), make_run(), tmp_path / "a.safetensors"
    keep(whole, tmp_path / "whole.safetensors")
    inner = stopped.optimizer.step

    def step(*args, **kwargs):
        if stopped.step == 8:  # the ninth, while its parameters move
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*args, **kwargs)

    stopped.optimizer.step = step
    with pytest.raises(KeyboardInterrupt):
        keep(stopped, path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (tmp_path / "a_stopped_at_00009.safetensors").is_file() and len(lines(path, "step")) == 9
    resumed = make_run()
    keep(resumed, path, resume=True)
    assert same(values(whole), values(resumed))


def test_a_stop_before_the_first_step_says_that_nothing_was_trained(tmp_path):
    run = make_run()
    run.request_stop()
    with pytest.raises(InputError, match="stopped before its first step"):
        keep(run, tmp_path / "a.safetensors")
    assert files(tmp_path) == ["a.log.jsonl"]


def test_a_saved_mean_is_what_lies_in_the_file(tmp_path):
    run = make_run(replace(CONFIG, ema=0.9))
    outcome = keep(run, tmp_path / "a.safetensors", dtype=torch.float32)
    with run.as_saved():
        mean = run.trainable.canonical()
    for stem, layer in outcome.adapter.layers.items():
        ours, theirs = ((x.svd.u * x.svd.s) @ x.svd.vh for x in (layer, mean[stem]))
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_only_what_ends_a_run_or_picks_another_result_makes_it_another_run():
    def prints(**monitor):
        run = make_run(replace(CONFIG, monitor=MonitorConfig(**monitor)))
        return run.fingerprint(), run.fingerprint(with_steps=False)

    plain = prints()
    same_result = {"validate_every": 7, "keep_state": True, "preview_every": 3, "preview_prompts": ("a",)}
    assert prints(**same_result) == plain
    ends = [prints(validation_share=0.1, **more) for more in ({"patience": 2}, {"patience": 3}, {"keep_best": True})]
    assert len({plain[0], *(whole for whole, _ in ends)}) == 4
    assert {resumable for _, resumable in ends} == {plain[1]}, "how it is watched may change when it goes on"
