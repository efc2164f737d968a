"""Pictures and captions into a Dataset, with an encoder that shows what it was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from trilora_core.config import DataConfig
from trilora_core.data import load_folder, load_images
from trilora_core.errors import InputError


class CountingEncoder:
    fingerprint = "counting"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.texts: list[str] = []

    def pictures(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 8).half()

    def captions(self, texts: Sequence[str]) -> list[object]:
        self.texts += texts
        return [{"text": text} for text in texts]


def fill(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise = numpy.random.default_rng(index).integers(0, 256, (40, 32, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a fox" if index % 2 else "a lamp")


def config(folder: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(folder=str(folder), resolution=16), **changes)


def test_a_folder_becomes_latents_and_shared_conditioning_in_small_batches(tmp_path: Path) -> None:
    fill(tmp_path / "set")
    encoder, reports = CountingEncoder(), []
    data = load_folder(config(tmp_path / "set"), encoder, lambda done, total: reports.append((done, total)))
    assert encoder.batches == [4, 2] and encoder.texts == ["a lamp", "a fox"]
    assert len(data) == 6 and data.names == tuple(f"{index}.png" for index in range(6))
    assert all(latent.shape == (3, 2, 2) and latent.dtype == torch.float32 for latent in data.latents)
    assert data.cond[0] is data.cond[2] and data.cond[1] == {"text": "a fox"}
    assert data.captions == ("a lamp", "a fox") * 3 and data.skipped == ()
    assert reports == [(4, 8), (6, 8), (8, 8)]


def test_latents_can_be_trained_on_though_the_caller_is_in_inference_mode(tmp_path: Path) -> None:
    fill(tmp_path)
    with torch.inference_mode():
        data = load_folder(config(tmp_path), CountingEncoder())
    weight = torch.ones(1, requires_grad=True)
    (data.latents[0] * weight).sum().backward()
    assert weight.grad is not None


def test_content_hash_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = load_folder(config(tmp_path / "one"), CountingEncoder()).content_hash
    assert load_folder(config(tmp_path / "two"), CountingEncoder()).content_hash == first
    assert load_folder(config(tmp_path / "two", resolution=24), CountingEncoder()).content_hash != first
    other = CountingEncoder()
    other.fingerprint = "another VAE"
    assert load_folder(config(tmp_path / "two"), other).content_hash != first
    (tmp_path / "two" / "3.txt").write_text("a wolf")
    changed = load_folder(config(tmp_path / "two"), CountingEncoder()).content_hash
    Image.new("RGB", (32, 32)).save(tmp_path / "one" / "3.png")
    assert len({first, changed, load_folder(config(tmp_path / "one"), CountingEncoder()).content_hash}) == 3


def test_a_broken_picture_stops_or_is_skipped_and_named(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"picture 1.png cannot be read \(unknown format\)"):
        load_folder(config(tmp_path), CountingEncoder())
    data = load_folder(config(tmp_path, skip_unreadable=True), CountingEncoder())
    assert data.names == ("0.png", "2.png") and data.captions == ("a lamp", "a lamp") and len(data.latents) == 2
    assert len(data.skipped) == 1 and "1.png" in data.skipped[0]


def test_a_folder_of_broken_pictures_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of the 2 pictures can be read; the first: picture a.png"):
        load_folder(config(tmp_path, trigger_word="fox", skip_unreadable=True), CountingEncoder())


def test_caption_errors_come_before_any_encoding(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "5.txt").unlink()
    encoder = CountingEncoder()
    with pytest.raises(InputError, match=r"picture 5.png has no caption"):
        load_folder(config(tmp_path), encoder)
    assert encoder.batches == []
    assert load_folder(config(tmp_path, trigger_word="fox style"), encoder).captions[5] == "fox style"


def test_images_in_memory_equal_the_same_pictures_in_files(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    pictures = [numpy.asarray(Image.open(tmp_path / f"{index}.png")) for index in range(3)]
    images = torch.from_numpy(numpy.stack(pictures)).float() / 255
    from_files = load_folder(config(tmp_path), CountingEncoder())
    in_memory = load_images(images, from_files.captions, config(tmp_path), CountingEncoder())
    assert all(torch.equal(a, b) for a, b in zip(in_memory.latents, from_files.latents, strict=True))
    assert in_memory.captions == from_files.captions and in_memory.names[0] == "picture_1"


def test_captions_of_images_may_be_one_for_all_or_the_trigger_word(tmp_path: Path) -> None:
    images = torch.rand(3, 20, 20, 3)
    options = config(tmp_path, trigger_word="fox")
    assert load_images(images, ["a cat"], options, CountingEncoder()).captions == ("a cat",) * 3
    assert load_images(images, [], options, CountingEncoder()).captions == ("fox",) * 3
    assert load_images(images, ["a", " ", "c"], options, CountingEncoder()).captions == ("a", "fox", "c")


def test_wrong_images_and_captions_are_refused(tmp_path: Path) -> None:
    options = config(tmp_path)
    with pytest.raises(InputError, match=r"shape \(2, 3, 8, 8\); wanted \(pictures, height, width, 3\)"):
        load_images(torch.rand(2, 3, 8, 8), ["a"], options, CountingEncoder())
    with pytest.raises(InputError, match=r"2 captions for 3 pictures; give one per picture, one for all, or none"):
        load_images(torch.rand(3, 20, 20, 3), ["a", "b"], options, CountingEncoder())
    with pytest.raises(InputError, match=r"picture picture_1 has no caption"):
        load_images(torch.rand(1, 20, 20, 3), [""], options, CountingEncoder())
    broken = torch.rand(1, 20, 20, 3)
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"picture_1 has values that are not finite"):
        load_images(broken, ["a"], options, CountingEncoder())
