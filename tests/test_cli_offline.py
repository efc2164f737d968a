"""Training, saving, loading and merging without any network, from folders and single files of SD 1.5 and SDXL; and the
options that come to lie beside the adapter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests import cli_runs
from tests.test_backend_diffusers import (
    MERGES,
    no_network,
    sd,
    sdxl,
    shapes_of,
    text_config,
    tiny_unet,
    write_single_file,
)
from trilora_core import backend_diffusers_single as single
from trilora_core.__main__ import main
from trilora_core.cli.options import add_config
from trilora_core.cli.parser import OneLineParser
from trilora_core.cli.resolved import resolved
from trilora_core.cli.run_options import RunOptions, add_run_options, read_run_options
from trilora_core.config import TrainConfig
from trilora_core.fileformat import read_adapter, read_metadata

cache, pictures = cli_runs.cache, cli_runs.pictures


def text(width: int, **changes: Any) -> Any:
    few = {"intermediate_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 77}
    return text_config(hidden_size=width, **few, **changes)


def wide(kind: str, folder: Path) -> Any:
    """As the real model in what a file is recognised by: captions of width 768, or 2048 for SDXL."""
    pipe = (sdxl if "sdxl" in kind else sd)(folder)
    torch.manual_seed(3)
    pipe.text_encoder = CLIPTextModel(text(768))
    if "sdxl" in kind:
        pipe.text_encoder_2 = CLIPTextModelWithProjection(
            text(1280, projection_dim=pipe.text_encoder_2.config.projection_dim)
        )
    config = dict(pipe.unet.config) | {"cross_attention_dim": 2048 if "sdxl" in kind else 768}
    pipe.unet = tiny_unet(**{name: value for name, value in config.items() if not name.startswith("_")})
    return pipe


def write_model(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of this kind; what the loader knows of the shapes in a single file is made to fit it."""
    if kind.endswith("folder"):
        path = folder / "model"
        (sdxl if "sdxl" in kind else sd)(folder).save_pretrained(path)
        return path
    pipe = wide(kind, folder)
    shapes = shapes_of(pipe)
    if "sdxl" in kind:
        shapes["text_encoder_2"] = dict(pipe.text_encoder_2.config.to_dict())
    monkeypatch.setattr(single, "_SDXL" if "sdxl" in kind else "_SD15", shapes)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    monkeypatch.setenv("CLIP_TOKENIZER", str(folder))
    write_single_file(pipe, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("kind", ["sd15 folder", "sdxl folder", "sd15 file", "sdxl file"])
def test_nothing_asks_the_network_and_the_saved_options_run_again(kind, pictures, tmp_path, monkeypatch):
    model, output = write_model(kind, tmp_path, monkeypatch), tmp_path / "out" / "a.safetensors"
    no_network(monkeypatch)
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--model", model.name, "--data", str(pictures), "--output", "out/a.safetensors", "--rank", "2"]
    assert (
        main([*argv, "--steps", "2", "--lr", "0.01", "--batch-size", "2", "--cache", "memory", "--dtype", "fp32"]) == 0
    )
    first = read_metadata(output)
    assert first["trilora.architecture"] == kind.partition(" ")[0] and read_adapter(output).layers
    if kind == "sd15 folder":
        again(output, first, monkeypatch)
        return
    drawn = tmp_path / "drawn.png"
    argv = ["apply", "--model", str(model), "--adapter", str(output), "--prompt", "a fox", "--output", str(drawn)]
    assert main([*argv, "--steps", "1"]) == 0 and drawn.is_file()
    if kind == "sd15 file":
        files(output, tmp_path)


def files(adapter: Path, folder: Path) -> None:
    """The verbs that read and write adapters alone."""
    one, made = str(adapter), str(folder / "made.safetensors")
    for argv in (
        ["merge", one, one, "--weights", "0.5", "0.5"],
        ["resize", one, "--rank", "1"],
        ["convert", one, "--to", "peft"],
    ):
        assert main([*argv, "--output", made]) == 0 and read_adapter(Path(made)).layers
    assert main(["inspect", made]) == 0


def again(output: Path, first: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved options make the same file from any folder, and flags win over them."""
    monkeypatch.chdir("/")
    output.unlink()
    assert main(["train", "--config", str(output.with_suffix(".toml"))]) == 0
    assert read_metadata(output)["sshs_model_hash"] == first["sshs_model_hash"], "the same run, to the last bit"
    assert main(["train", "--config", str(output.with_suffix(".toml")), "--seed", "1", "--batch-size", "1"]) == 0
    other = read_metadata(output)
    assert (other["ss_seed"], other["ss_total_batch_size"]) == ("1", "1")


def read(*argv: str) -> RunOptions:
    parser = OneLineParser("train", "", None, None)
    add_config(parser)
    add_run_options(parser)
    return read_run_options(parser.parse_args(list(argv)))


MANY = """
--rank energy:0.5 --rank-cap 9 --alpha 3 --init svd --companion-rank 1 --rank-dropout 0.25 --layers attention+ff
--layers-include *a* *"b\\* --layers-exclude *é* --steps 7 --batch-size 3 --seed 11 --precision bf16
--gradient-checkpointing --save-every 2 --ema 0.5 --optimizer prodigy --lr 1 --weight-decay 1e-05 --beta2 0.9
--schedule cosine --warmup-steps 1 --clip-norm 0 --accumulation 2 --up-rate 0.5 --text-encoder-rate 0.25
--timesteps shifted --shift 2 --min-snr-gamma 5 --noise-offset 0.05 --orthogonality 0.1 --preserve-base light
--preserve-prompts house tree --validation-share 0.1 --validate-every 3 --patience 4 --keep-best --preview-every 2
--preview-prompts cat --flip --shuffle-captions --caption-dropout 0.1 --resolution 64 --trigger-word zorb
--prior-prompt house --prior-count 3 --prior-weight 0.5 --mask-alpha --dtype bf16 --device cpu --base-dtype fp32
--cache memory --cache-limit 2
"""


def test_every_option_comes_back_from_the_saved_file(tmp_path):
    given = read("--model", "/m", "--data", "/d", "--output", str(tmp_path / "a.safetensors"), *MANY.split())
    plain = read("--model", "/m", "--data", "/d", "--output", str(tmp_path / "a.safetensors"))
    assert given.train != plain.train and given.data != plain.data
    path = tmp_path / "a.toml"
    for options in (given, plain):
        path.write_text(resolved(options, options.train), encoding="utf-8")
        again = read("--config", str(path))
        for name in (
            "data",
            "prior",
            "cache",
            "calibration",
            "dtype",
            "plot",
            "device",
            "base_dtype",
            "output",
            "model",
        ):
            assert getattr(again, name) == getattr(options, name), name
        assert again.total_batch_size == options.train.batch_size
        assert dataclasses.replace(again.train, batch_size=options.train.batch_size) == options.train
    assert changed(given.train) >= 20, "most options of a run were given"


def changed(config: TrainConfig) -> int:
    """Options that are not at their defaults, nested ones counted one by one."""

    def count(one: Any, other: Any) -> int:
        if not dataclasses.is_dataclass(one):
            return int(one != other)
        return sum(count(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))

    return count(config, TrainConfig())


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("batch_size = 2\ntotal_batch_size = 4", [], "has both batch_size and total_batch_size"),
        ("", ["--batch-size", "2", "--total-batch-size", "4"], "--batch-size and --total-batch-size were both given"),
        ("total_batch_size = 0", [], "total_batch_size is 0"),
        ("dtype = 'fp8'", [], "there is no dtype 'fp8'; known: fp16, bf16, fp32"),
        ("base_dtype = 3", [], "there is no base_dtype 3; known: auto, fp16, bf16, fp32"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, capsys, text, flags, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    argv = [
        "train",
        "--config",
        str(path),
        "--model",
        "m",
        "--data",
        str(tmp_path),
        "--output",
        "o.safetensors",
        *flags,
    ]
    assert main(argv) == 2
    assert message in capsys.readouterr().err
