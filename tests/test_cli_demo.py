"""The demo verb on a tiny random pipeline: files, texts, and the way into a ComfyUI."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.tiny_pipeline import write_pictures, write_pipeline
from trilora_core.__main__ import main
from trilora_core.cli import demo
from trilora_core.fileformat import read_adapter

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    pictures = write_pictures(folder / "pictures", captions=False)
    for name, caption in (("red", "a red house"), ("green", "a green boat"), ("blue", "a blue tree")):
        (pictures / f"{name}.txt").write_text(f"{caption}, {demo.TRIGGER_WORD}", encoding="utf-8")
    return write_pipeline(folder / "base"), pictures


@pytest.fixture
def tiny(shipped, monkeypatch):
    monkeypatch.setattr(demo, "BASE", shipped[0])
    monkeypatch.setattr(demo, "PICTURES", shipped[1])
    monkeypatch.setattr(demo, "PROMPTS", (("a red house", False), ("a pink umbrella", True)))
    monkeypatch.setattr(demo, "_DRAWING_STEPS", 1)


def test_the_demo_leaves_an_adapter_and_three_pictures(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRILORA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    assert main(["demo", "--steps", "3", "--output", str(folder)]) == 0
    assert len(read_adapter(folder / "zorblin_style.safetensors").layers) == 32
    for name in ("before_after.png", "loss.png", "spectrum.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
    text = capsys.readouterr().out
    for name in ("before_after.png", "loss.png", "spectrum.png", "zorblin_style.safetensors"):
        assert str((folder / name).resolve()) in text
    assert "next:" in text and "trilora_core apply" in text
    assert not (tmp_path / "cache").exists(), "a demo leaves nothing in the user's cache"


@pytest.mark.parametrize("inside", [True, False])
def test_a_comfyui_that_is_there_gets_its_own_lines(tmp_path, monkeypatch, inside):
    host = tmp_path / "ComfyUI"
    (host / "comfy").mkdir(parents=True)
    (host / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    monkeypatch.setattr(demo, "REPOSITORY", host / "custom_nodes" / "trilora" if inside else tmp_path / "clone")
    text = "\n".join(demo._comfyui_lines())
    assert str(host) in text and "input" in text
    assert ("ln -s" in text) is not inside


def test_without_a_comfyui_the_readme_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path / "clone")
    assert demo._comfyui_lines() == ["  in ComfyUI: see README.md"]


def test_without_the_shipped_model_the_error_says_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "BASE", tmp_path / "base")
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "clone the repository" in capsys.readouterr().err
