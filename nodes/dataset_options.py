"""The node for the settings of a data set that most people leave alone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.config_data import CROPS, CaptionConfig, FramingConfig, MaskConfig
from .host.paths import check_mask_folder, dataset_folder, mask_fingerprint, mask_folders
from .sockets import CACHES, CATEGORY, DataOptions, DataOptionsSocket

__all__ = ["TriLoRADatasetOptions"]


class TriLoRADatasetOptions(io.ComfyNode):
    """How pictures and captions are seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRADatasetOptions",
            display_name="TriLoRA Dataset Options",
            category=CATEGORY,
            description="Settings of the TriLoRA Dataset nodes that most people leave alone: buckets, crops, captions, "
            "masks, cache.",
            inputs=[*_framing_inputs(), *_caption_inputs(), *_other_inputs()],
            outputs=[DataOptionsSocket.Output(display_name="options", tooltip="To a TriLoRA Dataset node.")],
        )

    @classmethod
    def validate_inputs(cls, masks: str | None = None) -> bool | str:
        """Say why a mask folder cannot be used before anything runs."""
        return check_mask_folder(masks)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Run again when a mask changes."""
        return mask_fingerprint(inputs.get("masks"))

    @classmethod
    def execute(
        cls,
        buckets: bool,
        bucket_step: int,
        upscale: bool,
        crop: str,
        crops: int,
        flip: bool,
        caption_prefix: str,
        caption_suffix: str,
        shuffle_tags: bool,
        keep_tags: int,
        caption_variants: int,
        caption_dropout: float,
        caption_weights: bool,
        masks: str,
        mask_floor: float,
        max_train_samples: int,
        cache: str,
    ) -> io.NodeOutput:
        """Collect the settings."""
        captions = CaptionConfig(
            caption_prefix,
            caption_suffix,
            shuffle_tags,
            keep_tags,
            caption_variants,
            caption_dropout,
            caption_weights,
        )
        framing = FramingConfig(buckets, bucket_step, upscale, crop, crops, flip)
        return io.NodeOutput(DataOptions(captions, framing, _masks(masks, mask_floor), max_train_samples, cache))


def _masks(name: str, floor: float) -> MaskConfig:
    if name in ("none", "alpha"):
        return MaskConfig(name, floor=floor)
    return MaskConfig("folder", str(dataset_folder(name)), floor)


def _framing_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "buckets",
            default=True,
            tooltip="On: every picture keeps its shape, near enough, at the area of the resolution. "
            "Off: all are cut to the same square.",
        ),
        io.Int.Input(
            "bucket_step",
            default=0,
            min=0,
            max=512,
            step=8,
            tooltip="Sides of pictures are multiples of it, in pixels. 0: an eighth of the resolution, at most 64. "
            "Smaller cuts off less and makes more buckets.",
        ),
        io.Boolean.Input(
            "upscale",
            default=False,
            tooltip="On: pictures smaller than the resolution are enlarged. Off: they are seen at their own size.",
        ),
        io.Combo.Input(
            "crop",
            options=list(CROPS),
            default="center",
            tooltip="What is kept where a picture does not fit its bucket: the centre, or places drawn at random.",
        ),
        io.Int.Input(
            "crops",
            default=4,
            min=1,
            max=64,
            tooltip="Random crops that are encoded of each picture, with crop at random. Each takes its place in the "
            "cache.",
        ),
        io.Boolean.Input(
            "flip",
            default=False,
            tooltip="On: half of the looks at a picture are mirrored left to right. Not for text, nor for a face with "
            "a parting or a scar.",
        ),
    ]


def _caption_inputs() -> list[io.Input]:
    return [
        io.String.Input("caption_prefix", default="", tooltip="Text before every caption."),
        io.String.Input("caption_suffix", default="", tooltip="Text behind every caption."),
        io.Boolean.Input(
            "shuffle_tags",
            default=False,
            tooltip="On: the parts of a caption between commas come in another order at each look. For lists of tags, "
            "not for sentences.",
        ),
        io.Int.Input(
            "keep_tags",
            default=0,
            min=0,
            max=1000,
            tooltip="First tags that stay in front when the others are shuffled, those of the prefix included.",
        ),
        io.Int.Input(
            "caption_variants",
            default=8,
            min=1,
            max=1024,
            tooltip="Orders of each caption that are encoded beforehand when tags are shuffled.",
        ),
        io.Float.Input(
            "caption_dropout",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the looks at a picture that see no caption. 0.05 to 0.1 helps a style to act without its "
            "trigger word.",
        ),
        io.Boolean.Input(
            "caption_weights",
            default=False,
            tooltip="On: (word:1.2) in a caption is a weight, as in a prompt. Off: it is text like any other.",
        ),
    ]


def _other_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "masks",
            options=mask_folders(),
            default="none",
            tooltip="Where the loss counts. alpha: the opaque part of each picture. A folder: the mask of cat.png is "
            "the picture of that name in it; white counts, black does not. Press R to see new folders.",
        ),
        io.Float.Input(
            "mask_floor",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Weight of what the mask covers. 0: it is not learned at all. 0.1: a little of it.",
        ),
        io.Int.Input(
            "max_train_samples",
            default=0,
            min=0,
            max=1_000_000,
            tooltip="Pictures of each epoch, drawn anew for every one. 0: all.",
        ),
        io.Combo.Input(
            "cache",
            options=list(CACHES),
            default=CACHES[0],
            tooltip="Where encoded pictures and captions are kept. disk: in ComfyUI's user folder, so that the next "
            "run starts at once. memory: gone when ComfyUI stops.",
        ),
    ]
