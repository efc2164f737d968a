"""train with methods, validation, previews and kept files, and from an adapter that exists, on a tiny pipeline."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_pipeline import COLOURS, write_pictures, write_pipeline
from trilora_core import spectral
from trilora_core.__main__ import main
from trilora_core.backend_diffusers import DiffusersPreviewer
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer, read_adapter, read_metadata, write_adapter

pytest.importorskip("diffusers")

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PREVIEWS = ("--preview-every", "2", "--preview-prompts", "a red square", "a cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """A model and pictures; no test may write into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        place = tmp_path_factory.mktemp("watch")
        write_pipeline(place / "base")
        write_pictures(place / "pictures")
        yield place


def train(folder: Path, output: Path, *extra: str) -> int:
    argv = ["train", "--model", str(folder / "base"), "--data", str(folder / "pictures"), "--output", str(output)]
    return main([*argv, "--rank", "2", "--steps", "2", "--lr", "0.01", *extra])


def weights(path: Path) -> str:
    return read_metadata(path)["sshs_model_hash"]


def delta(adapter: Adapter) -> torch.Tensor:
    svd = adapter.layers[STEM].svd
    return (svd.u * svd.s) @ svd.vh


def test_validation_is_said_and_ends_the_run_and_the_best_is_kept(folder, tmp_path, capsys):
    output = tmp_path / "style.safetensors"
    flags = ("--validation-share", "0.3", "--validate-every", "1", "--patience", "2", "--keep-best")
    assert train(folder, output, *flags, "--steps", "40", "--lr", "0.3", "--clip-norm", "0") == 0
    text = capsys.readouterr().out
    assert "pictures:   2 pictures" in text and "validation: 1 picture held out, measured every 1 step\n" in text
    told = read_metadata(output)
    measures = json.loads(told["trilora.history"])["measures"]
    for step, validation, drift in measures:
        assert f"step {step}: validation {validation:.4f}, drift {drift:.4g}\n" in text
    best = min(measures[1:], key=lambda measure: measure[1])[0]
    assert int(told["ss_steps"]) == measures[-1][0] == best + 2 < 40
    assert f"Ended after step {best + 2}: the validation loss was best at step {best} " in text
    kept = tmp_path / "style_best.safetensors"
    assert str(kept) in text and read_metadata(kept)["ss_steps"] == str(best)
    assert text.splitlines()[-1] == f"adapter: {output.resolve()}"
    assert f"log: {(tmp_path / 'style.log.jsonl').resolve()}\n" in text


def test_previews_lie_by_step_are_named_once_and_change_nothing(folder, tmp_path, capsys):
    plain, output = tmp_path / "plain.safetensors", tmp_path / "style.safetensors"
    assert train(folder, plain, "--steps", "4") == 0
    capsys.readouterr()
    assert train(folder, output, "--steps", "4", *PREVIEWS, "--save-every", "1", "--keep-adapters", "2") == 0
    text = capsys.readouterr().out
    strip = tmp_path / "style_previews" / "strip.png"
    assert text.count("previews: ") == 1 and f"previews: {strip.resolve()} " in text
    drawn = sorted(path.name for path in strip.parent.iterdir())
    assert drawn == [*(f"step_{step:05d}_{index}.png" for step in (0, 2, 4) for index in (0, 1)), "strip.png"]
    first, last = ((strip.parent / f"step_0000{step}_0.png").read_bytes() for step in (0, 4))
    assert first != last, "drawn with the adapter as it is"
    kept = [tmp_path / f"style_step_0000{step}.safetensors" for step in (2, 3)]
    assert sorted(tmp_path.glob("*_step_*")) == kept
    assert all(f"kept: {path.resolve()}\n" in text for path in kept)
    assert weights(output) == weights(plain)


def test_a_preview_that_fails_is_a_warning(folder, tmp_path, capsys, monkeypatch):
    def refuse(self, prompts, seeds):
        raise InputError("no canvas")

    monkeypatch.setattr(DiffusersPreviewer, "preview", refuse)
    output = tmp_path / "style.safetensors"
    assert train(folder, output, *PREVIEWS) == 0
    assert "warning: no preview at step 0: no canvas" in capsys.readouterr().err
    assert output.is_file()


