from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.test_train import CONFIG, make_run, same, values
from tests.toy import ToyDenoiser
from trilora_core.checkpoint import state_path
from trilora_core.errors import InputError
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.session import find_finished, train_to_file
from trilora_core.train import TrainingDiverged


def stop_at(number):
    def on_step(step):
        if step.step == number:
            raise KeyboardInterrupt

    return on_step


def keep(run, path, on_step=lambda step: None, **options):
    return train_to_file(run, path, metadata={"modelspec.title": "toy"}, on_step=on_step, **options)


def test_a_finished_run_leaves_one_file_and_is_found_again(tmp_path):
    run, path = make_run(), tmp_path / "style.safetensors"
    outcome = keep(run, path)
    assert outcome.finished and outcome.path == path and outcome.steps_done == 40 and len(outcome.losses) == 40
    assert list(tmp_path.iterdir()) == [path]
    again = find_finished(path, run.fingerprint())
    assert again is not None and again.finished and again.losses == pytest.approx(run.losses, rel=1e-3)
    assert find_finished(path, "other") is None and find_finished(tmp_path / "none.safetensors", "x") is None
    metadata = read_metadata(path)
    assert metadata["modelspec.title"] == "toy" and metadata["ss_steps"] == "40"


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
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.state", "a_stopped_at_00003.safetensors", "a_stopped_at_00003_2.safetensors"]


def test_a_requested_stop_goes_on_with_what_is_trained(tmp_path):
    run = make_run()
    outcome = keep(run, tmp_path / "a.safetensors", lambda step: run.request_stop() if step.step == 5 else None)
    assert not outcome.finished and outcome.path.name == "a_stopped_at_00005.safetensors" and outcome.adapter.layers


def test_periodic_state_survives_a_crash(tmp_path):
    def crash(step):
        if step.step == 9:
            raise MemoryError

    with pytest.raises(MemoryError):
        keep(make_run(replace(CONFIG, save_every=4)), tmp_path / "a.safetensors", crash)
    resumed = make_run(replace(CONFIG, save_every=4))
    seen = []
    keep(resumed, tmp_path / "a.safetensors", lambda step: seen.append(step.step), resume=True)
    assert seen[0] == 9


def test_divergence_saves_the_last_good_adapter_and_names_it(tmp_path):
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {6, 7, 8}
    with pytest.raises(TrainingDiverged, match=r"Saved: .*a_stopped_at_00008\.safetensors"):
        keep(make_run(denoiser=denoiser), tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a_stopped_at_00008.safetensors")
    assert all(torch.isfinite(layer.svd.s).all() for layer in adapter.layers.values())


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
