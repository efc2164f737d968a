"""The host's CLIP as the training loop sees it: captions to conditioning as its nodes encode them, with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor, nn

from ...trilora_core.branch import Target
from ...trilora_core.config import LayerConfig, TrainConfig
from ...trilora_core.data import Dataset
from ...trilora_core.errors import InputError
from ...trilora_core.keys import canonical_stem, is_text
from ...trilora_core.layers import DEFAULT, choose_text, text_kinds
from ...trilora_core.recompute import checkpointed
from .models import detect, unpatched
from .training import trainable_patcher

__all__ = ["HostTextEncoder", "text_encoder_to_train"]

# The host's encoders of each architecture, and how their layers begin in files.
ENCODERS = {"sd15": {"clip_l": "lora_te"}, "sdxl": {"clip_l": "lora_te1", "clip_g": "lora_te2"}}
POOLED = ("clip_g",)  # whose pooled caption conditions the model too, so that all of its layers count
MARKS_OF_WEIGHTS = frozenset("()\\")  # a caption without them reads alike with and without weights


class HostTextEncoder:
    """The TextEncoder protocol over a host's clip; use it inside `training(patcher, text.patcher)`, which loads it.

    Conditioning is one entry `[tensor, options]` of the host's CONDITIONING for each caption, left on the device that
    encoded it. Clip skip, long captions and, with `weights`, (word:1.2) are as the host's nodes have them.
    """

    def __init__(self, clip: Any, architecture: str, *, weights: bool = False) -> None:
        """Raises InputError for text encoders that cannot be trained, and for those of another architecture."""
        text_kinds((), architecture)
        self.clip = clip
        self.patcher = trainable_patcher(clip.patcher)
        self.model = self.patcher.model
        self.architecture = architecture
        self.weights = weights
        found = [name for name, module in self.model.named_children() if isinstance(module, SDClipModel)]
        if set(found) != set(ENCODERS[architecture]):
            raise InputError(
                f"text_encoder_rate is set, but the clip of the data set is a {type(self.model).__name__} of"
                f" {', '.join(found) or 'no CLIP'}, while a model of this kind ({architecture}) reads"
                f" {', '.join(ENCODERS[architecture])}; make the data set with the clip that belongs to the model"
            )

    @property
    def compute_dtype(self) -> torch.dtype:
        """float32: the host's text encoders compute in it whatever their weights are."""
        return torch.float32

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        """The chosen layers by canonical stem, in the order of the encoders' modules; InputError when none is left."""
        paths = self._paths()
        kinds = text_kinds(paths, self.architecture, self._used())
        return {
            stem: Target(self.model.get_submodule(paths[stem]), None, unpatched(self.patcher, f"{paths[stem]}.weight"))
            for stem in choose_text(kinds, layers)
        }

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes one by one; none where `encode` has to do so anyway."""
        return [] if self._converts() else self._halves()

    def encode(self, texts: Sequence[str], cond: Sequence[Any]) -> list[Any]:
        """The conditioning of each caption as the encoders are now, sizes and crops as in `cond`; equal ones once."""
        found = {text: self._encoded(text, self.weights) for text in dict.fromkeys(texts)}
        return [
            [found[text][0], {**entry[1], "pooled_output": found[text][1]}]
            for text, entry in zip(texts, cond, strict=True)
        ]

    def prompt(self, text: str) -> list[Any]:
        """The CONDITIONING of a prompt as the encoders are now, with weights, as the host's node encodes it."""
        tokens, pooled = self._encoded(text, weights=True)
        return [[tokens, {"pooled_output": pooled}]]

    def _encoded(self, text: str, weights: bool) -> tuple[Tensor, Tensor]:
        """Tokens (1, 77 · n, width) and pooled (1, width), on the encoders' device."""
        tokens = self.clip.tokenize(text, disable_weights=not weights)
        self._set_options()
        halves = self._halves() if self._converts() else []
        with _results_stay(self.patcher.load_device), checkpointed(halves, in_place_safe=True):
            found: tuple[Tensor, Tensor] = self.model.encode_token_weights(tokens)[:2]
        return found

    def _set_options(self) -> None:
        """Say which hidden state is wanted and where to compute, as the host does before each caption."""
        self.model.reset_clip_options()
        if self.clip.layer_idx is not None:
            self.model.set_clip_options({"layer": self.clip.layer_idx})
        self.model.set_clip_options({"execution_device": self.patcher.load_device})

    def _paths(self) -> dict[str, str]:
        """Module paths by canonical stem, as the host's own LoRA loader knows them."""
        known = {
            weight: stem
            for stem, weight in comfy.lora.model_lora_keys_clip(self.model, {}).items()
            if is_text(stem) and canonical_stem(stem, self.architecture) == stem
        }
        paths = (path for path, _ in self.model.named_modules())
        return {known[f"{path}.weight"]: path for path in paths if f"{path}.weight" in known}

    def _used(self) -> dict[str, int]:
        """How many of its first layers reach the conditioning, of each encoder that gives an earlier hidden state."""
        self._set_options()
        used = {}
        for name, prefix in ENCODERS[self.architecture].items():
            encoder = getattr(self.model, name)
            if encoder.layer == "hidden" and name not in POOLED:
                used[prefix] = encoder.layer_idx % encoder.num_layers + 1
        return used

    def _halves(self) -> list[nn.Module]:
        """Attention and feed-forward half of each layer; a layer as a whole changes its input in place, they do not."""
        encoders = (getattr(self.model, name) for name in ENCODERS[self.architecture])
        layers = (layer for encoder in encoders for layer in encoder.transformer.text_model.encoder.layers)
        return [half for layer in layers for half in (layer.self_attn, layer.mlp)]

    def _converts(self) -> bool:
        """True for weights that are not in float32: converted for each caption, autograd would keep all the copies."""
        return any(weight.dtype != torch.float32 for half in self._halves() for weight in half.parameters())


def text_encoder_to_train(
    patcher: Any, data: Dataset, prior: Dataset | None, config: TrainConfig, clip: Any
) -> HostTextEncoder | None:
    """The data set's clip, to be trained along on the model of `patcher`; None if the options do not want it.

    Raises InputError where it cannot be.
    """
    if not config.optimizer.text_encoder_rate:
        return None
    if clip is None:
        raise InputError(
            "text_encoder_rate is set, but this data set has no clip to train; take TriLoRA Dataset (folder) or"
            " (images), or set text_encoder_rate of TriLoRA Optimizer Options to 0"
        )
    weights = data.config.captions.weights
    if prior is not None and prior.config.captions.weights != weights:
        unclear = next((text for text in prior.texts.values() if MARKS_OF_WEIGHTS & set(text)), None)
        if unclear is not None:
            raise InputError(
                f"caption_weights is {'on' if weights else 'off'} for the data set, but not for the prior pictures,"
                f" whose caption {unclear!r} depends on it; to train the text encoder, set it alike for both"
            )
    return HostTextEncoder(clip, detect(patcher.model).name, weights=weights)


@contextmanager
def _results_stay(device: torch.device) -> Iterator[None]:
    """Have the host leave encoded captions on the device, where it would move them to the computer's memory.

    There and back again would have every step wait for the device.
    """
    management = comfy.model_management
    before = management.intermediate_device
    management.intermediate_device = lambda: device
    try:
        yield
    finally:
        management.intermediate_device = before
