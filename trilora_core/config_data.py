"""Options of what a run sees: pictures, captions, masks and prior pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

from .checks import flag, number, one_of, text, whole
from .errors import InputError

__all__ = [
    "CROPS",
    "MASKS",
    "CaptionConfig",
    "DataConfig",
    "FramingConfig",
    "MaskConfig",
    "PriorConfig",
]

CROPS = ("center", "random")


MASKS = ("none", "alpha", "folder")


@dataclass(frozen=True)
class CaptionConfig:
    """What is made of a caption before it is encoded; tags are its parts between commas."""

    prefix: str = ""  # put before every caption that is not dropped
    suffix: str = ""  # put behind it
    shuffle: bool = False  # tags in another order at each draw
    keep_tags: int = 0  # first tags, those of the prefix included, that a shuffle leaves where they are
    variants: int = 8  # orders of each caption that are encoded beforehand when shuffled
    dropout: float = 0.0  # share of the draws that see the empty caption
    weights: bool = False  # read (word:1.2) as a weight; off: as text

    def __post_init__(self) -> None:
        text("captions.prefix", self.prefix)
        text("captions.suffix", self.suffix)
        flag("captions.shuffle", self.shuffle)
        whole("captions.keep_tags", self.keep_tags, 0)
        whole("captions.variants", self.variants, 1)
        number("captions.dropout", self.dropout, least=0.0, most=1.0)
        flag("captions.weights", self.weights)


@dataclass(frozen=True)
class FramingConfig:
    """Which part of a picture is seen, and at which size."""

    buckets: bool = True  # keep the shape of each picture, near enough; off: the same square for all
    step: int = 0  # sides are multiples of it, in pixels; 0: an eighth of the resolution, at most 64
    upscale: bool = False  # enlarge pictures that are too small; off: they are seen at their own size
    crop: str = "center"  # which part of what the bucket cuts off is kept
    crops: int = 4  # random crops of each picture that are encoded beforehand
    flip: bool = False  # half of the draws are mirrored left to right

    def __post_init__(self) -> None:
        flag("framing.buckets", self.buckets)
        whole("framing.step", self.step, 0)
        flag("framing.upscale", self.upscale)
        one_of("framing.crop", self.crop, CROPS)
        whole("framing.crops", self.crops, 1)
        flag("framing.flip", self.flip)


@dataclass(frozen=True)
class MaskConfig:
    """Where in a picture the loss counts: white or opaque is 1, black or transparent is `floor`."""

    source: str = "none"  # "alpha": the picture's own; "folder": a picture of the same name in `folder`
    folder: str = ""
    floor: float = 0.0  # weight of what the mask covers

    def __post_init__(self) -> None:
        one_of("masks.source", self.source, MASKS)
        number("masks.floor", self.floor, least=0.0, most=1.0)
        if self.source == "folder" and not self.folder.strip():
            raise InputError("masks.source is 'folder', but masks.folder is empty; name the folder of the masks")


@dataclass(frozen=True)
class DataConfig:
    """Which pictures and captions a run sees, and how."""

    folder: str = ""
    resolution: int = 512  # pixels: the area of a bucket is at most its square
    trigger_word: str = ""  # the caption of a picture that has none
    skip_unreadable: bool = False
    max_train_samples: int = 0  # pictures of each epoch, drawn anew for every one; 0: all
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    framing: FramingConfig = field(default_factory=FramingConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        whole("resolution", self.resolution, 16)
        text("trigger_word", self.trigger_word)
        flag("skip_unreadable", self.skip_unreadable)
        whole("max_train_samples", self.max_train_samples, 0)


@dataclass(frozen=True)
class PriorConfig:
    """Pictures of the class that a subject belongs to, which keep the base model's idea of it (Ruiz et al. 2023)."""

    folder: str = ""  # class pictures; those that are missing to `count` are drawn with the base model and kept here
    prompt: str = ""  # what they show: the caption of those without one, and the prompt of those that are drawn
    count: int = 0  # pictures wanted; 0: those that are there
    seed: int = 0  # of the first picture that is drawn; the next ones count up

    def __post_init__(self) -> None:
        text("prior.prompt", self.prompt)
        whole("prior.count", self.count, 0)
        whole("prior.seed", self.seed, 0)
        if self.count and not self.prompt.strip():
            raise InputError(f"prior.count is {self.count}, but prior.prompt is empty; say what to draw")
