"""train and apply on a tiny random pipeline: from pictures to a file to a changed picture."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image, ImageChops

from tests import cli_runs
from tests.cli_runs import few
from tests.tiny_pipeline import write_pictures
from trilora_core.__main__ import main
from trilora_core.cli import bar
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.memory import OUT_OF_MEMORY
from trilora_core.metadata import trigger_words
from trilora_core.preserve import LEVELS, Amount

pytest.importorskip("diffusers")

cache, base, pictures = cli_runs.cache, cli_runs.base, cli_runs.pictures


@pytest.fixture(scope="module")
def trained(base, pictures, tmp_path_factory):
    """An adapter that is trained hard enough to change a picture."""
    path = tmp_path_factory.mktemp("out") / "style.safetensors"
    argv = ["train", "--model", str(base), "--data", str(pictures), "--output", str(path), "--rank", "4"]
    assert main([*argv, "--steps", "6", "--lr", "0.05", "--trigger-word", "zorb", "--dtype", "fp32"]) == 0
    return path


def test_train_writes_an_adapter_with_its_history(trained):
    adapter = read_adapter(trained)
    assert len(adapter.layers) == 32  # four attention blocks, self and cross, q k v out
    assert any(layer.svd.s[0] > 1e-3 for layer in adapter.layers.values())
    assert adapter.metadata["ss_steps"] == "6"
    assert trigger_words(adapter) == ("zorb",)
    assert adapter.metadata["ss_resolution"] == "(16, 16)", "the model's own size, because none was asked for"


def test_inspect_tells_how_it_was_trained(trained, capsys):
    assert main(["inspect", str(trained)]) == 0
    text = capsys.readouterr().out
    for wanted in ("3 pictures at (16, 16)", "6, batch 1, seed 0", "0.05 (constant adamw)", "trilora, init svd-mean"):
        assert wanted in text, wanted


def test_train_reports_what_it_does(base, pictures, tmp_path, capsys):
    output, plot = tmp_path / "new" / "style.safetensors", tmp_path / "loss.png"
    assert main(few(base, pictures, output, "--plot", str(plot), "--batch-size", "2")) == 0
    text = capsys.readouterr().out
    for wanted in ("3 pictures at resolution 16", "base (sd15) on c", "32 layers, rank 2", "2 steps of batch 2"):
        assert wanted in text, wanted
    assert str(output.resolve()) in text and str(plot.resolve()) in text
    assert output.is_file() and plot.is_file()


def test_same_seed_same_tensors(base, pictures, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in files:
        assert main(few(base, pictures, path)) == 0
    first, second = (read_metadata(path)["sshs_model_hash"] for path in files)
    assert first == second
    other = tmp_path / "c.safetensors"
    assert main(few(base, pictures, other, "--seed", "1")) == 0
    assert read_metadata(other)["sshs_model_hash"] != first


def test_a_toml_file_gives_options_and_flags_win(base, pictures, tmp_path, capsys):
    config, output = tmp_path / "run.toml", tmp_path / "style.safetensors"
    lines = [
        f"model = '{base}'",
        f"output = '{output}'",
        "steps = 5",
        "[data]",
        f"folder = '{pictures}'",
        "resolution = 24",
        "[adapter]",
        'rank = "energy:0.5"',
        "[optimizer]",
        "learning_rate = 1e-3",
    ]
    config.write_text("\n".join(lines), encoding="utf-8")
    assert main(["train", "--config", str(config), "--steps", "1"]) == 0
    told = read_metadata(output)
    assert (told["ss_steps"], told["ss_learning_rate"], told["ss_resolution"]) == ("1", "0.001", "(24, 24)")
    assert "rank energy:0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "is not valid TOML"),
        ("stepz = 3", "TrainConfig has no option stepz; known: adapter"),
        ("steps = '3'", "steps is '3'; wanted int"),
        ("optimizer = 3", "optimizer in the --config file is 3; wanted a table [optimizer]"),
        ("model = 3", "model is 3; wanted a path in quotes"),
    ],
)
def test_a_wrong_toml_file_is_explained(tmp_path, capsys, text, message):
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8")
    argv = ["train", "--config", str(config), "--data", "d", "--output", "o.safetensors", "--lr", "1e-4"]
    assert main(argv if text.startswith("model") else [*argv, "--model", "m"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--lr", "nan"], "learning_rate is nan; wanted a finite number above 0"),
        (["--rank", "0"], "rank is 0; wanted a whole number from 1 up"),
        (["--rank", "energy:2"], 'rank is "energy:2"'),
        (["--steps", "0"], "steps is 0; wanted a whole number from 1 up"),
        (["--device", "toaster"], "device is 'toaster'; wanted auto, cpu, cuda or cuda:1"),
        (["--device", "cuda:99"], "device cuda:99 is not there"),
        (["--resolution", "17"], "resolution 17 is not a multiple of 8; choose 16 or 24"),
        (["--output", "style.ckpt"], "does not end in .safetensors"),
        (["--model", "nowhere"], "model nowhere does not exist"),
        (["--data", "nowhere"], "nowhere"),
        (
            ["--preview-every", "1", "--preview-prompts", "x", "--preview-steps", "2000"],
            "steps is 2000; wanted at most",
        ),
    ],
)
def test_train_refuses(base, pictures, tmp_path, capsys, extra, message):
    assert main(few(base, pictures, tmp_path / "style.safetensors", *extra)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "style.safetensors").exists()


@pytest.mark.parametrize("text", ["steps = 5  # few\n", ""])
def test_a_config_that_the_user_wrote_is_not_overwritten(pictures, tmp_path, capsys, text):
    config = tmp_path / "style.toml"
    config.write_text(text, encoding="utf-8")
    assert main([*few("nowhere", pictures, tmp_path / "style.safetensors"), "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert f"error: {config} is not of an earlier run, and the options of this one would replace it" in told
    assert config.read_text(encoding="utf-8") == text


def test_a_name_that_no_toml_file_can_hold_is_refused_before_the_work(pictures, tmp_path, capsys):
    cache = str(tmp_path / "ni\udcf1a")
    assert main(few("nowhere", pictures, tmp_path / "style.safetensors", "--cache", cache)) == 2
    assert "is not UTF-8; rename what it names" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_the_work(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    argv = few("nowhere", pictures, tmp_path / "style.safetensors", "--plot", str(tmp_path / "loss.png"))
    assert main(argv) == 2
    assert "error: plots need matplotlib" in capsys.readouterr().err


def test_an_empty_folder_and_a_broken_picture_are_named(base, pictures, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(few(base, empty, tmp_path / "style.safetensors")) == 2
    assert str(empty) in capsys.readouterr().err
    broken = write_pictures(tmp_path / "broken")
    (broken / "red.png").write_bytes(b"no picture")
    assert main(few(base, broken, tmp_path / "style.safetensors")) == 2
    assert "red.png" in capsys.readouterr().err
    assert main(few(base, broken, tmp_path / "style.safetensors", "--skip-unreadable")) == 0
    text = capsys.readouterr().out
    assert "left out: " in text and "red.png" in text and "2 pictures" in text


def test_an_interrupt_keeps_the_work_and_resume_goes_on(base, pictures, tmp_path, capsys, monkeypatch):
    whole, output = tmp_path / "whole.safetensors", tmp_path / "style.safetensors"
    argv = few(base, pictures, output, "--steps", "4")
    assert main(few(base, pictures, whole, "--steps", "4")) == 0
    real = bar.train_to_file

    def interrupted(run, path, *, on_step, **rest):
        def stop_at_2(step):
            on_step(step)
            if step.step == 2:
                raise KeyboardInterrupt

        return real(run, path, on_step=stop_at_2, **rest)

    monkeypatch.setattr(bar, "train_to_file", interrupted)
    assert main(argv) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    kept = tmp_path / "style_stopped_at_00002.safetensors"
    assert str(kept) in error and "--resume" in error
    assert read_metadata(kept)["trilora.finished"] == "false"
    monkeypatch.setattr(bar, "train_to_file", real)
    options = output.with_suffix(".toml").read_text(encoding="utf-8")
    assert main([*argv, "--rank", "3", "--resume"]) == 2
    assert output.with_suffix(".toml").read_text(encoding="utf-8") == options, "still those of the run that was stopped"
    assert main([*argv, "--resume"]) == 0
    assert read_metadata(output)["sshs_model_hash"] == read_metadata(whole)["sshs_model_hash"]
    capsys.readouterr()
    assert main([*argv, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out


def test_divergence_is_one_line(base, pictures, tmp_path, capsys):
    argv = few(base, pictures, tmp_path / "style.safetensors", "--steps", "20", "--lr", "1e30")
    assert main(argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "diverged" in last


def test_apply_changes_the_picture_and_strength_0_does_not(base, trained, tmp_path, capsys):
    def draw(name: str, *extra: str) -> Image.Image:
        argv = ["apply", "--model", str(base), "--adapter", str(trained), "--prompt", "a red square", "--seed", "3"]
        path = tmp_path / f"{name}.png"
        assert main([*argv, "--steps", "2", *extra, "--output", str(path)]) == 0
        assert str(path.resolve()) in capsys.readouterr().out
        with Image.open(path) as picture:
            return picture.convert("RGB")

    off, again, full = draw("off", "--strength", "0"), draw("off2", "--strength", "0"), draw("on")
    assert off.size == (16, 16)
    assert ImageChops.difference(off, again).getbbox() is None
    assert ImageChops.difference(off, full).getbbox() is not None


def test_apply_draws_several_adapters_as_columns_with_the_base_once(base, trained, tmp_path, capsys):
    """The last two of the three columns are the same file under two names: alike, and unlike the first, the base."""
    other, path = tmp_path / "copy.safetensors", tmp_path / "grid.png"
    other.write_bytes(trained.read_bytes())
    argv = ["apply", "--model", str(base), "--adapter", str(trained), str(other), "--columns", "adapters"]
    argv += ["--prompt", "a red square", "--strength", "0", "20", "--steps", "2", "--output", str(path)]
    assert main(argv) == 0
    with Image.open(path) as sheet:
        left = [192 + column * 202 for column in range(3)]
        cells = [sheet.crop((x, sheet.height - 202, x + 192, sheet.height - 10)) for x in left]
        assert sheet.width == left[-1] + 192 + 20
    assert ImageChops.difference(cells[1], cells[2]).getbbox() is None
    assert ImageChops.difference(cells[0], cells[1]).getbbox() is not None
    assert main([*argv, "--prompt", *["x"] * 40]) == 2
    assert "120 pictures; at most 100" in capsys.readouterr().err


def test_apply_shapes_the_adapter(base, trained, tmp_path, capsys):
    def draw(name: str, *extra: str) -> Image.Image:
        argv = ["apply", "--model", str(base), "--adapter", str(trained), "--prompt", "a red square", "--seed", "3"]
        path = tmp_path / f"{name}.png"
        assert main([*argv, "--steps", "2", *extra, "--output", str(path)]) == 0
        with Image.open(path) as picture:
            return picture.convert("RGB")

    def differ(one: Image.Image, other: Image.Image) -> int:
        return max(high for _, high in ImageChops.difference(one, other).getextrema())

    full = draw("full", "--strength", "20")
    assert differ(draw("none", "--strength", "20", "--block-preset", "NONE"), draw("off", "--strength", "0")) == 0
    assert differ(draw("half", "--strength", "20", "--blocks", "*:0.5"), draw("ten", "--strength", "10")) <= 1
    for number, extra in enumerate((["--keep-rank", "1"], ["--tone", "4"], ["--keep-energy", "0.3", "--normalize"])):
        assert differ(draw(f"shaped{number}", "--strength", "20", *extra), full) > 0, extra
    argv = [
        "apply",
        "--model",
        str(base),
        "--adapter",
        str(trained),
        "--prompt",
        "x",
        "--output",
        str(tmp_path / "x.png"),
    ]
    for extra, said in (
        (["--keep-rank", "99"], "error: keep_rank is 99, but the adapter's highest rank is"),
        (["--keep-energy", "0"], "error: keep_energy is 0.0; wanted a finite number above 0"),
        (["--blocks", "IN04:x"], "error: blocks, character 6: found 'x', expected a number"),
    ):
        assert main([*argv, *extra]) == 2
        assert capsys.readouterr().err.startswith(said)


def test_several_strengths_and_prompts_make_a_labelled_grid(base, trained, tmp_path):
    path = tmp_path / "grid.png"
    argv = ["apply", "--model", str(base), "--adapter", str(trained), "--prompt", "a red square", "a blue square"]
    assert main([*argv, "--strength", "-1", "0", "1.5", "--steps", "1", "--output", str(path)]) == 0
    with Image.open(path) as sheet:
        assert sheet.width > 3 * 192 and sheet.height > 2 * 192


def test_an_adapter_for_another_model_is_refused_before_anything_is_drawn(base, trained, tmp_path, capsys, monkeypatch):
    from trilora_core import spectral
    from trilora_core.fileformat import Adapter, Layer, write_adapter

    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    layer = Layer(spectral.canonical(torch.ones(320, 1), torch.ones(1, 320)))
    path = tmp_path / "other.safetensors"
    write_adapter(path, Adapter({stem: layer}, {}))
    argv = ["apply", "--model", str(base), "--adapter", str(trained), str(path), "--prompt", "x"]
    monkeypatch.setattr("trilora_core.cli.apply.draw", lambda *_: pytest.fail("it was found only after drawing"))
    assert main([*argv, "--output", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and "apply it to the kind of model it was trained on" in error


def test_the_memory_that_a_run_needs_is_said_before_it(base, pictures, tmp_path, capsys, monkeypatch):
    assert main(few(base, pictures, tmp_path / "style.safetensors", "--batch-size", "2")) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory:"))
    assert "2 x 16 x 16 pixels" in line and "MiB of it still to come" in line
    monkeypatch.setattr("trilora_core.memory.free_memory", lambda device: 1000)
    assert main(few(base, pictures, tmp_path / "other.safetensors", "--batch-size", "2")) == 0, "a warning, no refusal"
    text = capsys.readouterr().out
    assert "this may not fit" in text and "gradient_checkpointing on" in text and "fp16 or bf16" in text


def test_out_of_memory_is_one_line_that_names_what_was_kept(base, pictures, tmp_path, capsys, monkeypatch):
    real = bar.train_to_file

    def full(run, path, *, on_step, **rest):
        def stop_at_2(step):
            on_step(step)
            if step.step == 2:
                raise OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 2.00 GiB")

        return real(run, path, on_step=stop_at_2, **rest)

    monkeypatch.setattr(bar, "train_to_file", full)
    assert main(few(base, pictures, tmp_path / "style.safetensors", "--steps", "4")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    kept = tmp_path / "style_stopped_at_00002.safetensors"
    assert (
        last.startswith("error: out of memory on cpu in step 3 of 4") and str(kept) in last and "half the rank" in last
    )
    assert read_metadata(kept)["trilora.finished"] == "false"


def test_the_base_is_preserved_without_pictures(base, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(LEVELS, "light", Amount(1.0, points=3, paths=4))
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    held = ["--batch-size", "3", "--preserve-base", "light", "--preserve-prompts", "a house", "a cat at night"]
    assert main(few(base, pictures, files[0], *held)) == 0
    text = capsys.readouterr().out
    assert "light, by 12 points of what the base draws for 2 captions; 0.33 beside each picture, weight 1" in text
    assert main(few(base, pictures, files[1], *held)) == 0
    assert main(few(base, pictures, files[2], "--batch-size", "3")) == 0
    first, again, without = (read_metadata(path)["sshs_model_hash"] for path in files)
    assert first == again != without
    told = capsys.readouterr().out
    assert "20 of 20 entries were there already" in told, "3 pictures, 3 captions, 2 prompts and 12 points"


def test_prompts_of_a_base_that_is_not_preserved_are_refused(base, pictures, tmp_path, capsys):
    assert main(few(base, pictures, tmp_path / "a.safetensors", "--preserve-prompts", "a house")) == 2
    assert "--preserve-prompts does nothing without --preserve-base light or strong" in capsys.readouterr().err
