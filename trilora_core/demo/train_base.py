"""Train the base model of the demo from nothing and write it as a diffusers folder.

`python -m trilora_core.demo.train_base`

It learns the plain world of `world.py` only, never the style. Stopped and started again, it goes on where it was.
The folder that ships took 46 minutes on one core of a server CPU of 2021's kind (AVX2, 60 Gflop/s in single precision):
9 for the autoencoder, 29 (3,000 steps of 32 pictures) for the denoiser and its text encoder, 8 for the decoder alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from . import picture_codec, words
from .muon import Muon
from .world import draw, grid, random_picture

FOLDER = Path(__file__).parent / "base"
_WIDTH = 96
_PEAK_RATE = 2e-3
_NO_CAPTION_SHARE = 0.1
_PREVIEWS = (
    "a red house on a green field",
    "a green tree in the snow",
    "an orange fish by the sea",
    "a white cat at night",
    "a blue boat by the sea",
    "a red mushroom on a green field",
    "a yellow flower in the desert",
    "a purple car in the snow",
    "a pink star at night",
    "a red heart in the snow",
    "a green rocket at night",
    "an orange umbrella by the sea",
)


@dataclass(frozen=True)
class Lessons:
    """Latents (N, 16, 8, 8) of the training pictures and, per picture, the row of its caption's tokens (C, 24)."""

    latents: Tensor
    caption: Tensor
    tokens: Tensor


@dataclass
class Progress:
    """How far the denoiser has come."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


class Painter(nn.Module):
    """The denoiser and its text encoder, trained together."""

    def __init__(self, vocabulary: int, start: int, end: int) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=picture_codec.LATENT_CHANNELS,
            out_channels=picture_codec.LATENT_CHANNELS,
            block_out_channels=(64, 88),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=_WIDTH,
                intermediate_size=2 * _WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=words.MAX_TOKENS,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
                projection_dim=_WIDTH,
            )
        )
        # every residual branch begins at zero, so that the first steps are those of a shallow model
        for name, module in self.unet.named_modules():
            if name.endswith((".conv2", ".proj_out")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Latents (B, 16, 8, 8), times (B,), tokens (B, 24) to the predicted velocity, shaped as the latents."""
        velocity: Tensor = self.unet(noisy, times, self.text(tokens).last_hidden_state).sample
        return velocity


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, velocity prediction (Salimans and Ho, 2022), steps counted from the noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def load_codec(work: Path, minutes: float) -> AutoencoderKL:
    """The autoencoder from the work folder, trained first where there is none yet."""
    codec, file = picture_codec.build(), work / "codec.safetensors"
    if not file.exists():
        picture_codec.train(codec, 60 * minutes, seed=0, report=_say)
        picture_codec.normalise(codec, picture_codec.lessons(1, 400, 0))
        save_file(_plain(codec.state_dict()), file)
    codec.load_state_dict(load_file(file))
    return codec.eval().to(memory_format=torch.channels_last)


def refined(work: Path, codec: AutoencoderKL, minutes: float) -> AutoencoderKL:
    """The autoencoder after its decoder was trained on alone, from the work folder where that was done before."""
    file = work / "refined.safetensors"
    if not file.exists():
        picture_codec.refine(codec, 60 * minutes, seed=3, report=_say)
        save_file(_plain(codec.state_dict()), file)
    codec.load_state_dict(load_file(file))
    return codec.eval()