@pytest.mark.parametrize(
    "flags",
    [
        ("--ema", "0.5"),
        ("--up-rate", "3"),
        ("--sigma-rate", "0"),
        ("--down-rate", "0"),
        ("--timesteps", "logit-normal"),
        ("--timesteps", "shifted", "--shift", "9"),
        ("--min-snr-gamma", "1"),
        ("--noise-offset", "0.5"),
        ("--orthogonality", "10"),
        ("--rank-dropout", "0.5"),
    ],
    ids=" ".join,
)
def test_a_method_changes_what_is_learned(folder, tmp_path, flags):
    plain, output = folder / "plain.safetensors", tmp_path / "style.safetensors"
    assert plain.is_file() or train(folder, plain, "--steps", "3") == 0
    assert train(folder, output, "--steps", "3", *flags) == 0
    assert weights(output) != weights(plain)


def test_a_finished_run_whose_state_was_kept_goes_on(folder, tmp_path):
    whole, output = tmp_path / "whole.safetensors", tmp_path / "style.safetensors"
    assert train(folder, whole, "--steps", "4") == 0
    assert train(folder, output, "--steps", "2", "--keep-state") == 0
    assert train(folder, output, "--steps", "4", "--resume") == 0
    assert weights(output) == weights(whole)
    assert not output.with_suffix(".state").exists(), "nobody asked for it this time"


def test_a_run_goes_on_from_a_file(folder, tmp_path, capsys):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert train(folder, first, "--dtype", "fp32", "--lr", "0.05") == 0
    capsys.readouterr()
    assert train(folder, second, "--dtype", "fp32", "--lr", "1e-9", "--rank", "3", "--start-from", str(first)) == 0
    assert f"start:      {first.resolve()}\n" in capsys.readouterr().out
    before, after = delta(read_adapter(first)), delta(read_adapter(second))
    assert before.norm() > 1e-3 and torch.allclose(before, after, atol=1e-5 * float(before.norm()))
    assert train(folder, second, "--steps", "1", "--resume", "--rank", "3", "--start-from", str(first)) == 0
    assert "finished already" not in capsys.readouterr().out, "another run than that of two steps"
    fingerprints = [read_metadata(second)["trilora.fingerprint"]]
    assert train(folder, second, "--steps", "1", "--rank", "3") == 0
    assert read_metadata(second)["trilora.fingerprint"] not in fingerprints, "the start is part of what a run is"


@pytest.mark.parametrize(
    ("stem", "rows", "rank", "message"),
    [
        (STEM, 320, 1, "is for a weight of shape (320, 320), the model's is (16, 16)"),
        ("lora_unet_elsewhere", 16, 1, "start_from shares no layer with this model"),
        (STEM, 16, 3, "has rank 3, this run 2; set rank to 3 or more"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(folder, tmp_path, capsys, stem, rows, rank, message):
    torch.manual_seed(0)
    start, output = tmp_path / "start.safetensors", tmp_path / "style.safetensors"
    layer = Layer(spectral.canonical(torch.randn(rows, rank), torch.randn(rank, rows)))
    write_adapter(start, Adapter({stem: layer}, {}), dtype=torch.float32)
    assert train(folder, output, "--start-from", str(start)) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_what_is_absent_is_known_before_the_model_is_loaded(folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "style.safetensors"
    assert train(folder, output, "--model", "nowhere", "--start-from", "nothing.safetensors") == 2
    assert "nothing.safetensors does not exist" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    assert train(folder, output, "--model", "nowhere", "--optimizer", "lion") == 2
    assert "pip install lion-pytorch" in capsys.readouterr().err
    assert train(folder, output, "--model", "nowhere", "--optimizer", "schedulefree", "--ema", "0.9") == 2
    assert "set ema to 0" in capsys.readouterr().err


def test_one_picture_cannot_be_held_out(folder, tmp_path, capsys):
    alone = write_pictures(tmp_path / "alone")
    for colour in COLOURS[1:]:
        (alone / f"{colour}.png").unlink()
    output = tmp_path / "style.safetensors"
    assert train(folder, output, "--data", str(alone), "--validation-share", "0.1") == 2
    assert "give at least 2 different pictures, or set monitor.validation_share to 0" in capsys.readouterr().err
