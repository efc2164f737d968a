from __future__ import annotations

from dataclasses import replace

import pytest

from trilora_core.config import AdapterConfig, LayerConfig, MonitorConfig, OptimizerConfig, TrainConfig
from trilora_core.config_json import from_dict
from trilora_core.errors import InputError
from trilora_core.optim import check_optimizer
from trilora_core.presets import GOALS, overlaid, preset_text, preset_values, with_values

ARCHITECTURES = ("sd15", "sdxl", "sd3", "flux")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("goal", GOALS)
def test_every_preset_is_a_valid_run(goal, architecture):
    values = preset_values(goal, architecture, 20)
    config = from_dict(TrainConfig, values)
    assert config == with_values(TrainConfig(), values)
    assert config.gradient_checkpointing is (architecture != "sd15")
    assert bool(config.loss.min_snr_gamma) is (architecture in ("sd15", "sdxl")), "its use is for noise and v"
    assert config.loss.timesteps == "auto" and config.optimizer.warmup_steps < config.steps
    text = preset_text(goal, architecture, 20, config)
    assert text.startswith(f"{goal} for {architecture}, 20 pictures: {config.steps} steps, batch {config.batch_size}")
    assert f"rank {config.adapter.rank}," in text and f"learning rate {config.optimizer.learning_rate:g} (" in text


@pytest.mark.parametrize("goal", GOALS)
def test_steps_follow_the_pictures_within_limits(goal):
    steps = [preset_values(goal, "sd15", pictures)["steps"] for pictures in (1, 3, 10, 15, 100, 300, 10_000)]
    assert steps == sorted(steps) and len(set(steps)) > 2 and all(count % 10 == 0 for count in steps)
    assert steps[0] >= 400 and steps[-1] <= 20_000
    assert steps[0] == steps[1], "a few pictures need their steps too"


@pytest.mark.parametrize(("name", "rate"), [("adamw", 1e-4), ("adafactor", 1e-4), ("prodigy", 1.0), ("lion", 1e-5)])
def test_the_rate_is_the_optimizers(name, rate):
    moves = preset_values("style", "sd15", 20, name)["optimizer"]
    assert moves["learning_rate"] == pytest.approx(rate)


def test_schedule_free_brings_its_own_mean():
    values = preset_values("collection", "sd15", 200, "schedulefree")
    config = with_values(TrainConfig(optimizer=OptimizerConfig(name="schedulefree")), values)
    assert config.ema == 0.0 and config.optimizer.schedule == "constant"
    assert preset_values("collection", "sd15", 200)["ema"] > 0
    pytest.importorskip("schedulefree")
    check_optimizer(config.optimizer, config.ema)


def test_other_options_stay_and_what_is_laid_over_wins():
    base = TrainConfig(
        seed=7,
        adapter=AdapterConfig(init="svd", layers=LayerConfig("attention+ff")),
        monitor=MonitorConfig(spectrum_every=5),
    )
    values = preset_values("subject", "sdxl", 12)
    config = with_values(base, values)
    assert (config.seed, config.adapter.init, config.monitor, config.adapter.layers) == (
        7,
        "svd",
        base.monitor,
        base.adapter.layers,
    )
    assert config.adapter.rank == values["adapter"]["rank"] == 32
    over = {"adapter": {"rank": 4}, "steps": 3, "monitor": {"keep_state": True}}
    merged = overlaid(values, over)
    assert merged["adapter"] == {"rank": 4, "rank_dropout": values["adapter"]["rank_dropout"]} and merged["steps"] == 3
    assert merged["monitor"] == {"keep_state": True} and merged["ema"] == values["ema"]
    assert preset_values("subject", "sdxl", 12) == values, "nothing was changed in place"


def test_epochs_are_told_in_place_of_steps():
    config = replace(TrainConfig(), epochs=12)
    assert ": 12 epochs, batch" in preset_text("style", "sd15", 9, config)


def test_unknown_ones_are_refused():
    with pytest.raises(InputError, match="there is no preset 'beauty'; known: style, subject, collection"):
        preset_values("beauty", "sd15", 3)
    with pytest.raises(InputError, match="no preset for a toy model; known: sd15, sdxl, sd3, flux"):
        preset_values("style", "toy", 3)


@pytest.mark.parametrize("steps", [30, 5000])
def test_warm_up_goes_by_the_steps_that_the_user_chose(steps):
    """A short run would otherwise end before it had its full rate."""
    values = preset_values("style", "sd15", 20, steps=steps)
    assert values["steps"] == steps and values["optimizer"]["warmup_steps"] < steps / 5
