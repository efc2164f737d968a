"""The node that draws the pictures of a class which prior preservation needs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.config_data import PriorConfig
from .host.prior import drawn_prior
from .shared_inputs import guidance, negative_input, sampling_steps
from .sockets import CACHES, CATEGORY, DatasetSocket, DatasetValue

__all__ = ["TriLoRAPriorPictures"]


class TriLoRAPriorPictures(io.ComfyNode):
    """Prompts to a data set of what the base model draws for them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRAPriorPictures",
            display_name="TriLoRA Prior Pictures",
            category=CATEGORY,
            description="Draws pictures of the class that a subject belongs to with the base model, and keeps them in "
            "ComfyUI's input folder. Training on them beside the subject keeps the model's idea of that class.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the adapter is trained for."),
                io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="What to draw, without the trigger word: for sks dog it is: a photo of a dog. Several "
                    "lines take turns.",
                ),
                io.Int.Input(
                    "count",
                    default=100,
                    min=1,
                    max=100_000,
                    tooltip="Pictures wanted. Those that are there are not drawn again. 100 to 200 is usual.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Side of the square pictures, in pixels: that of the data set.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Of the first picture; the next ones count up. Another seed draws another set.",
                ),
                sampling_steps("Sampling steps of each picture.", optional=True),
                guidance(optional=True),
                negative_input(),
                io.Combo.Input(
                    "cache",
                    options=list(CACHES),
                    default=CACHES[0],
                    optional=True,
                    tooltip="Where encoded pictures are kept. disk: in ComfyUI's user folder. memory: gone when "
                    "ComfyUI stops. The pictures themselves always stay.",
                ),
            ],
            outputs=[DatasetSocket.Output(display_name="dataset", tooltip="To prior of Train TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        count: int,
        resolution: int,
        seed: int,
        steps: int = 20,
        cfg: float = 7.0,
        negative: str = "",
        cache: str = CACHES[0],
    ) -> io.NodeOutput:
        """Draw the pictures that are missing, and encode them."""
        wanted = PriorConfig(prompt=prompts, count=count if prompts.strip() else 0, seed=seed)
        sampling = {"steps": steps, "cfg": cfg, "negative": negative}
        data = drawn_prior(model, clip, vae, wanted, resolution, sampling, cache, cls.hidden.unique_id)
        return io.NodeOutput(DatasetValue(data, clip, vae))
