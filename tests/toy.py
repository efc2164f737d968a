"""A toy text-to-image model with the protocols of the training loop: two attention blocks over small latents, and a
text encoder of two layers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trilora_core.branch import Target
from trilora_core.config import LayerConfig
from trilora_core.config_data import DataConfig
from trilora_core.data.dataset import Dataset, load_tensors
from trilora_core.layers import DEFAULT, choose, choose_text, text_kinds

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


class TextLayer(nn.Module):
    """One layer of a text encoder, with CLIP's names."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q_proj(x) @ self.k_proj(x).transpose(0, 1) / WIDTH**0.5).softmax(dim=-1)
        x = x + self.out_proj(weights @ self.v_proj(x))
        return x + self.fc2(self.fc1(x).tanh())


class ToyTextEncoder:
    """The TextEncoder protocol for ToyDenoiser: a caption becomes tokens (TOKENS, WIDTH)."""

    compute_dtype = torch.float32

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed + 1000)
        self.model = nn.Sequential(TextLayer(), TextLayer()).requires_grad_(False)
        self.encoded: list[str] = []

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for index, layer in enumerate(self.model):
            stem = f"lora_te_text_model_encoder_layers_{index}"
            found |= {f"{stem}_self_attn_{name}_proj": Target(getattr(layer, f"{name}_proj")) for name in "qkv"}
            found[f"{stem}_self_attn_out_proj"] = Target(layer.out_proj)
            found |= {f"{stem}_mlp_{name}": Target(getattr(layer, name)) for name in ("fc1", "fc2")}
        return {stem: found[stem] for stem in choose_text(text_kinds(found, "sd15"), layers)}

    def blocks(self) -> list[nn.Module]:
        return list(self.model)

    def encode(self, texts: Sequence[str], cond: Sequence[Any]) -> list[Tensor]:
        self.encoded += texts
        return [self.model(self._tokens(text)) for text in texts]

    def _tokens(self, text: str) -> Tensor:
        return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def with_texts(dataset: Dataset, encoder: ToyTextEncoder) -> Dataset:
    """The data set with its captions encoded by `encoder` as it is, and kept as texts beside that."""
    texts = {item.cond[0]: item.caption for item in dataset.items}
    for key, text in texts.items():
        dataset.store.put(key, encoder.encode([text], [None])[0])
    encoder.encoded.clear()
    return replace(dataset, texts=texts)


def toy_dataset(count: int = 6, seed: int = 0, sizes: Sequence[tuple[int, int]] = ((4, 4),), **options: Any) -> Dataset:
    """Random latents, of these sizes in turn, and captions' conditioning."""
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(4, *sizes[i % len(sizes)], generator=generator) for i in range(count)]
    cond = [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(count)]
    config = DataConfig(resolution=32, trigger_word="toy")
    return load_tensors(latents, cond, captions=[f"picture {i}" for i in range(count)], config=config, **options)
