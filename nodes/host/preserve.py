"""What a host's model is to keep while it is trained: captions of it, and what the model makes of them."""

from __future__ import annotations

from typing import Any

from ...trilora_core.config import TrainConfig
from ...trilora_core.data import Dataset
from ...trilora_core.errors import InputError
from ...trilora_core.preserve import LEVELS, Captions, Kept, encode_prior, keep
from .denoiser import HostDenoiser
from .encode import HostEncoder
from .events import reporter

__all__ = ["asked", "prior_captions"]


def prior_captions(data: Dataset, config: TrainConfig, clip: Any, vae: Any) -> Captions | None:
    """The captions of what is to stay, encoded; None if the base is not to be preserved."""
    if config.preserve.base == "off":
        return None
    if clip is None or vae is None:
        raise InputError(
            "preserve_base is on, but this data set has no clip and vae to encode prompts with; take TriLoRA Dataset"
            " (folder) or (images), or set preserve_base of TriLoRA Optimizer Options to off"
        )
    return encode_prior(config.preserve.prompts, HostEncoder(clip, vae), data.store)


def asked(denoiser: HostDenoiser, captions: Captions, data: Dataset, config: TrainConfig, node_id: str | None) -> Kept:
    """What the model predicts besides, before anything is attached to it; raises the host's interrupt."""
    return keep(
        denoiser,
        captions,
        data,
        LEVELS[config.preserve.base],
        denoiser.device,
        precision=config.precision,
        progress=reporter(node_id, "asking the model what it is to keep:"),
    )
