"""The node that looks at what the model's layers see, on a data set and on everything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trilora_core.config import TrainConfig
from ..trilora_core.monitor import learned_from
from .host.calibrate import calibrate_in_host
from .sockets import CATEGORY, CalibrationSocket, DatasetSocket, DatasetValue, OptionsSocket

__all__ = ["TriLoRACalibrate"]


class TriLoRACalibrate(io.ComfyNode):
    """Model and data set to calibration."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRACalibrate",
            display_name="TriLoRA Calibrate",
            category=CATEGORY,
            description="Looks at what the layers of the model see on the data set and on prompts of other things. "
            "Training with init = contrast starts from the difference, and Merge by RegMean weighs by it. Takes "
            "about as long as 20 training steps of 4 pictures, and is kept in models/loras/trilora for the next time.",
            inputs=[
                io.Model.Input("model", tooltip="The model to train for. It is not changed."),
                DatasetSocket.Input(
                    "dataset", tooltip="The one to train on, from a TriLoRA Dataset node: it brings the clip."
                ),
                io.String.Input(
                    "prior_prompts",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What the model should go on to draw as it did, one prompt in each line, without the "
                    "trigger word. Empty: a built-in list of 110 prompts of people, animals, places, things and "
                    "styles. Give your own where you know what you will draw; a dozen alike ones are too narrow.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip="Name of the file below models/loras/trilora, without its ending. Empty: a name made of "
                    "what it depends on.",
                ),
                OptionsSocket.Input(
                    "options",
                    optional=True,
                    tooltip="The same options as those of Train TriLoRA, for their choice of layers and for the "
                    "pictures that validation_share holds out. Only needed with one of the two.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    optional=True,
                    tooltip="The seed of Train TriLoRA, which also chooses what validation_share holds out: these "
                    "pictures are then not looked at here either. Changes nothing else; only needed with a "
                    "validation_share in the options.",
                ),
            ],
            outputs=[CalibrationSocket.Output(display_name="calibration", tooltip="To calibration of Train TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: DatasetValue,
        prior_prompts: str = "",
        name: str = "",
        options: TrainConfig | None = None,
        seed: int = 0,
    ) -> io.NodeOutput:
        """Calibrate, or read the calibration that is there."""
        config = replace(options or TrainConfig(), seed=seed)
        data = learned_from(dataset.data, config)
        found = calibrate_in_host(
            model, data, dataset.clip, dataset.vae, prior_prompts, name, config.adapter.layers, cls.hidden.unique_id
        )
        return io.NodeOutput(found)
