"""train with the text encoders of SD 1.5 and SDXL on tiny pipelines: from the flag to a file that others load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.adapters import dense, relative_error
from tests.tiny_pipeline import SIDE, write_pictures, write_pipeline, write_sdxl
from trilora_core.__main__ import main
from trilora_core.backend_diffusers import DiffusersPreviewer, apply_adapter, load_pipeline
from trilora_core.backend_diffusers_apply import modules_by_stem
from trilora_core.fileformat import Adapter, read_adapter, read_metadata
from trilora_core.keys import is_text

pytest.importorskip("diffusers")

WRITE = {"sd15": write_pipeline, "sdxl": write_sdxl}
# Layers of the tiny text encoders: attention alone, and with feed-forward. SDXL's first encoder has one that learns.
TEXT = {
    "sd15": ({"lora_te": 4}, {"lora_te": 6}),
    "sdxl": ({"lora_te1": 4, "lora_te2": 8}, {"lora_te1": 6, "lora_te2": 12}),
}


@pytest.fixture(scope="module", params=list(WRITE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A model and pictures; no test may write into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        place = tmp_path_factory.mktemp(request.param)
        WRITE[request.param](place / "base")
        write_pictures(place / "pictures")
        (place / "kind").write_text(request.param)
        yield place


def kind(folder: Path) -> str:
    return (folder / "kind").read_text()


def train(folder: Path, output: Path, *extra: str) -> int:
    argv = ["train", "--model", str(folder / "base"), "--data", str(folder / "pictures"), "--output", str(output)]
    return main([*argv, "--rank", "2", "--steps", "2", "--lr", "0.01", *extra])


def weights(path: Path) -> str:
    return read_metadata(path)["sshs_model_hash"]


def counted(path: Path) -> dict[str, int]:
    """How many layers of each text encoder a file has."""
    found = [stem.partition("_text_model")[0] for stem in read_adapter(path).layers if is_text(stem)]
    return {name: found.count(name) for name in found}


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of denoiser and text encoders, trained hard enough to change a picture."""
    path = tmp_path_factory.mktemp("out") / "style.safetensors"
    flags = ("--text-encoder-rate", "0.5", "--layers", "attention+ff", "--steps", "6", "--lr", "0.05")
    assert train(folder, path, *flags, "--dtype", "fp32", "--gradient-checkpointing") == 0
    return path


def test_the_file_has_the_layers_and_says_at_which_rates(folder, trained, capsys):
    assert counted(trained) == TEXT[kind(folder)][1]
    adapter = read_adapter(trained)
    assert main(["inspect", str(trained)]) == 0
    assert "0.05, 0.025 of the text encoder (constant adamw)" in capsys.readouterr().out
    assert all(layer.svd.s[0] > 1e-4 for stem, layer in adapter.layers.items() if is_text(stem))
    assert (adapter.metadata["ss_unet_lr"], adapter.metadata["ss_text_encoder_lr"]) == ("0.05", "0.025")
    assert json.loads(adapter.metadata["trilora.config"])["optimizer"]["text_encoder_rate"] == 0.5


