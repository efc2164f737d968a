"""Nodes that turn captioned pictures into latents and conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.data import load_folder, load_images
from .host.encode import HostEncoder
from .host.events import announce_data, reporter
from .host.latents import data_of_latents
from .host.masks import masks_of_images
from .host.paths import check_dataset_folder, dataset_fingerprint, dataset_folder, dataset_folders
from .host.store import data_store
from .sockets import CATEGORY, DataOptions, DataOptionsSocket, DatasetSocket, DatasetValue

__all__ = ["TriLoRADataset", "TriLoRADatasetFromImages", "TriLoRADatasetFromLatents"]

CLIP = io.Clip.Input("clip", tooltip="Text encoder of the model that you train on. It encodes the captions, once.")
VAE = io.Vae.Input("vae", tooltip="VAE of the model that you train on. It encodes the pictures, once.")
RESOLUTION_TIP = (
    "Pictures are scaled to the area of a square of this side, in pixels, and keep their shape. Take what the model "
    "was made for: 512 for SD1.5, 1024 for SDXL, SD3 and Flux. Smaller is faster and needs less memory."
)
TRIGGER_TIP = "The caption of every picture that has none, and the word to use later in prompts, such as: sks style."
OPTIONS = DataOptionsSocket.Input(
    "options",
    optional=True,
    tooltip="From TriLoRA Dataset Options: buckets, crops, captions, masks, cache. Not needed for a first run.",
)


class TriLoRADataset(io.ComfyNode):
    """Pictures and captions of a folder."""

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
                    tooltip="A folder below ComfyUI's input. The caption of cat.png is the text in cat.txt beside it, "
                    "or its line in metadata.jsonl. A folder in it such as 10_cat is seen ten times as often. "
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
                OPTIONS,
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
        cls,
        folder: str,
        clip: Any,
        vae: Any,
        resolution: int,
        trigger_word: str,
        skip_unreadable: bool = False,
        options: DataOptions | None = None,
    ) -> io.NodeOutput:
        """Encode what the cache does not hold of the folder."""
        options, node = options or DataOptions(), cls.hidden.unique_id
        config = options.config(resolution, trigger_word, str(dataset_folder(folder)), skip_unreadable)
        encoder = HostEncoder(clip, vae)
        data = load_folder(config, encoder, data_store(options.cache), reporter(node, "prepared"))
        announce_data(node, data, f"; {encoder.encoded} encoded anew")
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
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per picture, or one for all: white counts, black does not. Load Image gives "
                    "white where a picture is transparent: put Invert Mask in between.",
                ),
                OPTIONS,
            ],
            outputs=[DatasetSocket.Output(display_name="dataset", tooltip="To Train TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: Any,
        clip: Any,
        vae: Any,
        captions: str,
        trigger_word: str,
        resolution: int = 512,
        masks: Any = None,
        options: DataOptions | None = None,
    ) -> io.NodeOutput:
        """Encode what the cache does not hold of the pictures."""
        options, node = options or DataOptions(), cls.hidden.unique_id
        config = options.config(resolution, trigger_word)
        lines = captions.splitlines() if captions.strip() else []
        weights = masks_of_images(images, masks, config.masks.source)
        encoder, store = HostEncoder(clip, vae), data_store(options.cache)
        data = load_images(images[..., :3], lines, config, encoder, store, reporter(node, "prepared"), weights)
        announce_data(node, data, f"; {encoder.encoded} encoded anew")
        return io.NodeOutput(DatasetValue(data, clip, vae))


class TriLoRADatasetFromLatents(io.ComfyNode):
    """What other nodes have encoded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRADatasetFromLatents",
            display_name="TriLoRA Dataset (latents)",
            category=CATEGORY,
            description="Takes pictures and captions that are encoded already, such as those of Make Training Dataset, "
            "ready for Train TriLoRA.",
            is_input_list=True,
            inputs=[
                io.Latent.Input(
                    "latents",
                    tooltip="Encoded pictures: one latent or a list, each of one picture or a batch. A noise mask on "
                    "them says where the loss counts.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="Encoded captions: one for each picture, one for each latent of the list, or one for all.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    optional=True,
                    tooltip="The word to use later in prompts: written into the adapter's file, nothing more.",
                ),
            ],
            outputs=[DatasetSocket.Output(display_name="dataset", tooltip="To Train TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latents: Any, conditioning: Any, trigger_word: Any = ("",)) -> io.NodeOutput:
        """Pair pictures and captions."""
        data = data_of_latents(latents, conditioning, trigger_word[0] if trigger_word else "")
        announce_data(cls.hidden.unique_id, data)
        return io.NodeOutput(DatasetValue(data))