def _say(line: str) -> None:
    print(line, flush=True)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def load_lessons(work: Path, codec: AutoencoderKL, count: int) -> Lessons:
    """Latents and captions of `count` random pictures; the last caption is the empty one."""
    rng = random.Random(2)
    pictures = [random_picture(rng) for _ in range(count)]
    captions = [*dict.fromkeys(p.caption for p in pictures), ""]
    row = {caption: i for i, caption in enumerate(captions)}
    tokens = words.build()(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    file = work / "latents.safetensors"
    if not file.exists():
        parts = [pictures[i : i + 256] for i in range(0, count, 256)]
        bytes_of = (picture_codec.to_tensor([draw(p) for p in part]) for part in parts)
        save_file({"latents": torch.cat([picture_codec.encode(codec, part) for part in bytes_of]).contiguous()}, file)
    return Lessons(load_file(file)["latents"], torch.tensor([row[p.caption] for p in pictures]), tokens)


def loss_of(painter: Painter, lessons: Lessons, alphas: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """The mean squared error of the velocity over one random batch."""
    chosen = torch.randint(len(lessons.latents), (batch,), generator=generator)
    caption = lessons.caption[chosen]
    caption[torch.rand(batch, generator=generator) < _NO_CAPTION_SHARE] = len(lessons.tokens) - 1
    clean = lessons.latents[chosen].contiguous(memory_format=torch.channels_last)
    noise = torch.randn(clean.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    evenly = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    times = (evenly * len(alphas)).long()
    signal = alphas[times].sqrt()[:, None, None, None]
    grain = (1 - alphas[times]).sqrt()[:, None, None, None]
    velocity = painter(signal * clean + grain * noise, times, lessons.tokens[caption])
    return functional.mse_loss(velocity, signal * noise - grain * clean)


class Learner:
    """The training state of the denoiser: weights, their running mean, the optimizer, and how far it is."""

    def __init__(self, painter: Painter, work: Path, minutes: float) -> None:
        self.painter, self.work, self.minutes = painter, work, minutes
        painter.unet.to(memory_format=torch.channels_last)
        self.mean = [p.detach().clone() for p in painter.parameters()]
        tables = [p for m in painter.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
        self.optimizer = Muon(painter.parameters(), small=tables)
        self.progress = Progress()
        if (work / "state.json").exists():
            self._load()

    def run(self, lessons: Lessons, codec: AutoencoderKL, batch: int, save_every: float) -> None:
        """Train until the time is up; the rate warms up, then falls in a straight line to 2 %."""
        alphas, generator = scheduler().alphas_cumprod, torch.Generator()
        progress, saved = self.progress, time.monotonic()
        while progress.seconds < 60 * self.minutes:
            began = time.monotonic()
            generator.manual_seed(progress.step)
            share = min(1.0, progress.step / 50) * (1 - 0.98 * progress.seconds / (60 * self.minutes))
            loss = loss_of(self.painter, lessons, alphas, batch, generator)
            self._update(loss, _PEAK_RATE * share)
            progress.step += 1
            progress.losses.append(float(loss.detach()))
            progress.seconds += time.monotonic() - began
            if time.monotonic() - saved > save_every:
                self.save(codec)
                saved = time.monotonic()
        self.save(codec)

    @torch.no_grad()
    def _update(self, loss: Tensor, rate: float) -> None:
        self.painter.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss.backward()
        nn.utils.clip_grad_norm_(self.painter.parameters(), 1.0)
        self.optimizer.step(rate)
        step = self.progress.step
        torch._foreach_lerp_(self.mean, list(self.painter.parameters()), 1 - min(0.99, (1 + step) / (10 + step)))

    def save(self, codec: AutoencoderKL) -> None:
        """Write the state, the base folder with the mean weights, and a grid of previews."""
        tensors: dict[str, Tensor] = {f"weight.{i}": p for i, p in enumerate(self.painter.parameters())}
        tensors |= {f"mean.{i}": m for i, m in enumerate(self.mean)}
        save_file(_plain(tensors | self.optimizer.state()), self.work / "state.safetensors")
        (self.work / "state.json").write_text(json.dumps(vars(self.progress)))
        export(self.painter, self.mean, codec, FOLDER)
        preview(FOLDER, self.work / f"step{self.progress.step:05d}.png")
        recent = self.progress.losses[-200:]
        minutes = self.progress.seconds / 60
        print(f"step {self.progress.step}, {minutes:.1f} minutes: loss {sum(recent) / len(recent):.4f}", flush=True)

    def _load(self) -> None:
        self.progress = Progress(**json.loads((self.work / "state.json").read_text()))
        tensors = load_file(self.work / "state.safetensors")
        with torch.no_grad():
            for i, (weight, mean) in enumerate(zip(self.painter.parameters(), self.mean, strict=True)):
                weight.copy_(tensors[f"weight.{i}"])
                mean.copy_(tensors[f"mean.{i}"])
        self.optimizer.load(tensors)


@torch.no_grad()
def export(painter: Painter, mean: Sequence[Tensor], codec: AutoencoderKL, folder: Path) -> None:
    """Write the mean weights as a diffusers folder in half precision."""
    tokenizer = words.build()
    copy = Painter(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for weight, value in zip(copy.parameters(), mean, strict=True):
        weight.copy_(value)
    vae = picture_codec.build()
    vae.load_state_dict(codec.state_dict())
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=copy.text.half(),
        tokenizer=tokenizer,
        unet=copy.unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    # the names of every public checkpoint: those that transformers 5.23 writes are unknown to 5.0
    text = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in load_file(text).items()}
    save_file(named, text, {"format": "pt"})
    # transformers would otherwise give back half precision next to diffusers' single precision
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def preview(folder: Path, file: Path) -> None:
    """A sheet of twelve pictures by the model in a folder, 20 steps, guidance 3.5."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = pipeline(list(_PREVIEWS), num_inference_steps=20, guidance_scale=3.5, generator=generator).images
    grid(made, 6, 3).save(file)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m trilora_core.demo.train_base", description=__doc__)
    parser.add_argument("--minutes", type=float, default=29.0, help="time for the denoiser (default: %(default)s)")
    parser.add_argument("--codec-minutes", type=float, default=9.0, help="time for the autoencoder")
    parser.add_argument("--refine-minutes", type=float, default=8.0, help="time for the decoder alone, at the end")
    parser.add_argument("--pictures", type=int, default=2400, help="how many training pictures to draw")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=300.0, help="seconds between two saved states")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "trilora" / "demo_base")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    codec = load_codec(args.work, args.codec_minutes)
    lessons = load_lessons(args.work, codec, args.pictures)
    tokenizer = words.build()
    painter = Painter(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    learner = Learner(painter, args.work, args.minutes)
    learner.run(lessons, codec, args.batch, args.save_every)
    learner.save(refined(args.work, codec, args.refine_minutes))


if __name__ == "__main__":
    main()
