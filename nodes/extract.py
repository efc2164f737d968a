"""The node that makes an adapter of two models."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.config import LAYERS, LayerConfig
from ..trilora_core.errors import InputError
from ..trilora_core.extract import ExtractConfig, extract
from .host.compute import algebra_device
from .host.events import announce, reporter
from .host.weights import HostWeights
from .sockets import CATEGORY, AdapterSocket

__all__ = ["ExtractTriLoRA"]


class ExtractTriLoRA(io.ComfyNode):
    """Fine-tuned model and base model to adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="ExtractTriLoRA",
            display_name="Extract TriLoRA",
            category=CATEGORY,
            description="Makes an adapter of the difference between a fine-tuned model and the model that it was tuned "
            "from. LoRAs and mixes that other nodes put on either model count. Neither model is changed, and only one "
            "layer of each is on the device at a time.",
            inputs=[
                io.Model.Input("model_tuned", tooltip="The fine-tuned model, with whatever is patched onto it."),
                io.Model.Input("model_base", tooltip="The model that it was tuned from, of the same kind."),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=1024,
                    tooltip="Directions of each layer that are kept, at most. More come nearer to the fine-tuned model "
                    "and make a larger file; the report says how near.",
                ),
                io.Float.Input(
                    "energy",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Below 1: each layer keeps only as many directions as hold this share of its difference, "
                    "up to the rank. 0.9 makes a smaller file where few directions changed.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default=LAYERS[0],
                    optional=True,
                    tooltip="Which layers are compared. attention: what most LoRAs adapt. With ff and conv more of the "
                    "difference is kept, in a larger file.",
                ),
                io.Clip.Input(
                    "clip_tuned",
                    optional=True,
                    tooltip="The clip of the fine-tuned model: with both clips the text encoder of SD 1.5 and SDXL is "
                    "compared too.",
                ),
                io.Clip.Input("clip_base", optional=True, tooltip="The clip of the base model."),
            ],
            outputs=[
                AdapterSocket.Output(display_name="trilora", tooltip="To Apply, Save, Resize or Merge TriLoRA."),
                io.String.Output(display_name="report", tooltip="How near the adapter comes, in all and by layer."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model_tuned: Any,
        model_base: Any,
        rank: int,
        energy: float = 1.0,
        layers: str = LAYERS[0],
        clip_tuned: Any = None,
        clip_base: Any = None,
    ) -> io.NodeOutput:
        """Compare layer by layer; InputError for one clip without the other, and as `extract` raises it."""
        _check_clips(clip_tuned, clip_base)
        tuned, base = HostWeights(model_tuned, clip_tuned), HostWeights(model_base, clip_base)
        config = ExtractConfig(rank, energy, LayerConfig(layers))
        progress = reporter(cls.hidden.unique_id, "layer")
        adapter, report = extract(tuned, base, config, device=algebra_device(), progress=progress)
        announce(cls.hidden.unique_id, report.text())
        return io.NodeOutput(adapter, report.text(worst=len(report.layers)))


def _check_clips(tuned: Any, base: Any) -> None:
    if (tuned is None) != (base is None):
        given, missing = ("clip_base", "clip_tuned") if tuned is None else ("clip_tuned", "clip_base")
        raise InputError(
            f"{given} is connected, {missing} is not: the text encoder has nothing to be compared with; connect both,"
            " or neither"
        )
