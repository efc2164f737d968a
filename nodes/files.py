"""Nodes that read and write adapter files."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trilora_core.card import adapter_card
from ..trilora_core.checks import one_of
from ..trilora_core.cover import to_picture, with_cover, write_preview
from ..trilora_core.fileformat import Adapter, read_adapter, write_adapter
from ..trilora_core.metadata import describe
from .host.paths import check_lora, lora_file, lora_files, lora_fingerprint, numbered_file
from .sockets import CARD, CATEGORY, AdapterSocket

__all__ = ["LoadTriLoRA", "SaveTriLoRA"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class SaveTriLoRA(io.ComfyNode):
    """Adapter to file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="SaveTriLoRA",
            display_name="Save TriLoRA",
            category=CATEGORY,
            description="Writes an adapter as a LoRA file that every LoRA loader reads.",
            inputs=[
                AdapterSocket.Input("trilora", tooltip="The adapter to write."),
                io.String.Input(
                    "filename_prefix",
                    default="trilora/adapter",
                    tooltip="Name of the file below models/loras; a number is put behind it. A slash makes a folder.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    tooltip="Number format. fp16: half the size of fp32, exact to 0.0003 of the change. "
                    "bf16: the same size, exact to 0.003. fp32: for further work on the adapter.",
                ),
                io.Image.Input(
                    "cover",
                    optional=True,
                    tooltip="A picture that shows what the adapter does, for model browsers: it goes into the file, "
                    "small, and beside it as NAME.preview.jpg.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, trilora: Adapter, filename_prefix: str, dtype: str, cover: torch.Tensor | None = None
    ) -> io.NodeOutput:
        """Write the file, with its cover, and say where."""
        one_of("dtype", dtype, tuple(DTYPES))  # over a link anything may come
        path = numbered_file(filename_prefix)
        if cover is None:
            write_adapter(path, trilora, dtype=DTYPES[dtype])
        else:
            picture = to_picture(cover[0].movedim(-1, 0))
            write_adapter(path, with_cover(trilora, picture), dtype=DTYPES[dtype])
            write_preview(path, picture)
        return io.NodeOutput(ui=ui.PreviewText(str(path)))


class LoadTriLoRA(io.ComfyNode):
    """File to adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="LoadTriLoRA",
            display_name="Load TriLoRA",
            category=CATEGORY,
            description="Reads a TriLoRA adapter or any other LoRA file (.safetensors).",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_files(),
                    tooltip="A file below models/loras: ours, kohya, PEFT or diffusers. Press R to see new files.",
                ),
            ],
            outputs=[AdapterSocket.Output(display_name="trilora", tooltip="To Apply, Merge or Save TriLoRA.")],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        """Say why a file cannot be used before anything runs."""
        return check_lora(lora_name)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Run again when the file changes."""
        return lora_fingerprint(inputs.get("lora_name"))

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        """Read the file, and say what it is for."""
        adapter = read_adapter(lora_file(lora_name))
        text = describe(adapter)
        card = {**adapter_card(adapter), "file": lora_name}
        return io.NodeOutput(adapter, ui={"text": (text,), CARD: (card,)})
