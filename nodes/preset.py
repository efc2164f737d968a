"""The node that chooses usual settings for a model, a data set and a goal."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trilora_core.config import TrainConfig
from ..trilora_core.presets import GOALS, preset_text, preset_values, with_values
from .host.events import Progress
from .host.models import detect
from .sockets import CATEGORY, DatasetSocket, DatasetValue, OptionsSocket

__all__ = ["TriLoRAPreset"]

GOAL_TIP = (
    "What is to be learned. style: a look, from 10 to 100 pictures. subject: one person or thing, from 4 to 30. "
    "collection: many things, from 100 pictures on."
)


class TriLoRAPreset(io.ComfyNode):
    """Goal to options and the widgets of Train TriLoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRAPreset",
            display_name="TriLoRA Preset",
            category=CATEGORY,
            description="Usual settings for this model, number of pictures and goal. Connect its outputs to Train "
            "TriLoRA.",
            inputs=[
                io.Model.Input("model", tooltip="The model to train for: the same as Train TriLoRA has."),
                DatasetSocket.Input("dataset", tooltip="The data set to train on: the steps follow its pictures."),
                io.Combo.Input("goal", options=list(GOALS), default=GOALS[0], tooltip=GOAL_TIP),
                OptionsSocket.Input(
                    "options",
                    optional=True,
                    tooltip="Options of another node: the preset sets its own values and keeps the rest. Put an "
                    "options node behind the preset to change what it chose.",
                ),
            ],
            outputs=[
                OptionsSocket.Output(display_name="options", tooltip="To Train TriLoRA, or through an options node."),
                io.Int.Output(display_name="rank", tooltip="To rank of Train TriLoRA."),
                io.Int.Output(display_name="steps", tooltip="To steps of Train TriLoRA."),
                io.Float.Output(display_name="learning_rate", tooltip="To learning_rate of Train TriLoRA."),
                io.Int.Output(display_name="batch_size", tooltip="To batch_size of Train TriLoRA."),
                io.String.Output(display_name="report", tooltip="What was chosen, as text."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, dataset: DatasetValue, goal: str, options: TrainConfig | None = None) -> io.NodeOutput:
        """Look up the values and put them into the options."""
        architecture, pictures = detect(model.model).name, dataset.data.epoch_size
        base = options or TrainConfig()
        values = preset_values(goal, architecture, pictures, base.optimizer.name)
        config = with_values(base, values)
        text = preset_text(goal, architecture, pictures, config)
        Progress(cls.hidden.unique_id, 1).text(text)
        chosen = (values["adapter"]["rank"], config.steps, config.optimizer.learning_rate, config.batch_size)
        return io.NodeOutput(config, *chosen, text, ui=ui.PreviewText(text))
