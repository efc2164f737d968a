"""The node that draws one labelled picture of prompts, strengths and adapters."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trilora_core.data.pictures import to_tensor
from ..trilora_core.errors import InputError
from ..trilora_core.fileformat import Adapter
from ..trilora_core.grid import COLUMNS, MOST, parse_prompts, parse_strengths, plan
from ..trilora_core.grid_sheet import labelled_sheet
from .host.events import announce
from .host.grid import draw_grid, sources, step_sources
from .host.paths import kept_fingerprint
from .host.preview import SAMPLERS, SCHEDULERS
from .shared_inputs import guidance, negative_input, sampling_steps
from .sockets import CATEGORY, AdapterSocket

__all__ = ["TriLoRAGrid"]


class TriLoRAGrid(io.ComfyNode):
    """Prompts, strengths and adapters to one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRAGrid",
            display_name="TriLoRA Grid",
            category=CATEGORY,
            description="Draws prompts at several strengths, with several adapters, or as training went on: one "
            f"labelled picture of at most {MOST}, all from the same noise.",
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the adapter. It is not changed."),
                io.Clip.Input(
                    "clip",
                    tooltip="Text encoder of the same checkpoint. Adapters that change the text encoder change it too, "
                    "at the same strength.",
                ),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint."),
                AdapterSocket.Input("trilora", tooltip="From Load, Train or Merge TriLoRA."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a cat\na house by the sea",
                    tooltip="What to draw: one prompt a line, with the trigger word where the adapter needs it.",
                ),
                io.String.Input(
                    "strengths",
                    default="0, 0.5, 1",
                    tooltip="Strengths with commas between them: 1 as trained, 0 the model alone, -20 to 20.",
                ),
                *_sampling(),
                *_layout(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The labelled picture.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None, strengths: str | None = None) -> bool | str:
        """Say what is wrong with a text before anything runs (None: it comes over a link)."""
        try:
            if prompts is not None:
                parse_prompts(prompts)
            if strengths is not None:
                parse_strengths(strengths)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Run again when the files that training kept change, if they are drawn."""
        return kept_fingerprint() if inputs.get("training_steps") is not False else ""

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        trilora: Adapter,
        prompts: str,
        strengths: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        negative: str = "",
        columns: str = COLUMNS[0],
        cell: int = 320,
        training_steps: bool = False,
        trilora_b: Adapter | None = None,
        trilora_c: Adapter | None = None,
        trilora_d: Adapter | None = None,
    ) -> io.NodeOutput:
        """Lay out, draw, label."""
        adapters = [adapter for adapter in (trilora, trilora_b, trilora_c, trilora_d) if adapter is not None]
        chosen = step_sources(adapters) if training_steps else sources(adapters)
        lines = parse_prompts(prompts)
        laid_out = plan(lines, [source.name for source in chosen], parse_strengths(strengths), columns)
        sampling = {"width": width, "height": height, "steps": steps, "cfg": cfg, "sampler": sampler_name}
        sampling |= {"scheduler": scheduler, "negative": negative}
        node = cls.hidden.unique_id
        rows, problems = draw_grid(
            laid_out, lines, chosen, model, clip, vae, seed=seed, side=cell, sampling=sampling, node_id=node
        )
        named = [source.name for source in sources(adapters)] if training_steps else []
        note = [*named, *laid_out.same, f"seed {seed}, {steps} steps, cfg {cfg:g}, {sampler_name} {scheduler}"]
        sheet = labelled_sheet(
            rows,
            row_labels=laid_out.row_labels,
            column_labels=laid_out.column_labels,
            note=" · ".join(note),
            cell=cell,
        )
        image = to_tensor(sheet).movedim(0, -1)[None]
        announce(node, f"{sum(map(len, rows))} pictures in {len(rows)} rows", problems)
        return io.NodeOutput(image, ui=ui.PreviewImage(image))


def _sampling() -> list[io.Input]:
    """How each picture is drawn, as ComfyUI's KSampler has it."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFE,
            control_after_generate=False,
            tooltip="Of the noise that every picture starts from: the same everywhere, so that only what the labels "
            "name differs.",
        ),
        sampling_steps("Sampling steps of each picture; 20 to 30 is usual."),
        guidance(),
        io.Combo.Input(
            "sampler_name", options=list(SAMPLERS), default="euler", tooltip="As in KSampler. euler is never wrong."
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default="normal",
            tooltip="As in KSampler: how the steps are spread. normal for SD1.5 and SDXL, simple for SD3 and Flux.",
        ),
        *(
            io.Int.Input(
                side,
                default=512,
                min=64,
                max=4096,
                step=8,
                tooltip=f"{side.capitalize()} of each picture as it is drawn, in pixels: what the model was made for, "
                "512 for SD1.5, 1024 for the others.",
            )
            for side in ("width", "height")
        ),
        negative_input(),
    ]


def _layout() -> list[io.Input]:
    """What the picture shows, and where."""
    more = "Another adapter to compare with the first."
    return [
        io.Combo.Input(
            "columns",
            options=list(COLUMNS),
            default=COLUMNS[0],
            optional=True,
            tooltip="What runs across. strengths: each row is a prompt with an adapter. adapters: each column is an "
            "adapter (or a training step), each row a prompt. prompts: the other way round.",
        ),
        io.Int.Input(
            "cell",
            default=320,
            min=64,
            max=1024,
            step=8,
            optional=True,
            tooltip="Longer side of each picture in the grid, in pixels: they are shrunk or enlarged to it.",
        ),
        io.Boolean.Input(
            "training_steps",
            default=False,
            optional=True,
            tooltip="On: also draws the adapters that Train TriLoRA kept on the way beside each adapter, oldest first. "
            "Needs keep_adapters of TriLoRA Monitor Options and save_every of TriLoRA Optimizer Options in that run.",
        ),
        *(AdapterSocket.Input(f"trilora_{letter}", optional=True, tooltip=more) for letter in "bcd"),
    ]
