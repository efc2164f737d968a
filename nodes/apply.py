"""The node that puts an adapter on a model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.fileformat import Adapter
from .host.patching import apply
from .sockets import CATEGORY, AdapterSocket

__all__ = ["ApplyTriLoRA"]


class ApplyTriLoRA(io.ComfyNode):
    """Model and adapter to adapted model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="ApplyTriLoRA",
            display_name="Apply TriLoRA (strength)",
            category=CATEGORY,
            description="Puts an adapter on a model, and on its text encoder if clip is connected. Several may follow "
            "each other. The model itself is never changed.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the adapter was trained for."),
                AdapterSocket.Input("trilora", tooltip="From Load, Train or Merge TriLoRA."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="How much of the change is added to the model: 1 as trained, 0 none (the model passes "
                    "untouched), above 1 more, below 0 the opposite.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only for adapters that change the text encoder too; others pass it on.",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    optional=True,
                    tooltip="As strength, for the text encoder. Without clip it does nothing.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the adapter on it."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the adapter on it, if one was connected."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, trilora: Adapter, strength: float, clip: Any = None, strength_clip: float = 1.0
    ) -> io.NodeOutput:
        """Patch clones."""
        return io.NodeOutput(*apply(trilora, model, strength, clip, strength_clip))
