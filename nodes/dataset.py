"""Nodes that turn captioned pictures into latents and conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.config import DataConfig
from ..trilora_core.data import load_folder, load_images
from .host.encode import HostEncoder
from .host.events import announce, reporter
from .host.paths import check_dataset_folder, dataset_fingerprint, dataset_folder, dataset_folders
from .sockets import CATEGORY, DatasetSocket, DatasetValue

__all__ = ["TriLoRADataset", "TriLoRADatasetFromImages"]

CLIP = io.Clip.Input("clip", tooltip="Text encoder of the model that you train on. It encodes the captions, once.")
VAE = io.Vae.Input("vae", tooltip="VAE of the model that you train on. It encodes the pictures, once.")
RESOLUTION_TIP = (
    "Side of the square that every picture is scaled and cropped to, in pixels. Take what the model was made for: "
    "512 for SD1.5, 1024 for SDXL, SD3 and Flux. Smaller is faster and needs less memory."
)
TRIGGER_TIP = "The caption of every picture that has none, and the word to use later in prompts, such as: sks style."


class TriLoRADataset(io.ComfyNode):
    """Pictures and .txt captions of a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="TriLoRADataset",
            display_name="TriLoRA Dataset (folder)",
            category=CATEGORY,
            description="Reads a folder of pictures with captions and encodes both, ready for Train TriLoRA.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=dataset_folders(),
                    tooltip="A folder below ComfyUI's input. The caption of cat.png is the text in cat.txt beside it. "
                    "Press R to see new folders.",
                ),
                CLIP,
                VAE,
                io.Int.Input("resolution", default=512, min=64, max=4096, step=64, tooltip=RESOLUTION_TIP),
                io.String.Input("trigger_word", default="", tooltip=TRIGGER_TIP),
                io.Boolean.Input(
                    "skip_unreadable",
                    default=False,
                    optional=True,
                    tooltip="On: pictures that cannot be read are left out and named. Off: the first one stops it.",
                ),
            ],
            outputs=[DatasetSocket.Output(display_name="dataset", tooltip="To Train TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """Say why a folder cannot be used before anything runs."""
        return check_dataset_folder(folder)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Run again when a file of the folder changes."""
        return dataset_fingerprint(inputs.get("folder"))

    @classmethod
    def execute(
        cls, folder: str, clip: Any, vae: Any, resolution: int, trigger_word: str, skip_unreadable: bool = False
    ) -> io.NodeOutput:
        """Encode the folder."""
        config = DataConfig(str(dataset_folder(folder)), resolution, trigger_word.strip(), skip_unreadable)
        node = cls.hidden.unique_id
        data = load_folder(config, HostEncoder(clip, vae), reporter(node, "encoded"))
        announce(node, f"{len(data)} pictures", data.skipped)
        return io.NodeOutput(DatasetValue(data, clip, vae))


class TriLoRADatasetFromImages(io.ComfyNode):
    """Pictures that other nodes give."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them."""
        return io.Schema(
            node_id="TriLoRADatasetFromImages",
            display_name="TriLoRA Dataset (images)",
            category=CATEGORY,
            description="Encodes pictures of the graph and their captions, ready for Train TriLoRA.",
            inputs=[
                io.Image.Input("images", tooltip="A batch of pictures."),
                CLIP,
                VAE,
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    tooltip="One line per picture, in their order, or one line for all. Empty: the trigger word.",
                ),
                io.String.Input("trigger_word", default="", tooltip=TRIGGER_TIP),
                io.Int.Input(
                    "resolution", default=512, min=64, max=4096, step=64, optional=True, tooltip=RESOLUTION_TIP
                ),
            ],
            outputs=[DatasetSocket.Output(display_name="dataset", tooltip="To Train TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, images: Any, clip: Any, vae: Any, captions: str, trigger_word: str, resolution: int = 512
    ) -> io.NodeOutput:
        """Encode the pictures."""
        config = DataConfig(resolution=resolution, trigger_word=trigger_word.strip())
        node = cls.hidden.unique_id
        lines = captions.splitlines() if captions.strip() else []
        data = load_images(images[..., :3], lines, config, HostEncoder(clip, vae), reporter(node, "encoded"))
        announce(node, f"{len(data)} pictures")
        return io.NodeOutput(DatasetValue(data, clip, vae))
