"""The node that makes one adapter of two."""

from __future__ import annotations

from comfy_api.latest import io

from ..trilora_core.fileformat import Adapter
from ..trilora_core.merge import METHODS, merge
from .host.events import announce
from .sockets import CATEGORY, AdapterSocket

__all__ = ["MergeTriLoRA"]


class MergeTriLoRA(io.ComfyNode):
    """Two adapters to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="MergeTriLoRA",
            display_name="Merge TriLoRA",
            category=CATEGORY,
            description="Makes one adapter of two for the same base model. They may differ in rank and layers.",
            inputs=[
                AdapterSocket.Input("trilora_a", tooltip="The first adapter."),
                AdapterSocket.Input("trilora_b", tooltip="The second adapter, for the same base model."),
                _weight("weight_a", "first"),
                _weight("weight_b", "second"),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="sum",
                    tooltip="sum: the exact weighted sum of both changes, as if both were applied one after the other.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rank of the result. 0 keeps all of both. Smaller makes a smaller file that keeps the "
                    "strongest directions.",
                ),
            ],
            outputs=[AdapterSocket.Output(display_name="trilora", tooltip="To Apply or Save TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, trilora_a: Adapter, trilora_b: Adapter, weight_a: float, weight_b: float, method: str, rank: int
    ) -> io.NodeOutput:
        """Merge, and say how much of the change a smaller rank kept."""
        merged, report = merge([trilora_a, trilora_b], [weight_a, weight_b], method=method, rank=rank)
        announce(cls.hidden.unique_id, f"{report.shared} shared layers, {report.kept_energy:.1%} of the energy kept")
        return io.NodeOutput(merged)


def _weight(name: str, which: str) -> io.Float.Input:
    tooltip = f"Share of the {which} adapter: 1 as it is, 0 leaves it out, below 0 takes it away."
    return io.Float.Input(name, default=1.0, min=-20.0, max=20.0, step=0.05, tooltip=tooltip)
