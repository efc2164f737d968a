"""Put an adapter on the host's models: merged into the weights, or at run time where merging would lose it.

The host is asked which weight a layer's stem means, so whatever its own LoRA loader knows can be applied here. Weights
in full or half precision get the host's own patches. fp8 and quantised weights would round much of a small change away
(cosine 0.87), so there `runtime` adds the change to the layer's output.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.utils
import torch

from ...trilora_core.errors import InputError
from ...trilora_core.fileformat import Adapter, Layer
from ...trilora_core.keys import guess_architecture
from . import runtime, saving

__all__ = [
    "Match",
    "apply",
    "check_names",
    "coarse",
    "host_patches",
    "is_of_text",
    "matches_of_clip",
    "matches_of_model",
]

TEXT_STEMS = ("lora_te", "text_encoder")
SHOWN = 5  # names in a message

log = logging.getLogger("trilora")


@dataclass(frozen=True)
class Match:
    """One layer of the adapter and the weight that it changes.

    `where` is what the host's key maps hold: the weight's name, or (name, (dimension, start, length), …).
    """

    stem: str
    layer: Layer
    where: Any
    module: torch.nn.Module
    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight, or of its row range, with a kernel folded into the columns."""
        sizes = list(self.weight.shape)
        if not isinstance(self.where, str):
            dimension, _, length = self.where[1]
            sizes[dimension] = length
        return sizes[0], math.prod(sizes[1:])

    @property
    def hooked(self) -> bool:
        """True where the change is added to the layer's output instead of to the weight."""
        return runtime.rounds_away(self.module, self.weight) and runtime.possible(self.module, self.where)


def apply(
    adapter: Adapter, model: Any, strength: float, clip: Any | None = None, strength_clip: float = 1.0
) -> tuple[Any, Any | None]:
    """Give clones of the host's model and clip with the adapter on them; at strength 0 the very same object.

    Every layer is looked up and measured before anything is patched. Raises InputError if no layer fits, or if a
    layer's shape differs from its weight's, and for a strength that is not a finite number.
    """
    for name, value in (("strength", strength), ("strength_clip", strength_clip)):
        if not math.isfinite(value):
            raise InputError(f"{name} is {value}; wanted a finite number, such as 1.0")
    if strength == 0.0 and (clip is None or strength_clip == 0.0):
        return model, clip
    if not adapter.layers:  # every block has strength 0
        return model, clip
    unet = matches_of_model(adapter, model.model)
    text = {} if clip is None else matches_of_clip(adapter, clip.cond_stage_model)
    check_names(adapter, [*unet, *text], _kind(model.model), with_text=clip is not None)
    if unet and strength != 0.0:
        model = model.clone()
        _patch(model, unet, strength)
    if text and strength_clip != 0.0:
        clip = clip.clone()
        _patch(clip.patcher, text, strength_clip)
    return model, clip


def matches_of_model(adapter: Adapter, model: torch.nn.Module) -> dict[str, Match]:
    """The layers of a diffusion model that the adapter changes; InputError where a shape differs."""
    return _matches(adapter, model, comfy.lora.model_lora_keys_unet, _kind(model))


def matches_of_clip(adapter: Adapter, encoder: torch.nn.Module) -> dict[str, Match]:
    """The layers of the text encoders that the adapter changes; InputError where a shape differs."""
    return _matches(adapter, encoder, comfy.lora.model_lora_keys_clip, "the text encoder")


def host_patches(matches: Mapping[str, Match]) -> dict[Any, Any]:
    """The host's own adapters by weight, fresh ones each time: they keep state of the patcher that they are on."""
    return {match.where: runtime.host_adapter(*match.layer.svd) for match in matches.values()}


def coarse(matches: Mapping[str, Match]) -> int:
    """How many of the layers are fp8 or quantised, so that merging rounds a part of the change away."""
    return sum(match.hooked for match in matches.values())


# What the host calls each weight of a model, by the names of files: asked once, for it walks over every weight.
_NAMES: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
_PLACES: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, tuple[torch.nn.Module, str]]] = (
    weakref.WeakKeyDictionary()
)


