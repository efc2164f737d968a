"""The node that trains an adapter on the host's own model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trilora_core.calibration import Calibration
from ..trilora_core.config import TrainConfig
from ..trilora_core.fileformat import Adapter
from .host.patching import apply
from .host.paths import state_fingerprint
from .host.run import train_in_host
from .sockets import CATEGORY, AdapterSocket, CalibrationSocket, DatasetSocket, DatasetValue, OptionsSocket

__all__ = ["TrainTriLoRA"]


class TrainTriLoRA(io.ComfyNode):
    """Model and data set to adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="TrainTriLoRA",
            display_name="Train TriLoRA",
            category=CATEGORY,
            description="Trains a TriLoRA adapter on the data set and writes it to models/loras/trilora. Cancel keeps "
            "what was trained so far. A run that is already on the disk is read, not trained again.",
            inputs=[
                io.Model.Input("model", tooltip="The model to train for. It is not changed."),
                DatasetSocket.Input(
                    "dataset", tooltip="From a TriLoRA Dataset node, made with this model's clip and vae."
                ),
                io.String.Input("name", default="my_style", tooltip="Name of the file below models/loras/trilora."),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Directions that each layer may change. 4 to 16 for a style or a face, 32 and more for "
                    "many things at once. File size and memory grow with it. It is the upper limit where the options "
                    "set rank_energy.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=1_000_000,
                    tooltip="Optimizer steps. 300 to 2000 is usual; too many copy the pictures. Epochs in the options "
                    "take their place.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-8,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="How far each step goes. 0.00005 to 0.0005 is usual; lower it if pictures burn out.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Pictures per step. More is steadier, slower and needs more memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Same seed, same settings, same pictures: the same adapter, bit for bit on one machine.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip="Go on from where a cancelled run of this name and these settings stopped. "
                    "Off: train from the start.",
                ),
                OptionsSocket.Input(
                    "options", optional=True, tooltip="From the TriLoRA … Options nodes; not needed for a first run."
                ),
                AdapterSocket.Input(
                    "start_from", optional=True, tooltip="An adapter to train on from, in place of a fresh one."
                ),
                DatasetSocket.Input(
                    "prior",
                    optional=True,
                    tooltip="Pictures of the class that a subject belongs to, from TriLoRA Prior Pictures or a "
                    "TriLoRA Dataset node: they keep the model's idea of it. Their weight is in the options.",
                ),
                CalibrationSocket.Input(
                    "calibration",
                    optional=True,
                    tooltip="From TriLoRA Calibrate, with the same model and data set. Needed where init of the "
                    "options is contrast, and used only there.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="trilora", tooltip="The trained adapter, as it lies in its file."),
                io.Model.Output(display_name="model", tooltip="The model with the adapter on it at strength 1."),
                io.LossMap.Output(display_name="loss", tooltip="The loss of every step."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The data set's clip with the adapter on it at strength 1; the same clip unless the text "
                    "encoder was trained. Empty for a data set of latents.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Run again where a run was stopped and kept: what `resume` goes on from is then an input too."""
        return state_fingerprint(inputs.get("name")) if inputs.get("resume") is not False else ""

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: DatasetValue,
        name: str,
        rank: int,
        steps: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        resume: bool,
        options: TrainConfig | None = None,
        start_from: Adapter | None = None,
        prior: DatasetValue | None = None,
        calibration: Calibration | None = None,
    ) -> io.NodeOutput:
        """Train, or read the finished run."""
        config = _configured(options or TrainConfig(), rank, steps, learning_rate, batch_size, seed)
        outcome, shown = train_in_host(
            model,
            dataset.data,
            name,
            config,
            resume=resume,
            start_from=start_from,
            prior=None if prior is None else prior.data,
            node_id=cls.hidden.unique_id,
            workflow=_workflow_id(cls.hidden.extra_pnginfo),
            clip=dataset.clip,
            vae=dataset.vae,
            calibration=calibration,
        )
        trained, clip = apply(outcome.adapter, model, 1.0, dataset.clip)
        return io.NodeOutput(outcome.adapter, trained, {"loss": outcome.losses}, clip, ui=shown)


def _configured(
    options: TrainConfig, rank: int, steps: int, learning_rate: float, batch_size: int, seed: int
) -> TrainConfig:
    """The options with the node's own widgets in them; an energy rank of the options takes `rank` as its cap."""
    by_energy = isinstance(options.adapter.rank, str)
    adapter = replace(options.adapter, rank_cap=rank) if by_energy else replace(options.adapter, rank=rank)
    optimizer = replace(options.optimizer, learning_rate=learning_rate)
    return replace(options, steps=steps, batch_size=batch_size, seed=seed, adapter=adapter, optimizer=optimizer)


def _workflow_id(extra: Any) -> str | None:
    """The id of the workflow that was queued; scripts send none."""
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    found = workflow.get("id") if isinstance(workflow, dict) else None
    return found if isinstance(found, str) else None
