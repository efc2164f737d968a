"""train --preset, and the new things to watch, on a tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.test_cli_watch import PREVIEWS, delta, folder, train, weights
from trilora_core.__main__ import main
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.runrecord import read_log

pytest.importorskip("diffusers")
__all__ = ["folder"]


def told(output: Path) -> dict:
    return json.loads(read_metadata(output)["trilora.config"])


def test_a_preset_fills_in_what_was_not_given(folder, tmp_path, capsys):
    output = tmp_path / "style.safetensors"
    argv = ["train", "--model", str(folder / "base"), "--data", str(folder / "pictures"), "--output", str(output)]
    assert main([*argv, "--preset", "subject", "--steps", "20", "--rank", "3", "--weight-decay", "0.5"]) == 0
    text = capsys.readouterr().out
    config = told(output)
    assert (config["steps"], config["adapter"]["rank"], config["optimizer"]["weight_decay"]) == (20, 3, 0.5)
    assert (config["loss"]["min_snr_gamma"], config["adapter"]["rank_dropout"]) == (5.0, 0.1)
    assert config["optimizer"]["warmup_steps"] == 1, "a share of the steps that were chosen"
    line = next(line for line in text.splitlines() if line.startswith("preset:"))
    assert line.startswith("preset:     subject for sd15, 3 pictures: 20 steps, batch 1, rank 3, learning rate 0.0001")
    assert "weight decay 0.5, min-SNR gamma 5, rank dropout 0.1" in line


def test_a_preset_may_stand_in_the_file_and_its_other_options_win(folder, tmp_path, capsys):
    output, config = tmp_path / "style.safetensors", tmp_path / "run.toml"
    lines = ['preset = "collection"', "epochs = 1", "batch_size = 1", "ema = 0.0", "[adapter]", "rank = 2"]
    config.write_text("\n".join(lines), encoding="utf-8")
    argv = ["--model", str(folder / "base"), "--data", str(folder / "pictures"), "--output", str(output)]
    assert main(["train", "--config", str(config), *argv]) == 0
    found = told(output)
    assert found["steps"] == 3 and found["adapter"]["rank"] == 2 and found["ema"] == 0.0
    assert found["optimizer"]["schedule"] == "cosine"
    assert "collection for sd15, 3 pictures: 1 epochs" in capsys.readouterr().out
    config.write_text('preset = "beauty"', encoding="utf-8")
    assert main(["train", "--config", str(config), *argv]) == 2
    assert "there is no preset 'beauty'; known: style, subject, collection" in capsys.readouterr().err


def test_auto_times_are_uniform_on_this_model_and_one_run(folder, tmp_path, capsys):
    output = tmp_path / "a.safetensors"
    assert train(folder, output) == 0
    assert told(output)["loss"]["timesteps"] == "uniform"
    capsys.readouterr()
    assert train(folder, output, "--timesteps", "uniform", "--resume") == 0
    assert "finished already" in capsys.readouterr().out


def test_the_spectrum_is_said_logged_and_changes_nothing(folder, tmp_path, capsys):
    plain, output = tmp_path / "plain.safetensors", tmp_path / "style.safetensors"
    assert train(folder, plain, "--steps", "3") == 0
    capsys.readouterr()
    assert train(folder, output, "--steps", "3", "--spectrum-every", "2") == 0
    text = capsys.readouterr().out
    looks = read_log(tmp_path / "style.log.jsonl").looks
    assert [look.step for look in looks] == [0, 2, 3]
    for look in looks:
        assert f"step {look.step}: effective rank {look.effective_rank:.3g}, norm {look.norm:.3g}\n" in text
    assert weights(output) == weights(plain)
    layers = read_adapter(output).layers
    for stem, values in looks[-1].layers.items():
        assert values == pytest.approx(layers[stem].svd.s.tolist(), rel=5e-3, abs=1e-6)


def test_previews_have_their_own_size_steps_and_guidance(folder, tmp_path, capsys):
    first, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert train(folder, first, *PREVIEWS, "--preview-steps", "2", "--preview-resolution", "32") == 0
    assert (
        train(folder, other, *PREVIEWS, "--preview-steps", "2", "--preview-resolution", "32", "--preview-cfg", "1") == 0
    )
    pictures = [Image.open(tmp_path / f"{name}_previews" / "step_00002_0.png") for name in "ab"]
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes(), "guidance is seen"
    assert weights(first) == weights(other)
    capsys.readouterr()
    for flags, wanted in (
        (("--preview-steps", "3"), "--preview-steps does nothing without --preview-every N"),
        ((*PREVIEWS, "--preview-resolution", "30"), "monitor.preview_resolution is 30; wanted a multiple of 8"),
        ((*PREVIEWS, "--preview-steps", "0"), "monitor.preview_steps is 0; wanted a whole number from 1 up"),
        ((*PREVIEWS, "--preview-cfg", "-1"), "monitor.preview_cfg is -1.0; wanted a finite number from 0 up"),
    ):
        assert train(folder, tmp_path / "c.safetensors", *flags) == 2
        assert wanted in capsys.readouterr().err


def test_a_whole_run_goes_on_from_another_ones_file(folder, tmp_path, capsys):
    """Held as it is by rates of 0, the new file is the old change; trained on, it is another one that stays near it."""
    first, held, on = (tmp_path / f"{name}.safetensors" for name in ("first", "held", "on"))
    assert train(folder, first, "--steps", "6", "--dtype", "fp32") == 0
    still = ("--up-rate", "0", "--sigma-rate", "0", "--down-rate", "1e-9", "--weight-decay", "0")
    assert train(folder, held, "--rank", "4", "--dtype", "fp32", "--start-from", str(first), *still) == 0
    text = capsys.readouterr().out
    assert f"start:      {first.resolve()}" in text
    assert train(folder, on, "--rank", "4", "--dtype", "fp32", "--start-from", str(first)) == 0
    before, same, after = (delta(read_adapter(path)) for path in (first, held, on))
    assert (same - before).norm() < 1e-4 * before.norm()
    assert 1e-3 * before.norm() < (after - before).norm() < 5 * before.norm()
    capsys.readouterr()
    assert train(folder, on, "--rank", "4", "--dtype", "fp32", "--resume") == 0
    assert "finished already" not in capsys.readouterr().out, "another start is another run"
