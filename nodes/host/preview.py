"""Pictures drawn by the host's own sampler, as its KSampler and VAE Decode nodes draw them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy
import torch
from PIL import Image
from torch import Tensor

from ...trilora_core.errors import InputError
from .events import check_interrupt

__all__ = ["SAMPLERS", "SCHEDULERS", "HostPreviewer"]

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
LATENT_PIXELS = 8  # of one latent of an empty latent image, in each direction
SMALLEST_SIDE = 16  # pixels, as in the host's own nodes
SEEDS = (1 << 64) - 1  # torch takes 64 bits, and some of the host's samplers add one


class HostPreviewer:
    """The Previewer protocol over a host's model, clip and vae: draws with the model as it is at each call.

    The model is sampled as given, neither cloned nor loaded anew; a model that is being trained goes on afterwards as
    if nothing had been drawn. Encoded prompts are kept for the life of the object, but not those of `live`, which
    encodes a prompt in place of the clip, as a text encoder that is being trained would now.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        *,
        width: int,
        height: int,
        steps: int = 20,
        cfg: float = 7.0,
        sampler: str = "euler",
        scheduler: str = "normal",
        negative: str = "",
        live: Callable[[str], Any] | None = None,
    ) -> None:
        """Sides are in pixels, rounded down to multiples of 8; raises InputError for settings the host lacks."""
        for name, given in (("model", model), ("clip", clip), ("vae", vae)):
            if given is None:
                raise InputError(f"the {name} input is empty, and pictures cannot be drawn without it; connect one")
        _check_numbers(width, height, steps, cfg)
        _check_known("sampler", sampler, SAMPLERS)
        _check_known("scheduler", scheduler, SCHEDULERS)
        self.model = model
        self.clip = clip
        self.vae = vae
        self.width = width
        self.height = height
        self.steps = steps
        self.cfg = float(cfg)
        self.sampler = sampler
        self.scheduler = scheduler
        self.negative = negative
        self._live = live
        self._encoded: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, str | int | float]:
        """What a picture depends on besides the model, its prompt and its seed."""
        return {
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "cfg": self.cfg,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "negative": self.negative,
        }

    def encode(self, prompts: Sequence[str]) -> None:
        """Encode prompts ahead of time: before a model that is to be trained has the memory for itself."""
        with torch.inference_mode():
            for prompt in (*prompts, self.negative):
                self._encode(prompt)

    def preview(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One RGB picture for each prompt and seed; the host's interrupt passes through.

        Raises InputError when there are not as many seeds as prompts, a seed is not one of torch's, or a picture is
        not finite.
        """
        if len(prompts) != len(seeds):
            raise InputError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one seed for each prompt")
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise InputError(f"seed is {seed}; wanted a whole number from 0 to {SEEDS - 1}")
        with torch.inference_mode(), _undisturbed(self.model):
            encoded = [self._encode(prompt) for prompt in prompts]  # all of them before the model needs the memory
            negative = self._encode(self.negative)
            return [self._draw(one, negative, seed) for one, seed in zip(encoded, seeds, strict=True)]

    def _encode(self, prompt: str) -> Any:
        if self._live is not None:
            return self._live(prompt)
        if prompt not in self._encoded:
            self._encoded[prompt] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        return self._encoded[prompt]

    def _draw(self, positive: Any, negative: Any, seed: int) -> Image.Image:
        empty = self._empty()
        noise = comfy.sample.prepare_noise(empty, seed)
        samples = comfy.sample.sample(
            self.model,
            noise,
            self.steps,
            self.cfg,
            self.sampler,
            self.scheduler,
            positive,
            negative,
            empty,
            callback=lambda *_: check_interrupt(),  # older hosts leave that to the progress bar of their own node
            disable_pbar=True,
            seed=seed,
        )
        return _picture(self.vae.decode(samples), seed)

    def _empty(self) -> Tensor:
        """An empty latent image as the host's node makes it, fitted by the host to the model's latents."""
        management = comfy.model_management
        dtype = management.intermediate_dtype() if hasattr(management, "intermediate_dtype") else torch.float32
        shape = (1, 4, self.height // LATENT_PIXELS, self.width // LATENT_PIXELS)
        empty = torch.zeros(shape, device=management.intermediate_device(), dtype=dtype)
        fit = comfy.sample.fix_empty_latent_channels
        # hosts that know models of other factors want to hear ours
        knows_factors = "downscale_ratio_spacial" in inspect.signature(fit).parameters
        return fit(self.model, empty, LATENT_PIXELS) if knows_factors else fit(self.model, empty)


@contextmanager
def _undisturbed(patcher: Any) -> Iterator[None]:
    """Leave random numbers as they were, and a model that someone was running, as training does, running.

    The host seeds torch's global generators for its noise, and ends every sampling by `cleanup` of the model.
    """
    runner = getattr(patcher.model, "current_patcher", None)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        if runner is not None:
            runner.pre_run()


def _picture(images: Tensor, seed: int) -> Image.Image:
    """The first of decoded images (..., H, W, 3) in [0, 1], to 8 bits as the host saves it: cut off, not rounded."""
    image = images.reshape(-1, *images.shape[-3:])[0].cpu()
    if not image.isfinite().all():
        raise InputError(
            f"the picture of seed {seed} is not finite: the model or its VAE overflows in half precision; start the"
            " host with --fp32-vae, or use a model or VAE that is made for half precision"
        )
    return Image.fromarray((255.0 * image.numpy()).clip(0, 255).astype(numpy.uint8)).convert("RGB")


def _check_numbers(width: int, height: int, steps: int, cfg: float) -> None:
    for name, value, least in (("width", width, SMALLEST_SIDE), ("height", height, SMALLEST_SIDE), ("steps", steps, 1)):
        if value < least:
            raise InputError(f"{name} of the pictures to draw is {value}; wanted a whole number from {least} up")
    if not math.isfinite(cfg) or cfg < 0:
        raise InputError(f"cfg of the pictures to draw is {cfg}; wanted a finite number from 0 up, 7 is usual")


def _check_known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"this host has no {name} {value!r}; known: {', '.join(known)}")
