"""The text encoders of a diffusers pipeline: captions to conditioning, and the protocol that lets a run train them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backend_diffusers_apply import architecture_of, text_encoders, text_modules
from .branch import Target
from .config import LayerConfig
from .layers import DEFAULT, choose_text, text_kinds

__all__ = ["Conditioning", "DiffusersTextEncoder", "encode_caption", "find_overlong"]

_BLOCK = "CLIPEncoderLayer"

Conditioning = dict[str, Any]
"""One caption as the U-Net reads it: "tokens" (T, D) and, for SDXL, the vector "pooled" (P,) and "place", the original
height and width, the top and left of the crop, the height and width that are seen, in pixels."""


def encode_caption(pipe: Any, text: str) -> tuple[Tensor, Tensor | None]:
    """Tokens (T, D) and, for SDXL, the pooled caption (P,), exactly as the pipeline encodes them when it draws."""
    encoded = pipe.encode_prompt(
        prompt=text,
        device=pipe.text_encoder.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    return encoded[0][0], encoded[2][0] if len(encoded) > 2 else None


def find_overlong(pipe: Any, texts: Iterable[str]) -> tuple[set[str], int]:
    """Those of the captions whose end is not read, because they are longer than the most tokens; and that number."""
    tokenizer = pipe.tokenizer  # SDXL's second one cuts words alike, and at the same length
    most = tokenizer.model_max_length
    ids = {text: tokenizer(text, verbose=False).input_ids for text in dict.fromkeys(texts)}
    return {text for text, found in ids.items() if len(found) > most}, most - len(tokenizer("").input_ids)


class DiffusersTextEncoder:
    """The frozen text encoders of a pipeline as the loop sees them. Creating one freezes their parameters."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        architecture = architecture_of(pipe)
        self._encoders = text_encoders(pipe)
        self.compute_dtype: torch.dtype = pipe.text_encoder.dtype
        self._modules = text_modules(pipe)
        # SDXL reads the last layer but one of both, and of the second encoder the pooled caption behind its last one
        used = {"lora_te1": len(list(_layers(pipe.text_encoder))) - 1} if architecture == "sdxl" else {}
        self._kinds = text_kinds(self._modules, architecture, used)
        for encoder in self._encoders.values():
            encoder.requires_grad_(False).eval()

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        """The chosen layers by canonical file stem; InputError when none is left."""
        return {stem: Target(self._modules[stem]) for stem in choose_text(self._kinds, layers)}

    def blocks(self) -> list[nn.Module]:
        """The layers of the encoders: what gradient checkpointing recomputes, one at a time."""
        return [layer for encoder in self._encoders.values() for layer in _layers(encoder)]

    def encode(self, texts: Sequence[str], cond: Sequence[Conditioning]) -> list[Conditioning]:
        """The conditioning of each caption as the encoders are now, on their device, gradients included.

        Captions go through one by one, equal ones once: the sums of a larger matrix product may be made in another
        order, and a batch is to see the very bits that the captions have when they are encoded beforehand.
        """
        found = {text: encode_caption(self._pipe, text) for text in dict.fromkeys(texts)}
        return [
            {**entry, "tokens": found[text][0], "pooled": found[text][1]}
            for text, entry in zip(texts, cond, strict=True)
        ]


def _layers(encoder: Any) -> Iterator[nn.Module]:
    return (module for module in encoder.modules() if type(module).__name__ == _BLOCK)
