"""Whether a model is the one that an adapter was trained on."""

from __future__ import annotations

from typing import Any

from ...trilora_core.errors import InputError
from ...trilora_core.fileformat import Adapter
from . import models

__all__ = ["other_base"]


def other_base(adapter: Adapter, patcher: Any) -> str:
    """Name both models where the adapter tells of another one than this, "" where it is the same or nothing is told.

    Equal weights are the same model, whatever its file is called. A file of the same name counts as the same too: a
    number format that rounds it otherwise gives other weights.
    """
    trained_on, name = (adapter.metadata.get(f"trilora.base_{what}", "") for what in ("fingerprint", "name"))
    if not trained_on:
        return ""
    try:
        known, title = models.base_name(patcher), models.detect(patcher.model).title
        same = trained_on == models.bare_fingerprint(patcher)
        same = same or (bool(patcher.patches) and trained_on == models.fingerprint(patcher))
        content = adapter.metadata.get("trilora.base_content")
        same = same or (content is not None and content == models.bare_content(patcher))
    except InputError:  # an inpainting model, for example: its layers fit, but it was not trained on
        known, title, same = "", type(patcher.model.model_config).__name__, False
    if same or (name == known and known != title):
        return ""
    if name == known:
        return f"the adapter was trained on another {title} model than this one: it may look different here"
    if not known:
        return f"the adapter was trained on {_quoted(name)}, not on this {title}: it may look different here"
    return f"the adapter was trained on {_quoted(name)}, this model is {_quoted(known)}: it may look different here"


def _quoted(name: str) -> str:
    return f'"{name}"' if name else "a model that it does not name"
