"""The host's VAE and text encoder as the data set sees them: pictures to latents, captions to conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...trilora_core.data.framing import Frame
from ...trilora_core.errors import InputError
from .models import fingerprint_modules, patches, unpatched_weights

__all__ = ["HostEncoder", "normal"]

NO_HOOKS = "this clip carries hooks, with which a caption may have several meanings; give one without"
NOT_IN_FILES = "text_projection.weight"  # left as found in memory by the host where SD1.5's file lacks it


class HostEncoder:
    """The Encoder protocol over a host's CLIP and VAE; everything that it returns may be used in training."""

    def __init__(self, clip: Any, vae: Any) -> None:
        if vae is not None and getattr(vae, "first_stage_model", None) is None:
            vae = None  # what newer hosts make of a checkpoint without one
        if clip is None or vae is None:
            missing = "clip" if clip is None else "vae"
            raise InputError(
                f"the {missing} input is empty: the checkpoint holds none; load one with the {missing} loader"
            )
        self.clip = clip
        self.vae = vae
        if clip.patcher.forced_hooks is not None:
            raise InputError(NO_HOOKS)
        # NaN of an fp16 VAE may not be answered from the cache in fp32
        self.picture_fingerprint = _fingerprint(f"vae {vae.vae_dtype}", vae.patcher)
        # the text encoder stopped at another layer, or with options of the host, encodes differently
        told = f"clip {clip.layer_idx} {sorted(clip.tokenizer_options.items())}"
        self.caption_fingerprint = _fingerprint(told, clip.patcher)
        self.fingerprint = f"{self.picture_fingerprint} {self.caption_fingerprint}"
        self.encoded = 0  # pictures and captions so far

    def pictures(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1] -> raw VAE latents (B, C, h, w), float32 on the CPU."""
        with torch.inference_mode():
            latents = self.vae.encode(images.movedim(1, -1))
        if latents.ndim != 4:
            raise InputError(
                f"this VAE makes latents of shape {tuple(latents.shape)}, not of pictures; give an image VAE"
            )
        if not bool(torch.isfinite(latents).all()):
            raise InputError(
                "this VAE makes latents that are not finite: it overflows in half precision; start the host with "
                "--fp32-vae, or use a VAE that is made for half precision"
            )
        self.encoded += len(latents)
        return normal(latents).to("cpu", torch.float32)

    def captions(self, texts: Sequence[str], *, weights: bool = False) -> list[Any]:
        """Captions -> one entry `[tensor, options]` of the host's CONDITIONING for each."""
        return [self._caption(text, weights) for text in texts]

    def placed(self, cond: Any, frame: Frame) -> Any:
        """Tell models that are conditioned on it (SDXL) how large the picture was and what was cut off."""
        tensor, options = cond
        (width, height), (left, top), (wide, high) = frame.original, frame.corner, frame.size
        place = {"width": width, "height": height, "crop_w": left, "crop_h": top}
        return [tensor, {**options, **place, "target_width": wide, "target_height": high}]

    def _caption(self, text: str, weights: bool) -> object:
        with torch.inference_mode():
            tokens = self.clip.tokenize(text, disable_weights=not weights)
            entries = self.clip.encode_from_tokens_scheduled(tokens)
        if len(entries) != 1:
            raise InputError(NO_HOOKS)
        self.encoded += 1
        return normal(entries[0])


def _fingerprint(kind: str, patcher: Any) -> str:
    weights = (
        (f"{kind}.{name}.{weight.dtype}", weight)
        for name, weight in unpatched_weights(patcher)
        if weight.ndim > 1 and not name.endswith(NOT_IN_FILES)
    )
    return fingerprint_modules([*weights, *patches(patcher)])


def normal(value: Any) -> Any:
    """A copy of a structure whose tensors are none of inference mode's, which autograd refuses."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    return type(value)(normal(item) for item in value) if type(value) in (list, tuple) else value
