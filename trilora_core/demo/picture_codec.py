"""The demo's autoencoder: 64 x 64 pictures to 16 x 8 x 8 latents of mean 0 and deviation 1, and back.

It learns from the plain world and from scribbles (random shapes, lines and glows), so that it can also carry pictures
which the denoiser has never seen.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor, nn
from torch.nn import functional

from .muon import Muon
from .world import RGB, SIZE, draw, random_picture

LATENT_CHANNELS = 16
_KL_WEIGHT = 3e-5


def build() -> AutoencoderKL:
    """An untrained autoencoder of 0.6 million weights that shrinks each side by eight."""
    codec = AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,  # more groups of few channels would erase the colour of flat areas
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    _begin(codec)
    return codec


@torch.no_grad()
def _begin(codec: AutoencoderKL) -> None:
    """Begin as a nearly linear pyramid: the skips carry the colours, every residual branch starts at zero."""
    for name, module in codec.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
            elif "resnets" not in name or "shortcut" in name:
                nn.init.orthogonal_(module.weight)
    # next to no noise on the latents: at deviation 1 the first hundreds of steps see nothing else
    nn.init.zeros_(codec.quant_conv.weight[LATENT_CHANNELS:])
    nn.init.constant_(codec.quant_conv.bias[LATENT_CHANNELS:], -5.0)


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (B, 3, H, W) bytes."""
    return torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def to_float(pictures: Tensor) -> Tensor:
    """Bytes (B, 3, H, W) as float32 in [-1, 1], channels last."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def scribble(rng: random.Random, size: int = SIZE) -> Image.Image:
    """Random shapes and lines in random colours; half of the pictures glow."""
    big, unit = 4 * size, 4 * size / SIZE

    def colour() -> RGB:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    glows = rng.random() < 0.5
    canvas = Image.new("RGB", (big, big), tuple(c // 8 for c in colour()) if glows else colour())
    layer = Image.new("RGB", (big, big)) if glows else canvas
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.randint(3, 9)):
        points = [(rng.uniform(-20, big + 20), rng.uniform(-20, big + 20)) for _ in range(rng.randint(2, 4))]
        middle, spread = points[0], rng.uniform(0.1, 0.8)
        points = [(middle[0] + (x - middle[0]) * spread, middle[1] + (y - middle[1]) * spread) for x, y in points]
        width = round(rng.uniform(1, 4) * unit)
        if len(points) == 2:
            left, right = sorted((points[0][0], points[1][0]))
            top, bottom = sorted((points[0][1], points[1][1]))
            inside = (0, 0, 0) if glows else colour()
            pen.ellipse((left, top, right, bottom), fill=inside, outline=colour(), width=width)
        elif glows or rng.random() < 0.4:
            pen.line([*points, points[0]], fill=colour(), width=width, joint="curve")
        else:
            pen.polygon(points, fill=colour())
    if glows:
        halo = layer.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4) * unit))
        canvas = ImageChops.add(ImageChops.add(canvas, halo), layer)
    return canvas.resize((size, size), Image.Resampling.BOX)


def lessons(seed: int, plain: int, scribbles: int) -> Tensor:
    """The pictures to learn from, (plain + scribbles, 3, 64, 64) bytes."""
    rng = random.Random(seed)
    pictures = [draw(random_picture(rng)) for _ in range(plain)]
    return to_tensor(pictures + [scribble(rng) for _ in range(scribbles)])


def train(
    codec: AutoencoderKL,
    seconds: float,
    seed: int,
    report: Callable[[str], None],
    rate: float = 3e-3,
    crops: float = 0.8,
) -> None:
    """Train each weight that requires a gradient: a share of the time on crops of 32 pixels, then on whole pictures."""
    generator = torch.Generator().manual_seed(seed)
    pictures = lessons(seed, 2400, 1200)
    codec.to(memory_format=torch.channels_last).train()
    optimizer = Muon(p for p in codec.parameters() if p.requires_grad)
    began, recent = time.monotonic(), []
    for step, (share, batch) in enumerate(_batches(pictures, generator, began, seconds, crops), 1):
        loss, pixels = _loss(codec, batch, generator)
        codec.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step(rate * min(1.0, step / 20) * (1 - 0.98 * share))
        recent.append(float(pixels.detach()))
        if step % 50 == 0:
            report(f"autoencoder step {step} ({share:.0%}): mean absolute error {sum(recent[-50:]) / 50:.4f}")
    codec.eval()


def refine(codec: AutoencoderKL, seconds: float, seed: int, report: Callable[[str], None]) -> None:
    """Train the decoder alone for a time: the latents stay as they are, so a denoiser that learned them still fits."""
    codec.requires_grad_(False)
    codec.decoder.requires_grad_(True)
    codec.post_quant_conv.requires_grad_(True)
    train(codec, seconds, seed, report, rate=1.5e-3, crops=0.0)


def _batches(
    pictures: Tensor, generator: torch.Generator, began: float, seconds: float, crops: float
) -> Iterator[tuple[float, Tensor]]:
    while (share := (time.monotonic() - began) / seconds) < 1:
        crop = share < crops
        chosen = pictures[torch.randint(len(pictures), (8 if crop else 3,), generator=generator)]
        if crop:
            y, x = torch.randint(0, SIZE // 2 + 1, (2,), generator=generator).tolist()
            chosen = chosen[:, :, y : y + SIZE // 2, x : x + SIZE // 2]
        yield share, to_float(chosen)


def _loss(codec: AutoencoderKL, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    posterior = codec.encode(x).latent_dist
    y = codec.decode(posterior.sample(generator)).sample
    pixels = functional.l1_loss(y, x)
    edges = functional.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + functional.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return pixels + edges + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel(), pixels


@torch.no_grad()
def normalise(codec: AutoencoderKL, pictures: Tensor) -> None:
    """Fold each latent channel's mean and deviation into the two 1 x 1 convolutions around the latents, exactly."""
    means = encode(codec, pictures)
    mean, deviation = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    channels = LATENT_CHANNELS
    into, out = codec.quant_conv, codec.post_quant_conv
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(dim=1)
    out.weight *= deviation[None, :, None, None]
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()


@torch.no_grad()
def encode(codec: AutoencoderKL, pictures: Tensor, batch: int = 64) -> Tensor:
    """Bytes (N, 3, 64, 64) to the posterior's means (N, 16, 8, 8)."""
    return torch.cat([codec.encode(to_float(part)).latent_dist.mean for part in pictures.split(batch)])


@torch.no_grad()
def decode(codec: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Latents (N, 16, 8, 8) to pictures."""
    values = ((codec.decode(latents).sample + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(v.numpy()) for v in values.contiguous()]
