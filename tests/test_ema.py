from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.test_train import CONFIG, go, make_run, same, values
from tests.toy import ToyDenoiser
from trilora_core.checkpoint import load_state, save_state
from trilora_core.config import OptimizerConfig
from trilora_core.ema import Ema
from trilora_core.session import train_to_file
from trilora_core.train import Run, TrainingDiverged

WITH_EMA = replace(CONFIG, ema=0.9)
SCHEDULE_FREE = replace(CONFIG, optimizer=OptimizerConfig(name="schedulefree", learning_rate=1e-2, warmup_steps=3))
AVERAGES = pytest.mark.parametrize("config", [WITH_EMA, SCHEDULE_FREE], ids=["ema", "schedulefree"])


def averaging(config) -> None:
    if config is SCHEDULE_FREE:
        pytest.importorskip("schedulefree")


def shown(run: Run) -> list[torch.Tensor]:
    with run.as_saved():
        return values(run)


def test_the_decay_warms_up_and_the_mean_follows():
    parameter = torch.tensor([1.0])
    ema = Ema([parameter], decay=0.5)
    mean = 1.0
    for t, value in enumerate([2.0, 5.0, -3.0, 4.0, 4.0, 8.0, 1.0, 1.0, 7.0, 0.0, 2.0, 9.0]):
        parameter.fill_(value)
        ema.update()
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * value
    assert ema.means[0].item() == pytest.approx(mean) and ema.updates == 12


def test_the_mean_is_of_every_good_step_and_of_no_dropped_one():
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {3, 4}
    run = make_run(WITH_EMA, denoiser)
    means = [value.clone() for value in values(run)]
    updates = 0
    for _ in range(6):
        step = go(run, 1)[0]
        if step.dropped:
            continue
        decay = min(0.9, (1 + updates) / (10 + updates))
        means = [decay * mean + (1 - decay) * value for mean, value in zip(means, values(run), strict=True)]
        updates += 1
    assert updates == 4
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(shown(run), means, strict=True))


def test_schedule_free_shows_the_mean_of_the_paper():
    """x = (y - (1 - beta1) z) / beta1 (Defazio et al. 2024, eq. 3), y where gradients are taken."""
    pytest.importorskip("schedulefree")
    run = make_run(SCHEDULE_FREE)
    go(run, 9)
    y = [parameter.detach().clone() for parameter in run.trainable.trainable()]
    z = [run.optimizer.state[parameter]["z"].clone() for parameter in run.trainable.trainable()]
    with run.as_saved():
        for parameter, at, far in zip(run.trainable.trainable(), y, z, strict=True):
            assert torch.allclose(parameter, (at - 0.1 * far) / 0.9, atol=1e-6)


@AVERAGES
def test_training_gets_its_own_parameters_back_bit_for_bit(config):
    averaging(config)
    looked, not_looked = make_run(config), make_run(config)
    go(looked, 8), go(not_looked, 8)
    before = values(looked)
    mean = shown(looked)
    assert not same(mean, before) and same(values(looked), before)
    with pytest.raises(KeyError), looked.as_saved():
        raise KeyError
    with looked.as_saved(), looked.as_saved():
        assert same(values(looked), mean)
    with looked.as_saved():
        with looked.as_saved():
            pass
        assert same(values(looked), mean), "the inner exit leaves the outer one alone"
    assert same(values(looked), before)
    go(looked), go(not_looked)
    assert same(values(looked), values(not_looked)) and same(shown(looked), shown(not_looked))


@AVERAGES
def test_the_adapter_is_made_of_the_mean(config):
    averaging(config)
    run = make_run(config)
    go(run, 8)
    with run.as_saved():
        mean = run.trainable.canonical()
    last, saved = run.trainable.canonical(), run.adapter().layers
    assert all(torch.equal(saved[stem].svd.s, mean[stem].svd.s) for stem in mean)
    assert not any(torch.equal(saved[stem].svd.s, last[stem].svd.s) for stem in mean)


@AVERAGES
def test_the_file_holds_the_mean(config, tmp_path):
    averaging(config)
    run = make_run(replace(config, steps=8))
    written = train_to_file(
        run, tmp_path / "a.safetensors", metadata={}, on_step=lambda step: None, dtype=torch.float32
    ).adapter.layers
    mean, last = run.adapter().layers, run.trainable.canonical()
    assert all(torch.allclose(written[stem].svd.s, mean[stem].svd.s, rtol=1e-4) for stem in mean)
    assert not any(torch.allclose(written[stem].svd.s, last[stem].svd.s, rtol=1e-3) for stem in mean)


def test_without_a_mean_as_saved_is_as_it_is():
    run = make_run()
    go(run, 3)
    assert same(shown(run), values(run))


@AVERAGES
def test_a_diverged_run_saves_the_mean_of_its_last_good_step(config):
    """Steps 1 and 2 are good; what step 3 makes is not proven, and steps 4 to 6 are bad."""
    averaging(config)
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {4, 5, 6}
    run, short = make_run(config, denoiser), make_run(config)
    go(short, 2)
    with pytest.raises(TrainingDiverged):
        go(run)
    assert same(values(run), values(short)) and same(shown(run), shown(short))


@AVERAGES
def test_a_first_step_that_breaks_all_is_undone(config):
    averaging(config)
    run = make_run(replace(config, optimizer=replace(config.optimizer, learning_rate=1e30, warmup_steps=0)))
    start = values(run)
    with pytest.raises(TrainingDiverged):
        go(run)
    assert all(value.isfinite().all() for value in shown(run) + values(run))
    assert run.step > 4 or (same(values(run), start) and same(shown(run), start))


@AVERAGES
def test_a_run_that_diverges_after_a_resume_saves_what_the_whole_one_does(config, tmp_path):
    averaging(config)
    runs = []
    for resumed in (False, True):
        denoiser = ToyDenoiser()
        denoiser.poison_steps = {6, 7, 8}
        run = make_run(config, denoiser)
        go(run, 6)
        if resumed:
            save_state(tmp_path / "a.state", run)
            run = make_run(config, denoiser)
            load_state(tmp_path / "a.state", run)
        with pytest.raises(TrainingDiverged):
            go(run)
        runs.append(run)
    assert runs[0].step == runs[1].step == 8
    assert same(values(runs[0]), values(runs[1])) and same(shown(runs[0]), shown(runs[1]))


@AVERAGES
def test_the_state_is_that_of_training(config):
    averaging(config)
    run = make_run(config)
    go(run, 2)
    with run.as_saved(), pytest.raises(RuntimeError, match="outside of it"):
        run.state()
    assert run.state()[1]["step"] == 2


def test_an_exit_that_was_cut_off_can_be_made_up_for(monkeypatch):
    run = make_run(replace(CONFIG, ema=0.9))
    go(run, 3)
    before, calls = values(run), []
    inner = run._result._set

    def cut(parameters):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        inner(parameters)

    monkeypatch.setattr(run._result, "_set", cut)
    with pytest.raises(KeyboardInterrupt), run.as_saved():
        assert not same(before, values(run))
    assert not same(before, values(run))
    run.come_back()
    run.come_back()
    assert same(before, values(run)) and run.state()[1]["step"] == 3 and len(calls) == 3