def _matches(
    adapter: Adapter, root: torch.nn.Module, ask: Callable[..., dict[str, Any]], kind: str
) -> dict[str, Match]:
    names = _NAMES.get(root)
    if names is None:
        names = _NAMES[root] = ask(root, {})
    places = _PLACES.setdefault(root, {})
    found = {}
    for stem, layer in adapter.layers.items():
        if stem in names:
            where = names[stem]
            key = where if isinstance(where, str) else where[0]
            if key not in places:
                path, _, attribute = key.rpartition(".")
                places[key] = (comfy.utils.get_attr(root, path), attribute)
            module, attribute = places[key]
            found[stem] = Match(stem, layer, where, module, getattr(module, attribute))
    _check_shapes(adapter, found, kind)
    return found


def _patch(patcher: Any, matches: Mapping[str, Match], strength: float) -> None:
    hooked = {stem: match for stem, match in matches.items() if match.hooked}
    merged = {stem: match for stem, match in matches.items() if stem not in hooked}
    if merged:
        patcher.add_patches(host_patches(merged), strength)
    if hooked:
        runtime.install(patcher, [_part(match, strength) for match in hooked.values()])
        saving.prepare(patcher)
        log.info(
            "TriLoRA: %d of %d layers are fp8 or quantised: they are adapted while the model runs",
            len(hooked),
            len(matches),
        )


def _part(match: Match, strength: float) -> runtime.Part:
    u, s, vh = match.layer.svd
    name, rows = match.where, None
    if not isinstance(match.where, str):
        name, (_, start, length) = match.where
        rows = (start, length)
    return runtime.Part(name.removesuffix(".weight"), u, s * strength, vh, rows)


def is_of_text(stem: str) -> bool:
    """True for a layer of a text encoder, in any spelling that the host knows."""
    return stem.startswith(TEXT_STEMS)


def check_names(adapter: Adapter, found: list[str], kind: str, *, with_text: bool) -> None:
    """Say which layers of the adapter were not found, InputError where none was.

    `with_text`: whether layers of text encoders were looked for too.
    """
    known = set(found)
    missing = [stem for stem in adapter.layers if stem not in known]
    of_text = [stem for stem in missing if is_of_text(stem)]
    if not found:
        advice = "use the base model that the adapter was trained for"
        if of_text and not with_text and len(of_text) == len(missing):
            advice = "they belong to a text encoder: connect clip"
        raise InputError(
            f"the adapter is for {_purpose(adapter)}, but the model is {kind}: it has none of the adapter's "
            f"{len(missing)} layers ({_some(missing)}); {advice}"
        )
    if of_text and not with_text:
        log.info("TriLoRA: connect clip to use the text encoder's layers too: %s", _some(of_text))
        missing = [stem for stem in missing if not is_of_text(stem)]
    if missing:
        counts = f"{len(missing)} of {len(adapter.layers)} layers"
        log.warning("TriLoRA: %s are not in this %s and are left out: %s", counts, kind, _some(missing))


def _check_shapes(adapter: Adapter, matches: Mapping[str, Match], kind: str) -> None:
    for match in matches.values():
        change = match.layer.svd.u.shape[0], match.layer.svd.vh.shape[-1]
        if change != match.shape:
            raise InputError(
                f"layer {match.stem}: the adapter changes a weight of {_size(change)}, but in {kind} it is "
                f"{_size(match.shape)}; the adapter is for {_purpose(adapter)}: use its own base model"
            )


def _purpose(adapter: Adapter) -> str:
    """What the file says or its layers look like."""
    said = adapter.metadata.get("modelspec.architecture") or adapter.metadata.get("ss_base_model_version")
    return said or guess_architecture(adapter.layers, adapter.metadata) or "an unknown base model"


def _kind(model: torch.nn.Module) -> str:
    """The host's name of the model, such as SDXL."""
    return type(model.model_config).__name__


def _size(shape: tuple[int, int]) -> str:
    return " x ".join(str(length) for length in shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
