"""The host's VAE and text encoder as the data set sees them: pictures to latents, captions to conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...trilora_core.errors import InputError
from .models import fingerprint_modules

__all__ = ["HostEncoder", "normal"]

NOT_IN_FILES = "text_projection.weight"  # left as found in memory by the host where SD1.5's file lacks it


class HostEncoder:
    """The Encoder protocol over a host's CLIP and VAE; everything that it returns may be used in training."""

    def __init__(self, clip: Any, vae: Any) -> None:
        if clip is None or vae is None:
            missing = "clip" if clip is None else "vae"
            raise InputError(
                f"the {missing} input is empty: the checkpoint holds none; load one with the {missing} loader"
            )
        self.clip = clip
        self.vae = vae
        modules = {"clip": clip.cond_stage_model, "vae": vae.first_stage_model}
        # the text encoder stopped at another layer, or with options of the host, encodes differently
        options = f"{clip.layer_idx}"
        self.fingerprint = fingerprint_modules(
            (f"{kind}.{options}.{name}", weight)
            for kind, module in modules.items()
            for name, weight in module.named_parameters()
            if weight.ndim > 1 and not name.endswith(NOT_IN_FILES)
        )

    def pictures(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1] -> raw VAE latents (B, C, h, w), float32 on the CPU."""
        with torch.inference_mode():
            latents = self.vae.encode(images.movedim(1, -1))
        if latents.ndim != 4:
            raise InputError(
                f"this VAE makes latents of shape {tuple(latents.shape)}, not of pictures; give an image VAE"
            )
        return normal(latents).to("cpu", torch.float32)

    def captions(self, texts: Sequence[str]) -> list[object]:
        """Captions -> one entry `[tensor, options]` of the host's CONDITIONING for each."""
        return [self._caption(text) for text in texts]

    def _caption(self, text: str) -> object:
        with torch.inference_mode():
            entries = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        if len(entries) != 1:
            raise InputError(
                "this clip carries a schedule of hooks, so a caption has several meanings; give one without"
            )
        return normal(entries[0])


def normal(value: Any) -> Any:
    """A copy of a structure whose tensors are none of inference mode's, which autograd refuses."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    return type(value)(normal(item) for item in value) if type(value) in (list, tuple) else value
