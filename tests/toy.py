"""A toy text-to-image model with the protocols of the training loop: two attention blocks over small latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trilora_core.adapter import Target
from trilora_core.config import DataConfig, LayerConfig
from trilora_core.data.dataset import Dataset, load_tensors
from trilora_core.layers import DEFAULT, choose

WIDTH = 16
TOKENS = 3


class Block(nn.Module):
    """Self- and cross-attention in one: queries from the picture, keys and values from picture and caption."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.qv = nn.Linear(WIDTH, 2 * WIDTH)  # a fused layer: row ranges are adapted
        self.mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor, cond: Tensor, size: tuple[int, int]) -> Tensor:
        seen = torch.cat([x, cond], dim=1)
        gate, value = self.qv(seen).chunk(2, dim=-1)
        weights = (self.to_q(x) @ self.to_k(seen).transpose(1, 2) / WIDTH**0.5).softmax(dim=-1)
        x = x + weights @ (value * gate.sigmoid())
        picture = x.transpose(1, 2).unflatten(2, size)
        return x + self.mix(picture).flatten(2).transpose(1, 2).tanh()


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.outside = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, times.view(-1, 1, 1).expand(-1, tokens.shape[1], 1)], dim=2)
        hidden = self.inside(tokens)
        for block in self.blocks:
            hidden = block(hidden, cond, size)
        return self.outside(hidden).transpose(1, 2).unflatten(2, size)


class ToyDenoiser:
    """The Denoiser protocol over ToyModel: x_t = (1 - t)·x + t·noise, target = noise - x."""

    architecture = "toy"
    base_name = "toy"
    base_fingerprint = "toy-0"
    compute_dtype = torch.float32
    prediction_type = "flow"
    in_place_safe = True

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = ToyModel().requires_grad_(False)
        self.poison_steps: set[int] = set()  # calls of predict that answer NaN
        self.calls = 0

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for index, block in enumerate(self.model.blocks):
            stem = f"lora_unet_blocks_{index}"
            found |= {f"{stem}_to_q": Target(block.to_q), f"{stem}_to_k": Target(block.to_k)}
            found |= {f"{stem}_to_v": Target(block.qv, (WIDTH, 2 * WIDTH)), f"{stem}_mix": Target(block.mix)}
        return {stem: found[stem] for stem in choose(dict.fromkeys(found, "joint"), layers)}

    def blocks(self) -> list[nn.Module]:
        return list(self.model.blocks)

    def times(self, u: Tensor) -> Tensor:
        return 0.02 + 0.96 * u

    def snr(self, times: Tensor) -> Tensor:
        return ((1 - times) / times) ** 2

    def raw(self, latents: Tensor) -> Tensor:
        return latents

    def predict(self, latents: Tensor, noise: Tensor, times: Tensor, cond: Sequence[Any]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        t = times.view(-1, 1, 1, 1)
        out = self.model((1 - t) * latents + t * noise, times, torch.stack(list(cond)))
        return (out * float("nan") if self.calls in self.poison_steps else out), noise - latents


def toy_dataset(count: int = 6, seed: int = 0, sizes: Sequence[tuple[int, int]] = ((4, 4),), **options: Any) -> Dataset:
    """Random latents, of these sizes in turn, and captions' conditioning."""
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(4, *sizes[i % len(sizes)], generator=generator) for i in range(count)]
    cond = [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(count)]
    config = DataConfig(resolution=32, trigger_word="toy")
    return load_tensors(latents, cond, captions=[f"picture {i}" for i in range(count)], config=config, **options)
