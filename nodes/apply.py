"""The node that puts an adapter on a model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.block_text import PRESETS
from ..trilora_core.card import adapter_card
from ..trilora_core.fileformat import Adapter
from ..trilora_core.shaping import Shape, shape
from .host.base import other_base
from .host.events import announce
from .host.patching import apply
from .shared_inputs import strength_of
from .sockets import CARD, CATEGORY, AdapterSocket

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
                strength_of(
                    "strength",
                    "How much of the change is added to the model: 1 as trained, 0 none (the model passes "
                    "untouched), above 1 more, below 0 the opposite.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only for adapters that change the text encoder too; others pass it on.",
                ),
                strength_of(
                    "strength_clip", "As strength, for the text encoder. Without clip it does nothing.", optional=True
                ),
                *shape_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the adapter on it."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the adapter on it, if one was connected."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        trilora: Adapter,
        strength: float,
        clip: Any = None,
        strength_clip: float = 1.0,
        keep_rank: int = 0,
        keep_energy: float = 1.0,
        tone: float = 1.0,
        normalize: bool = False,
        block_preset: str = "ALL",
        blocks: str = "",
    ) -> io.NodeOutput:
        """Patch clones with the shaped adapter, and say what was applied."""
        shaped = shape(trilora, Shape(keep_rank, keep_energy, tone, normalize, block_preset, blocks))
        patched = apply(shaped, model, strength, clip, strength_clip)
        problem = other_base(trilora, model)
        text = f"{len(shaped.layers)} layers at {strength:g}"
        announce(cls.hidden.unique_id, text, [problem] if problem else [])
        card = {**adapter_card(trilora), "problem": problem}
        return io.NodeOutput(*patched, ui={"text": (text,), CARD: (card,)})


def shape_inputs() -> list[io.Input]:
    """The widgets that shape the adapter, all of them off."""
    return [
        io.Int.Input(
            "keep_rank",
            default=0,
            min=0,
            max=1024,
            optional=True,
            tooltip="Keep only this many of the strongest directions in each layer; 0 keeps all. A creative knob: cut "
            "or bent spectra were measured to be no better than a lower strength.",
        ),
        io.Float.Input(
            "keep_energy",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Keep in each layer as many of the strongest directions as hold this share of the energy (the sum "
            "of the squared singular values); 1 keeps all. Lower it to drop what is faint.",
        ),
        io.Float.Input(
            "tone",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            optional=True,
            tooltip="Power on the singular values; the largest one of each layer stays. 1: as trained. Below 1 faint "
            "directions count more, at 0 all the same; above 1 the strong ones stand out. A creative knob, as above.",
        ),
        io.Boolean.Input(
            "normalize",
            default=False,
            optional=True,
            tooltip="Hold each layer's energy as trained when the rank is cut or the tone bent, so that the picture "
            "changes in kind rather than in strength.",
        ),
        io.Combo.Input(
            "block_preset",
            options=list(PRESETS),
            default="ALL",
            optional=True,
            tooltip="Which blocks of the model the adapter changes. ALL: every one. IN: the way in, MID: "
            "the middle, OUT: the way out; S: the shallow half of it, D: the deep half. Names and parts are those of "
            "LoRA Block Weight; SD3 and Flux know ALL, ALL0.5 and NONE.",
        ),
        io.String.Input(
            "blocks",
            default="",
            optional=True,
            tooltip="Strengths of single blocks, over the preset: IN04-08:0.5, MID:1, OUT:0, TE:0.7 (TE: text encoder; "
            "* : all). SD3 and Flux by number: double 0-9:0.5, single:1, joint 3:0. Or a list of numbers of LoRA Block "
            "Weight: 17 or 26 for SD 1.5, 12 or 20 for SDXL, 61 for Flux. Empty: the preset alone.",
        ),
    ]
