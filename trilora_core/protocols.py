"""The contract between the training loop and a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .branch import Target
from .config import LayerConfig
from .layers import DEFAULT

__all__ = ["Denoiser", "Previewer", "TextEncoder"]


@runtime_checkable
class Denoiser(Protocol):
    """A frozen model as the loop sees it."""

    architecture: str  # "sd15", "sdxl", "sd3", "flux" or "toy"
    base_name: str
    base_fingerprint: str
    prediction_type: str  # "epsilon", "v", "v_prediction" (the same, in diffusers) or "flow"
    in_place_safe: bool  # False: blocks overwrite what they were given, and checkpointing must copy it

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the model's own arithmetic when nothing is autocast."""
        ...

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        """The chosen layers by canonical file stem; InputError when none is left."""
        ...

    def blocks(self) -> list[nn.Module]:
        """The modules that gradient checkpointing recomputes one by one."""
        ...

    def times(self, u: Tensor) -> Tensor:
        """Draws u in [0, 1], (B,) -> the model's own times or sigmas, (B,); u = 1 is the most noise."""
        ...

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio (signal / noise)² at the model's times, (B,) -> (B,); 0 at pure noise."""
        ...

    def raw(self, latents: Tensor) -> Tensor:
        """Latents as the model computes with them, (B, C, h, w) -> as the VAE gives them and `predict` takes them."""
        ...

    def predict(self, latents: Tensor, noise: Tensor, times: Tensor, cond: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """One forward at the given times: (prediction, regression target), each (B, C, h, w)."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """The frozen text encoders of a model, for runs that train them along with the denoiser."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of their own arithmetic when nothing is autocast."""
        ...

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        """The chosen layers by canonical file stem (keys.is_text); InputError when none is left."""
        ...

    def blocks(self) -> list[nn.Module]:
        """The modules that gradient checkpointing recomputes one by one."""
        ...

    def encode(self, texts: Sequence[str], cond: Sequence[Any]) -> list[Any]:
        """The conditioning of each caption as the encoders are now, gradients included.

        `cond` is what was encoded of the same captions beforehand: whatever it holds besides the text, such as sizes
        and crops, is taken over from it.
        """
        ...


@runtime_checkable
class Previewer(Protocol):
    """Draws with the adapter as it is now."""

    def preview(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """One Pillow picture for each prompt and seed."""
        ...
