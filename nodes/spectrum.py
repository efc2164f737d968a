"""The node that shows what an adapter is made of."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trilora_core.anatomy import anatomy, describe, overlap_lines
from ..trilora_core.data.pictures import to_tensor
from ..trilora_core.fileformat import Adapter
from ..trilora_core.metadata import adapter_names
from ..trilora_core.plots_spectrum import draw_adapters
from .host.events import announce
from .sockets import CATEGORY, AdapterSocket

__all__ = ["TriLoRASpectrum"]


class TriLoRASpectrum(io.ComfyNode):
    """Adapters to a picture and a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        more = "Another adapter to compare with the first: maps side by side, and how far they overlap."
        return io.Schema(
            node_id="TriLoRASpectrum",
            display_name="TriLoRA Spectrum",
            category=CATEGORY,
            description="Draws what an adapter is made of: the singular values of every layer, how many of them hold "
            "its energy, and in which blocks of the model it acts. Several adapters are compared.",
            inputs=[
                AdapterSocket.Input("trilora", tooltip="From Load, Train, Merge, Extract or Resize TriLoRA."),
                AdapterSocket.Input("trilora_b", optional=True, tooltip=more),
                AdapterSocket.Input("trilora_c", optional=True, tooltip=more),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture."),
                io.String.Output(display_name="report", tooltip="The same in words and numbers."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, trilora: Adapter, trilora_b: Adapter | None = None, trilora_c: Adapter | None = None
    ) -> io.NodeOutput:
        """Measure and draw."""
        adapters = [adapter for adapter in (trilora, trilora_b, trilora_c) if adapter is not None]
        names = adapter_names(adapters)
        found = [describe(anatomy(adapter, name)) for adapter, name in zip(adapters, names, strict=True)]
        text = "\n".join([*found, *overlap_lines(adapters, names)])
        image = to_tensor(draw_adapters(adapters, names).picture()).movedim(0, -1)[None]
        announce(cls.hidden.unique_id, text)
        shown = ui.PreviewImage(image).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(image, text, ui=shown)
