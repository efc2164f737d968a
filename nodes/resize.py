"""The node that makes an adapter smaller."""

from __future__ import annotations

from comfy_api.latest import io

from ..trilora_core.fileformat import Adapter
from ..trilora_core.resize import resize
from .host.events import announce
from .sockets import CATEGORY, AdapterSocket

__all__ = ["ResizeTriLoRA"]


class ResizeTriLoRA(io.ComfyNode):
    """Adapter to smaller adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="ResizeTriLoRA",
            display_name="Resize TriLoRA",
            category=CATEGORY,
            description="Keeps the strongest directions of each layer, exactly: the best that any adapter of that rank "
            "can be. For smaller files, and after merges.",
            inputs=[
                AdapterSocket.Input("trilora", tooltip="From Load, Train, Merge or Extract TriLoRA."),
                io.Int.Input(
                    "rank",
                    default=8,
                    min=0,
                    max=1024,
                    tooltip="Directions of each layer that are kept, at most. 0: no limit, energy alone decides.",
                ),
                io.Float.Input(
                    "energy",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of each layer's energy to keep: below 1, each layer gets as many directions as it "
                    "needs for that, up to the rank. 0.95 keeps 95% of the sum of its squared singular values.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="trilora", tooltip="To Apply, Save or Merge TriLoRA."),
                io.String.Output(display_name="report", tooltip="Ranks, and the energy that each layer kept."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, trilora: Adapter, rank: int, energy: float) -> io.NodeOutput:
        """Cut every layer."""
        small, report = resize(trilora, rank=rank, energy=energy)
        announce(cls.hidden.unique_id, report.text())
        return io.NodeOutput(small, report.text(worst=len(report.after)))
