"""The node for the choice of the layers that training adapts."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..trilora_core.config import LAYERS, LayerConfig, TrainConfig
from .sockets import CATEGORY, OptionsSocket

__all__ = ["TriLoRALayerOptions"]

PATTERN_TIP = (
    "One pattern per line over the names that layers have in the file, such as *attn2* or *up_blocks_1_*: * stands for "
    "any text, ? for one character, [12] for one of several. "
)


class TriLoRALayerOptions(io.ComfyNode):
    """Which layers training adapts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRALayerOptions",
            display_name="TriLoRA Layer Options",
            category=CATEGORY,
            description="Which layers of the model Train TriLoRA adapts.",
            inputs=_inputs(),
            outputs=[OptionsSocket.Output(display_name="options", tooltip="To Train TriLoRA.")],
        )

    @classmethod
    def execute(
        cls, which: str, include: str, exclude: str, rank_dropout: float, options: TrainConfig | None = None
    ) -> io.NodeOutput:
        """Set this node's fields; the others stay as `options` had them."""
        base = options or TrainConfig()
        chosen = LayerConfig(which, _patterns(include), _patterns(exclude))
        return io.NodeOutput(replace(base, adapter=replace(base.adapter, layers=chosen, rank_dropout=rank_dropout)))


def _patterns(text: str) -> tuple[str, ...]:
    """The lines that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "which",
            options=list(LAYERS),
            default="attention",
            tooltip="attention: what most adapters change. self-attention: without the layers that read the caption; "
            "in SD3 and Flux, whose attention reads picture and caption at once, the same as attention. attention+ff: "
            "feed-forward layers too, in SD 1.5 and SDXL what kohya's LoRA changes; a larger file, more memory. "
            "attention+ff+conv: convolutions too, which SD3 and Flux do not have.",
        ),
        io.String.Input(
            "include",
            default="",
            multiline=True,
            tooltip=f"{PATTERN_TIP}Only layers that match one of them are adapted. Empty: all of the choice above.",
        ),
        io.String.Input(
            "exclude",
            default="",
            multiline=True,
            tooltip=f"{PATTERN_TIP}Layers that match one of them are left as they are.",
        ),
        io.Float.Input(
            "rank_dropout",
            default=0.0,
            min=0.0,
            max=0.9,
            step=0.05,
            tooltip="Share of the rank's directions that each step leaves out, drawn anew, so that none of them is "
            "needed alone. 0.1 to 0.3 when a few pictures are learnt by heart. 0: off.",
        ),
        OptionsSocket.Input(
            "options",
            optional=True,
            tooltip="Options of another node: this one sets its own fields and keeps the rest.",
        ),
    ]
