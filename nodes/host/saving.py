"""Merge what is applied at run time when the host saves a model: a checkpoint holds weights, not hooks.

The host asks the patcher for the weights to save (from 0.14 on) or loads it with force_patch_weights (before).
"""

from __future__ import annotations

import uuid
import weakref
from functools import partial
from typing import Any

import comfy.model_management
from comfy.patcher_extension import CallbacksMP

from .runtime import Hooks, Part, host_adapter

__all__ = ["prepare"]

NAME = "trilora_saving"
QUESTIONS = ("state_dict_for_saving", "model_state_dict_for_saving")  # a host has none, the first or both


def prepare(patcher: Any) -> None:
    """Let this patcher and its clones be saved with their run-time changes merged, rounded as the weights are."""
    for call in (CallbacksMP.ON_CLONE, CallbacksMP.ON_LOAD):
        patcher.remove_callbacks_with_key(call, NAME)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, NAME, _answer)
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, NAME, _merge_when_forced)
    _answer(None, patcher)


def _answer(_original: Any, patcher: Any) -> None:
    for question in QUESTIONS:
        if hasattr(type(patcher), question):
            setattr(patcher, question, partial(_merged_answer, weakref.ref(patcher), question))


def _merged_answer(patcher: weakref.ref[Any], question: str, *args: Any, **kwargs: Any) -> Any:
    merged = _merged(patcher())
    comfy.model_management.load_models_gpu([merged])
    return getattr(merged, question)(*args, **kwargs)


def _merged(patcher: Any) -> Any:
    """A clone whose hooks have become patches of the host."""
    clone = patcher.clone()
    for name, injections in list(clone.injections.items()):
        for hooks in injections:
            if isinstance(hooks, Hooks):
                clone.remove_injections(name)
                clone.add_patches({_weight(part): host_adapter(part.up, part.gain, part.down) for part in hooks.parts})
    for question in QUESTIONS:
        vars(clone).pop(question, None)  # its class answers
    return clone


def _weight(part: Part) -> Any:
    key = part.path + ".weight"
    return key if part.rows is None else (key, (0, *part.rows))


def _merge_when_forced(patcher: Any, _device: Any, _low_vram: Any, force_patch_weights: bool, _full: Any) -> None:
    if not force_patch_weights:
        return
    kept, merged = patcher.patches, _merged(patcher).patches
    added = {key: entries[len(kept.get(key, [])) :] for key, entries in merged.items()}
    patcher.patches = {key: entries for key, entries in added.items() if entries}
    try:
        for key in patcher.patches:
            patcher.patch_weight_to_device(key)
    finally:
        patcher.patches = kept
    patcher.model.current_weight_patches_uuid = uuid.uuid4()  # the next load takes them out again