def test_diffusers_own_loader_puts_the_same_change_into_every_layer(folder, trained):
    pytest.importorskip("peft")
    pipe, adapter = load_pipeline(folder / "base", device="cpu"), read_adapter(trained)
    modules = modules_by_stem(pipe)
    before = {stem: module.weight.clone() for stem, module in modules.items()}
    pipe.load_lora_weights(trained.parent, weight_name=trained.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for stem, module in modules.items():
        change = (module.weight - before[stem]).flatten(1)
        if stem not in adapter.layers:
            assert not change.any(), stem
        else:
            assert relative_error(change, dense(adapter.layers[stem])) < 1e-4, stem


def test_the_verb_applies_both_parts(folder, trained, tmp_path):
    drawn = {}
    for strength in ("0", "1"):
        output = tmp_path / f"{strength}.png"
        argv = ["apply", "--model", str(folder / "base"), "--adapter", str(trained), "--prompt", "a red square"]
        assert main([*argv, "--strength", strength, "--steps", "2", "--output", str(output)]) == 0
        drawn[strength] = output.read_bytes()
    assert drawn["0"] != drawn["1"]


def test_the_summary_counts_the_layers_of_each_part(folder, tmp_path, capsys):
    assert train(folder, tmp_path / "a.safetensors", "--text-encoder-rate", "0.5") == 0
    text = capsys.readouterr().out
    count, all_layers = sum(TEXT[kind(folder)][0].values()), len(read_adapter(tmp_path / "a.safetensors").layers)
    told = f"({all_layers - count} of the denoiser, {count} of the text encoder at 0.5 x the rate)"
    assert f"adapter:    {all_layers} layers {told}, rank 2" in text
    assert counted(tmp_path / "a.safetensors") == TEXT[kind(folder)][0]


def test_rate_0_is_the_run_without_the_flag(folder, tmp_path, capsys):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    assert train(folder, files[0]) == 0 and train(folder, files[1], "--text-encoder-rate", "0") == 0
    assert weights(files[0]) == weights(files[1]) and counted(files[0]) == {}
    assert read_metadata(files[0])["ss_text_encoder_lr"] == "0.0"
    assert "of the text encoder" not in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bits_and_checkpointing_the_same_losses(folder, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    flags = ("--text-encoder-rate", "1", "--batch-size", "2", "--steps", "3")
    for path, extra in zip(files, ([], [], ["--gradient-checkpointing"]), strict=True):
        assert train(folder, path, *flags, *extra) == 0
    assert weights(files[0]) == weights(files[1])
    assert read_metadata(files[2])["trilora.losses"] == read_metadata(files[0])["trilora.losses"]


def test_a_finished_run_is_found_by_its_rate(folder, tmp_path, capsys):
    output = tmp_path / "style.safetensors"
    for rate, expected in (("1", False), ("1", True), ("0.5", False)):
        assert train(folder, output, "--text-encoder-rate", rate, "--resume") == 0
        assert ("this run is finished already" in capsys.readouterr().out) == expected


def test_what_is_watched_sees_the_text_encoder_learn(folder, tmp_path):
    """The last preview is what the file draws, and without its text layers it draws something else."""
    output = tmp_path / "style.safetensors"
    watch = ("--validation-share", "0.3", "--validate-every", "1", "--preview-every", "3", "--preview-prompts", "a cat")
    text = ("--text-encoder-rate", "20", "--dtype", "fp32")
    assert train(folder, output, *watch, *text, "--steps", "3", "--lr", "0.05") == 0
    measures = json.loads(read_metadata(output)["trilora.history"])["measures"]
    assert measures[0][2] == 0 and measures[-1][2] > 0 and measures[-1][1] != measures[0][1]
    preview = pixels(Image.open(tmp_path / "style_previews" / "step_00003_0.png"))
    pipe, adapter = load_pipeline(folder / "base", device="cpu"), read_adapter(output)
    without = Adapter({stem: layer for stem, layer in adapter.layers.items() if not is_text(stem)}, adapter.metadata)
    drawn = []
    for part in (adapter, without):
        with apply_adapter(pipe, part):
            drawn.append(pixels(DiffusersPreviewer(pipe, resolution=SIDE).preview(["a cat"], [0])[0]))
    assert (drawn[0] - preview).abs().max() <= 2 < (drawn[1] - preview).abs().max()


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.int32)


def test_a_start_with_text_layers_is_gone_on_with_or_carried(folder, trained, tmp_path, capsys):
    start = ("--start-from", str(trained), "--layers", "attention+ff", "--dtype", "fp32")
    output, count = tmp_path / "a.safetensors", sum(TEXT[kind(folder)][1].values())
    assert train(folder, output, *start) == 0
    assert f"{count} of its layers stay as they are" in capsys.readouterr().out
    before, after = read_adapter(trained).layers, read_adapter(output).layers
    assert all(torch.equal(dense(after[stem]), dense(before[stem])) == is_text(stem) for stem in before)
    assert train(folder, output, *start, "--text-encoder-rate", "1") == 0
    assert "stay as they are" not in capsys.readouterr().out
    after = read_adapter(output).layers
    for stem in filter(is_text, before):
        assert 0 < relative_error(dense(after[stem]), dense(before[stem])) < 0.9, stem


def test_patterns_that_leave_no_text_layer_are_refused(folder, tmp_path, capsys):
    flags = ("--text-encoder-rate", "1", "--layers-include", "*attn2*")
    assert train(folder, tmp_path / "a.safetensors", *flags) == 2
    said = capsys.readouterr().err
    assert "leave no layer of the text encoders: include *attn2*" in said and "set text_encoder_rate to 0" in said


def test_a_toml_file_sets_the_rate_and_what_does_not_go_is_refused(folder, tmp_path, capsys):
    options = tmp_path / "run.toml"
    options.write_text("[optimizer]\ntext_encoder_rate = 0.5\n", encoding="utf-8")
    assert train(folder, tmp_path / "a.safetensors", "--config", str(options)) == 0
    assert counted(tmp_path / "a.safetensors") == TEXT[kind(folder)][0]
    capsys.readouterr()
    prodigy = ("--optimizer", "prodigy", "--lr", "1")
    assert train(folder, tmp_path / "b.safetensors", "--config", str(options), *prodigy) == 2
    assert "text_encoder_rate is 0.5; make it 1" in capsys.readouterr().err
    assert train(folder, tmp_path / "b.safetensors", "--text-encoder-rate", "-1") == 2
    assert "text_encoder_rate is -1.0; wanted a finite number from 0 up" in capsys.readouterr().err
