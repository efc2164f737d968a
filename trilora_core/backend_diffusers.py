"""The protocols of the training loop over a diffusers pipeline: Stable Diffusion 1.5 and SDXL."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .backend_diffusers_apply import apply_adapter, architecture_of, denoiser_modules
from .backend_diffusers_load import load_pipeline
from .backend_diffusers_text import Conditioning, DiffusersTextEncoder, encode_caption
from .branch import Target
from .config import LayerConfig
from .data.framing import Frame
from .errors import InputError
from .layers import DEFAULT, choose, kinds_of
from .transfer import upload

__all__ = [
    "Conditioning",
    "DiffusersDenoiser",
    "DiffusersEncoder",
    "DiffusersPreviewer",
    "DiffusersTextEncoder",
    "apply_adapter",
    "load_pipeline",
    "refuse_weights",
]

_PREDICTIONS = ("epsilon", "v_prediction")
_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
_SAMPLES = 64  # values per tensor at most that go into a fingerprint


class DiffusersDenoiser:
    """The frozen U-Net of a pipeline as the loop sees it. Creating one freezes the pipeline's parameters.

    Latents come as the VAE gives them; `predict` scales them. Times are the integer steps of the training schedule.
    """

    def __init__(self, pipe: Any, name: str = "") -> None:
        self._unet: Any = pipe.unet
        self.architecture = architecture_of(pipe)
        self.base_name = name or Path(str(pipe.config.get("_name_or_path") or type(pipe).__name__)).name
        self.base_fingerprint = _fingerprint([pipe.unet])
        self.compute_dtype: torch.dtype = pipe.unet.dtype
        self.prediction_type = _prediction_type(pipe)
        self.in_place_safe = True
        self.alphas = _alphas(pipe.scheduler)
        self._scale, self._shift = pipe.vae.config.scaling_factor, getattr(pipe.vae.config, "shift_factor", None) or 0.0
        self._pixels = pipe.vae_scale_factor
        self._modules = denoiser_modules(pipe)
        self._kinds = kinds_of(self._modules, self.architecture)
        _check_latents(pipe)
        for module in _networks(pipe):
            module.requires_grad_(False).eval()

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        """The chosen layers by canonical file stem; InputError when none is left."""
        return {stem: Target(self._modules[stem]) for stem in choose(self._kinds, layers)}

    def blocks(self) -> list[nn.Module]:
        """Transformer and residual blocks: what gradient checkpointing recomputes, one at a time."""
        return [module for module in self._unet.modules() if type(module).__name__ in _BLOCKS]

    def times(self, u: Tensor) -> Tensor:
        """Draws u in [0, 1] -> integer steps 0 … T-1 of the training schedule, (B,) -> (B,)."""
        last = len(self.alphas) - 1
        return (u * len(self.alphas)).long().clamp_(0, last)

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ / (1 - ᾱ) at the given steps, (B,) -> (B,)."""
        alpha = self.alphas.to(times.device)[times]
        return alpha / (1 - alpha)

    def raw(self, latents: Tensor) -> Tensor:
        """Latents of the U-Net's scale, (B, C, h, w) -> as the VAE gives them."""
        raw: Tensor = latents / self._scale + self._shift
        return raw

    def predict(self, latents: Tensor, noise: Tensor, times: Tensor, cond: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Noise the latents (B, C, h, w) to the given steps in float32 and ask the U-Net for the noise or v.

        Returns (prediction, target), both float32; the target is the noise (Ho et al. 2020, eq. 14) or
        v = sqrt(ᾱ)·noise - sqrt(1 - ᾱ)·latents (Salimans & Ho 2022, appendix D).
        """
        place = latents.device
        clean, noise = (latents.float() - self._shift) * self._scale, noise.float()
        alpha = upload(self.alphas.to(times.device)[times], place).view(-1, 1, 1, 1)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        noisy = (signal * clean + spread * noise).to(self.compute_dtype)
        tokens = upload(torch.stack([item["tokens"] for item in cond]), place, self.compute_dtype)
        prediction = self._unet(
            noisy,
            upload(times, place),
            encoder_hidden_states=tokens,
            added_cond_kwargs=self._added(cond, noisy),
            return_dict=False,
        )[0]
        return prediction.float(), noise if self.prediction_type == "epsilon" else signal * noise - spread * clean

    def _added(self, cond: Sequence[Any], noisy: Tensor) -> dict[str, Tensor] | None:
        """SDXL's extra conditioning: pooled captions, and original size, crop corner, target size in pixels."""
        if self.architecture != "sdxl":
            return None
        height, width = (side * self._pixels for side in noisy.shape[-2:])
        whole = (height, width, 0, 0, height, width)
        places = torch.tensor([item.get("place", whole) for item in cond], dtype=noisy.dtype)
        pooled = torch.stack([item["pooled"] for item in cond])
        return {"text_embeds": upload(pooled, noisy.device, noisy.dtype), "time_ids": upload(places, noisy.device)}


class DiffusersEncoder:
    """The VAE and text encoders of a pipeline: pictures to raw latents, captions to Conditioning on the CPU."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        architecture_of(pipe)
        self.picture_fingerprint = _fingerprint([pipe.vae])
        self.caption_fingerprint = _fingerprint([part for part in _networks(pipe) if part not in (pipe.unet, pipe.vae)])
        self.fingerprint = f"{self.picture_fingerprint} {self.caption_fingerprint}"

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) in [0, 1] to latents (B, C, h, w), unscaled: the mean, without sampling.

        Raises InputError when a side is no multiple of what the VAE shrinks it by.
        """
        vae, step = self._pipe.vae, self._pipe.vae_scale_factor
        for side in images.shape[-2:]:
            if side % step:
                low = side - side % step
                raise InputError(f"resolution is {side}; this model needs a multiple of {step}, such as {low or step}")
        with _safe_precision(vae):
            encoded = vae.encode(images.to(vae.device, vae.dtype) * 2 - 1)
        found = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return found.float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def captions(self, texts: Sequence[str], *, weights: bool = False) -> list[Any]:
        """Encode captions exactly as the pipeline does when it draws."""
        refuse_weights(weights)
        return [self._caption(text) for text in texts]

    def placed(self, cond: Any, frame: Frame) -> Any:
        """Tell SDXL how large the picture was and what was cut off; other models are not conditioned on it."""
        if cond["pooled"] is None:
            return cond
        (width, height), (left, top), (wide, high) = frame.original, frame.corner, frame.size
        return {**cond, "place": (height, width, top, left, high, wide)}

    def _caption(self, text: str) -> Conditioning:
        tokens, pooled = encode_caption(self._pipe, text)
        return {"tokens": tokens.cpu().clone(), "pooled": None if pooled is None else pooled.cpu().clone()}


class DiffusersPreviewer:
    """Draws with a pipeline as it is now, with whatever adapter is attached or applied."""

    def __init__(
        self, pipe: Any, *, steps: int = 20, guidance: float = 7.5, resolution: int = 0, negative: str = ""
    ) -> None:
        self._pipe = pipe
        self._steps, self._guidance, self._negative = steps, guidance, negative
        self._side = resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor
        if self._side < 8 or self._side % 8:
            raise InputError(f"resolution is {self._side}; wanted a multiple of 8 pixels, such as 512")
        if steps < 1:
            raise InputError(f"steps is {steps}; wanted at least one sampling step (20 is usual)")
        most = pipe.scheduler.config.num_train_timesteps - 1  # some schedulers fail at all of them
        if steps > most:
            raise InputError(
                f"steps is {steps}; wanted at most {most}, as the model's noise schedule has (20 is usual)"
            )
        if not math.isfinite(guidance):
            raise InputError(f"guidance is {guidance}; wanted a finite number (7.5 is usual, 1 = off)")

    @torch.no_grad()
    def preview(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Draw one picture for each prompt and seed, one at a time; the noise is drawn on the CPU."""
        if len(prompts) != len(seeds):
            raise InputError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
        return [self._draw(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _draw(self, prompt: str, seed: int) -> Image.Image:
        result = self._pipe(
            prompt,
            negative_prompt=self._negative or None,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            height=self._side,
            width=self._side,
            generator=torch.Generator("cpu").manual_seed(seed % 2**64),  # torch takes no wider one
        )
        return result.images[0]  # type: ignore[no-any-return]


def refuse_weights(weights: bool) -> None:
    """Raise InputError for captions whose (word:1.2) is to be read as a weight, which a pipeline cannot."""
    if weights:
        raise InputError(
            "captions.weights is on, but diffusers reads (word:1.2) as text; turn it off, or train in ComfyUI"
        )


def _networks(pipe: Any) -> list[Any]:
    parts = (getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2"))
    return [part for part in parts if part is not None]


def _prediction_type(pipe: Any) -> str:
    kind = str(pipe.scheduler.config.get("prediction_type", "epsilon"))
    if kind not in _PREDICTIONS:
        raise InputError(f"the model's scheduler says prediction_type {kind!r}; known: {', '.join(_PREDICTIONS)}")
    return kind


def _alphas(scheduler: Any) -> Tensor:
    """The cumulative signal share ᾱ of every training step, (T,) float32 on the CPU."""
    from diffusers import DDPMScheduler

    if "beta_schedule" not in scheduler.config or "EDM" in type(scheduler).__name__:
        raise InputError(f"the model's {type(scheduler).__name__} has no noise schedule of betas; give SD 1.5 or SDXL")
    schedule: Any = DDPMScheduler.from_config(scheduler.config)
    return schedule.alphas_cumprod.float().cpu()  # type: ignore[no-any-return]


def _check_latents(pipe: Any) -> None:
    wanted, given = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if wanted != given:
        raise InputError(
            f"the U-Net takes {wanted} channels and the VAE gives {given} (an inpainting model?); "
            "give a text-to-image model"
        )


def _fingerprint(modules: Sequence[nn.Module]) -> str:
    """SHA-256 over names, shapes and evenly spaced values of all weights: cheap, follows content, not the place."""
    digest, samples = hashlib.sha256(), []
    for index, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{index} {name} {tuple(tensor.shape)};".encode())
            flat = tensor.detach().flatten()
            # half precision, so that the same file loaded as fp16 and as fp32 is one model
            samples.append(flat[:: max(1, -(-flat.numel() // _SAMPLES))].half())
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _safe_precision(vae: Any) -> Iterator[None]:
    """Run a VAE that overflows in float16 (SDXL's says so) in float32; the way back to float16 is exact."""
    if vae.dtype is not torch.float16 or not getattr(vae.config, "force_upcast", False):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)
