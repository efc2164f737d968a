"""The weights of the host's models as they would be used, patches included, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...trilora_core.config import LayerConfig
from ...trilora_core.errors import InputError
from ...trilora_core.layers import knows_text, text_kinds
from .models import base_name, detect, targets, unpatched
from .runtime import rounds_away

__all__ = ["HostWeights"]

ALL_LAYERS = LayerConfig("attention+ff+conv")
Place = tuple[Any, str, Any, tuple[int, int] | None]  # patcher, name of the weight, its module, rows


class HostWeights:
    """A model and perhaps a clip as core's `Weights`: what a sampler would use, with every merged LoRA and mix.

    Patches are computed for one layer at a time, on the device and in float32; the host's own weights stay where and as
    they are. Raises InputError for an unknown kind of model and for one that this pack adapts while it runs.
    """

    def __init__(self, model: Any, clip: Any = None) -> None:
        self.architecture = detect(model.model).name
        self.name = base_name(model)
        self._places = _denoiser_places(model) | (_text_places(clip, self.architecture) if clip is not None else {})
        self.shapes: Mapping[str, tuple[int, ...]] = {stem: _shape(place) for stem, place in self._places.items()}

    def read(self, stem: str) -> Tensor:
        """The patched weight of one layer; in its own dtype where nothing is patched onto it."""
        patcher, key, module, rows = self._places[stem]
        kept = unpatched(patcher, key)
        weight = module.weight if kept is None else kept
        if rounds_away(module, weight):
            raise InputError(
                f"{stem} of {self.name} is stored in fp8 or quantised, whose rounding is larger than what fine-tuning"
                " changes; load the model in fp16, bf16 or fp32"
            )
        if patches := patcher.patches.get(key):
            device = comfy.model_management.get_torch_device()
            weight = comfy.lora.calculate_weight(patches, weight.to(device, torch.float32, copy=True), key)
        plain = weight.detach()
        return plain if rows is None else plain[rows[0] : rows[1]]


def _shape(place: Place) -> tuple[int, ...]:
    _, _, module, rows = place
    first, *rest = module.weight.shape
    return (first if rows is None else rows[1] - rows[0], *rest)


def _denoiser_places(model: Any) -> dict[str, Place]:
    names = {id(module): name for name, module in model.model.named_modules()}
    return {
        stem: (model, f"{names[id(target.module)]}.weight", target.module, target.rows)
        for stem, target in targets(model, ALL_LAYERS).items()
    }


def _text_places(clip: Any, architecture: str) -> dict[str, Place]:
    """Layers of CLIP under the names that files give them; InputError for other text encoders: they have none there."""
    if not knows_text(architecture):
        raise InputError(
            f"clips are connected, but text encoders of this kind of model ({architecture}) cannot be compared, only"
            " those of SD 1.5 and SDXL; disconnect both clips"
        )
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    keys = {stem: names[stem] for stem in text_kinds(names, architecture)}
    modules = {
        stem: comfy.utils.get_attr(clip.cond_stage_model, key.removesuffix(".weight")) for stem, key in keys.items()
    }
    return {stem: (clip.patcher, key, modules[stem], None) for stem, key in keys.items()}
