"""An encoder that shows what it was asked for, and folders of pictures to ask with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from trilora_core.config_data import DataConfig
from trilora_core.data.framing import Frame


class CountingEncoder:
    """The Encoder protocol: latents are eighths of the pictures, in half precision."""

    def __init__(self, vae: str = "vae", clip: str = "clip") -> None:
        self.picture_fingerprint, self.caption_fingerprint = vae, clip
        self.fingerprint = f"{vae} {clip}"
        self.sizes: list[tuple[int, ...]] = []
        self.texts: list[str] = []

    def pictures(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape))
        return torch.nn.functional.avg_pool2d(images, 8).half()

    def captions(self, texts: Sequence[str], *, weights: bool = False) -> list[Any]:
        self.texts += texts
        return [{"text": text, "weights": weights} for text in texts]

    def placed(self, cond: Any, frame: Frame) -> Any:
        return {**cond, "size": frame.size, "corner": frame.corner}


def noise_picture(seed: int, size: tuple[int, int] = (32, 40)) -> Image.Image:
    width, height = size
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8))


def fill(folder: Path, count: int = 6, size: tuple[int, int] = (32, 40)) -> None:
    """Pictures 0.png, 1.png … with the captions "a lamp" and "a fox" in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise_picture(index, size).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a fox" if index % 2 else "a lamp")


def config(folder: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(folder=str(folder), resolution=16), **changes)
