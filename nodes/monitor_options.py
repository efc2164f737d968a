"""The node for what is watched while training goes on, and for the files that it leaves on its way."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..trilora_core.config import MonitorConfig, TrainConfig
from .sockets import CATEGORY, OptionsSocket

__all__ = ["TriLoRAMonitorOptions"]


class TriLoRAMonitorOptions(io.ComfyNode):
    """Validation, previews, and files on the way."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRAMonitorOptions",
            display_name="TriLoRA Monitor Options",
            category=CATEGORY,
            description="What Train TriLoRA watches on its way: validation, drift, previews; and which files it keeps.",
            inputs=[*_validation_inputs(), *_preview_inputs(), *_file_inputs(), *_later_inputs()],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="To Train TriLoRA.")],
        )

    @classmethod
    def execute(
        cls,
        validation_share: float,
        validate_every: int,
        patience: int,
        preview_every: int,
        preview_prompts: str,
        preview_seed: int,
        keep_adapters: int,
        keep_best: bool,
        keep_state: bool,
        options: TrainConfig | None = None,
        spectrum_every: int = 0,
        preview_steps: int = 20,
        preview_cfg: float = 0.0,
        preview_resolution: int = 0,
    ) -> io.NodeOutput:
        """Set this node's fields; the others stay as `options` had them."""
        watched = MonitorConfig(
            validation_share=validation_share,
            validate_every=validate_every,
            patience=patience,
            preview_every=preview_every,
            preview_prompts=tuple(line.strip() for line in preview_prompts.splitlines() if line.strip()),
            preview_seed=preview_seed,
            keep_adapters=keep_adapters,
            keep_best=keep_best,
            keep_state=keep_state,
            spectrum_every=spectrum_every,
            preview_steps=preview_steps,
            preview_cfg=preview_cfg,
            preview_resolution=preview_resolution,
        )
        return io.NodeOutput(replace(options or TrainConfig(), monitor=watched))


def _validation_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "validation_share",
            default=0.1,
            min=0.0,
            max=0.9,
            step=0.05,
            tooltip="Share of the pictures, at least one, that is never trained on, to measure how well the adapter "
            "does on pictures that it has not seen. 0: train on all, measure nothing.",
        ),
        io.Int.Input(
            "validate_every",
            default=50,
            min=1,
            max=1_000_000,
            tooltip="Optimizer steps between two measures of validation loss and drift. Each takes some seconds.",
        ),
        io.Int.Input(
            "patience",
            default=0,
            min=0,
            max=100_000,
            tooltip="End the run when this many measures in a row brought no better validation loss. 0: never.",
        ),
    ]


def _preview_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "preview_every",
            default=0,
            min=0,
            max=1_000_000,
            tooltip="Optimizer steps between two rounds of pictures with the adapter as it is then, drawn with the "
            "clip and vae of the data set. They are kept beside the adapter's file. 0: only when Preview now of Train "
            "TriLoRA asks for them.",
        ),
        io.String.Input(
            "preview_prompts",
            default="",
            multiline=True,
            tooltip="What the pictures show, one prompt per line. Each costs the time of a picture in every round. "
            "Empty: no previews.",
        ),
        io.Int.Input(
            "preview_seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            tooltip="Seed of the first prompt's picture, the same in every round; the next prompts count up.",
        ),
    ]


def _file_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "keep_adapters",
            default=0,
            min=0,
            max=10_000,
            tooltip="Adapters by step that are kept beside the final one: the latest ones, one at each save_every of "
            "TriLoRA Optimizer Options, which must be above 0. 0: none.",
        ),
        io.Boolean.Input(
            "keep_best",
            default=False,
            tooltip="On: also keep the adapter of the best validation loss, as <name>_best.",
        ),
        io.Boolean.Input(
            "keep_state",
            default=False,
            tooltip="On: keep the state of a finished run, so that resume can go on with more steps. It is a few times "
            "as large as the adapter.",
        ),
        OptionsSocket.Input(
            "options",
            optional=True,
            tooltip="Options of another node: this one sets its own fields and keeps the rest.",
        ),
    ]


def _later_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "spectrum_every",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            tooltip="Optimizer steps between two looks at the singular values of every layer: the node shows their "
            "mean effective rank and their norm, the log keeps them all. A look takes a fraction of a second. 0: none.",
        ),
        io.Int.Input(
            "preview_steps",
            default=20,
            min=1,
            max=1000,
            optional=True,
            tooltip="Sampler steps of a preview. Fewer are faster, more show details.",
        ),
        io.Float.Input(
            "preview_cfg",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            tooltip="Guidance (cfg) of the previews. 0: what is usual, 7 for SD 1.5 and SDXL, 4.5 for SD3, 1 for Flux. "
            "Set it for distilled models, which often want 1 to 2.",
        ),
        io.Int.Input(
            "preview_resolution",
            default=0,
            min=0,
            max=16384,
            step=8,
            optional=True,
            tooltip="Pixels of both sides of a preview. 0: the resolution of the data set.",
        ),
    ]
