"""An adapter as the host's hooks: its strength follows the sampling, on the conditionings that carry it.

Hooks come without a model. Each asks the model that it is registered on for its layers, when the sampler or the text
encoder registers it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.hooks

from ...trilora_core.fileformat import Adapter
from ...trilora_core.schedule import Band, Keyframe
from ...trilora_core.shaping import band
from .patching import check_names, coarse, host_patches, is_of_text, matches_of_clip, matches_of_model

__all__ = ["hook_group", "keyframes_of"]

log = logging.getLogger("trilora")


def hook_group(adapter: Adapter, bands: Sequence[Band], strength: float, clip_share: float) -> comfy.hooks.HookGroup:
    """One hook of the host for each band; their sum is the adapter. `strength` and the keyframes multiply.

    In the text encoder everything counts `clip_share` times.
    """
    group = comfy.hooks.HookGroup()
    for part in bands:
        hook = comfy.hooks.WeightHook(strength_model=strength, strength_clip=strength * clip_share)
        hook.weights, hook.weights_clip, hook.need_weight_init = {}, {}, False
        hook.custom_should_register = _Registration(band(adapter, part.first, part.last), tell=part is bands[0])
        hook.hook_keyframe = _host_keyframes(part.keyframes)
        group.add(hook)
    return group


def keyframes_of(group: comfy.hooks.HookKeyframeGroup) -> tuple[Keyframe, ...]:
    """The host's keyframes as ours; one of strength 1 where there are none."""
    found = tuple(Keyframe(f.start_percent, float(f.strength), f.guarantee_steps) for f in group.keyframes)
    return found or (Keyframe(0.0, 1.0),)


def _host_keyframes(frames: Sequence[Keyframe]) -> comfy.hooks.HookKeyframeGroup:
    group = comfy.hooks.HookKeyframeGroup()
    for frame in frames:
        group.add(comfy.hooks.HookKeyframe(frame.strength, frame.start, frame.guarantee))
    return group


class _Registration:
    """Called by the host when a hook is to be registered on a model: fills in the hook's patches for that model.

    `tell`: say what does not fit; of the hooks of one adapter the first says it for all.
    """

    def __init__(self, adapter: Adapter, *, tell: bool) -> None:
        self._adapter, self._tell = adapter, tell

    def __call__(self, hook: Any, patcher: Any, options: Any, target: dict[str, Any], registered: Any) -> bool:
        of_clip = target.get("target") == comfy.hooks.EnumWeightTarget.Clip
        part = {stem: layer for stem, layer in self._adapter.layers.items() if is_of_text(stem) == of_clip}
        adapter = Adapter(part, self._adapter.metadata)
        matches = (matches_of_clip if of_clip else matches_of_model)(adapter, patcher.model)
        if part and self._tell:
            kind = "this text encoder" if of_clip else type(patcher.model.model_config).__name__
            check_names(adapter, list(matches), kind, with_text=True)
            if coarse(matches):
                log.warning(
                    "TriLoRA: %d layers are fp8 or quantised; a hook merges into their coarse numbers and loses a part "
                    "of the change, Apply TriLoRA does not",
                    coarse(matches),
                )
        patches = host_patches(matches)
        if of_clip:
            hook.weights_clip = patches
        else:
            hook.weights = patches
        return True
