"""The options of pictures, captions, masks, prior pictures and the cache: flags and TOML become config.py's classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..config_data import DataConfig, PriorConfig
from ..config_json import from_dict
from ..data.cache import default_cache_folder
from ..errors import InputError
from ..home import expanded
from .options import Given, Refines, flag, option, refuse_idle
from .parser import OneLineParser, whole

__all__ = [
    "CacheOptions",
    "add_cache_options",
    "add_data_options",
    "add_prior_options",
    "read_cache",
    "read_data",
    "read_prior",
]

IN_MEMORY = "memory"
_LIMIT = 20.0  # GB
BYTES = 10**9


@dataclass(frozen=True)
class CacheOptions:
    """Where encoded pictures and captions are kept between runs, and how large that may grow."""

    folder: Path | None  # None: in memory
    limit: int = int(_LIMIT * BYTES)  # bytes


def add_data_options(parser: OneLineParser, resolution: str) -> None:
    """Declare which pictures and captions are seen, and how; `resolution` names the default."""
    _add_pictures(parser, resolution)
    _add_captions(parser)
    _add_masks(parser)


def _add_pictures(parser: OneLineParser, resolution: str) -> None:
    framing = DataConfig().framing
    group = parser.add_argument_group("pictures")
    option(
        group,
        "--data",
        "data.folder",
        "folder of pictures: each with a .txt caption of the same name, or listed in a metadata.jsonl; a folder in it"
        ' named "10_cat" is seen 10 times as often',
        metavar="DIR",
    )
    option(
        group,
        "--resolution",
        "data.resolution",
        f"pixels: 512 means an area of 512 x 512 in any shape (default: {resolution})",
        type=whole,
    )
    flag(
        group,
        "--no-buckets",
        "data.framing.buckets",
        "cut every picture to a square; without this, each keeps its shape, near enough",
        value=False,
    )
    option(
        group,
        "--bucket-step",
        "data.framing.step",
        "sides are multiples of this many pixels (default: an eighth of the resolution, at most 64)",
        type=whole,
    )
    flag(
        group,
        "--upscale",
        "data.framing.upscale",
        "enlarge pictures that are too small (default: they stay at their size)",
    )
    flag(
        group,
        "--random-crop",
        "data.framing.crop",
        "what has to be cut off is cut at random places (default: the centre is kept)",
        value="random",
    )
    option(
        group,
        "--crops",
        "data.framing.crops",
        f"with --random-crop: places per picture (default: {framing.crops})",
        type=whole,
    )
    flag(group, "--flip", "data.framing.flip", "mirror half of what is seen left to right; not for text or faces")
    option(
        group,
        "--max-train-samples",
        "data.max_train_samples",
        "pictures per epoch, drawn anew for each (default: 0, all)",
        type=whole,
    )
    flag(group, "--skip-unreadable", "data.skip_unreadable", "leave out broken pictures, and name them")


def _add_captions(parser: OneLineParser) -> None:
    captions = DataConfig().captions
    group = parser.add_argument_group("captions")
    option(group, "--trigger-word", "data.trigger_word", "caption of a picture that has none", metavar="TEXT")
    option(group, "--caption-prefix", "data.captions.prefix", "put before every caption", metavar="TEXT")
    option(group, "--caption-suffix", "data.captions.suffix", "put behind every caption", metavar="TEXT")
    flag(
        group,
        "--shuffle-captions",
        "data.captions.shuffle",
        "show the tags of a caption, its parts between commas, in changing order",
    )
    option(
        group,
        "--keep-tags",
        "data.captions.keep_tags",
        f"with --shuffle-captions: this many tags stay in front (default: {captions.keep_tags})",
        type=whole,
    )
    option(
        group,
        "--caption-variants",
        "data.captions.variants",
        f"with --shuffle-captions: orders per caption (default: {captions.variants})",
        type=whole,
    )
    option(
        group,
        "--caption-dropout",
        "data.captions.dropout",
        "share of what is seen without caption, from 0 to 1; 0.1 is usual (default: 0)",
        type=float,
    )


def _add_masks(parser: OneLineParser) -> None:
    group = parser.add_argument_group("masks")
    flag(group, "--mask-alpha", "data.masks.source", "learn nothing from what is transparent in a picture", "alpha")
    option(
        group,
        "--masks",
        "data.masks.folder",
        "folder of masks with the names of the pictures: white is learned, black is not",
        metavar="DIR",
    )
    option(
        group,
        "--mask-floor",
        "data.masks.floor",
        "how much the masked part counts all the same, from 0 to 1 (default: 0)",
        type=float,
    )


def add_prior_options(parser: OneLineParser) -> None:
    """Declare the pictures that keep the model's idea of a class."""
    prior, train = PriorConfig(), TrainConfig()
    group = parser.add_argument_group(
        "prior pictures",
        "ordinary pictures of the class (any dog beside your dog), which keep the model from forgetting it",
    )
    option(
        group,
        "--prior",
        "prior.folder",
        "folder of these pictures; those that are missing to --prior-count are drawn with the base model and kept in it"
        " (default with --prior-prompt: NAME_prior beside the output)",
        metavar="DIR",
    )
    option(
        group,
        "--prior-prompt",
        "prior.prompt",
        'what they show, such as "a dog": the prompt of those that are drawn, the caption of those without one',
        metavar="TEXT",
    )
    option(group, "--prior-count", "prior.count", "pictures wanted; 200 is usual (default: those there)", type=whole)
    option(group, "--prior-seed", "prior.seed", f"of the first that is drawn (default: {prior.seed})", type=whole)
    option(
        group,
        "--prior-weight",
        "prior_weight",
        f"of their loss beside that of your pictures (default: {train.prior_weight:g})",
        type=float,
    )
    option(
        group,
        "--prior-batch-size",
        "prior_batch_size",
        f"of them beside each batch (default: {train.prior_batch_size})",
        type=whole,
    )


def add_cache_options(parser: OneLineParser, *, limited: bool = True) -> None:
    """Declare where encoded pictures are kept; without `limited`, for a verb that adds next to nothing."""
    group = parser.add_argument_group("cache")
    option(
        group,
        "--cache",
        "cache",
        f"where what was read and encoded is kept for the next run; {IN_MEMORY} keeps nothing (default: the folder"
        " TRILORA_CACHE, else trilora in your user's cache folder)",
        metavar="DIR",
    )
    if limited:
        option(
            group,
            "--cache-limit",
            "cache_limit",
            f"size in GB from which on the oldest entries are deleted (default: {_LIMIT:g})",
            metavar="GB",
            type=float,
        )


# --- from what was given to the configs ----------------------------------------

_REFINES: dict[str, Refines[DataConfig]] = {
    "data.framing.crops": Refines("--crops", "--random-crop", lambda data: data.framing.crop == "random"),
    "data.captions.keep_tags": Refines("--keep-tags", "--shuffle-captions", lambda data: data.captions.shuffle),
    "data.captions.variants": Refines("--caption-variants", "--shuffle-captions", lambda data: data.captions.shuffle),
    "data.masks.floor": Refines(
        "--mask-floor", "--masks DIR or --mask-alpha", lambda data: data.masks.source != "none"
    ),
}
_PRIOR_ONLY = {"prior.seed": "--prior-seed", "prior_weight": "--prior-weight", "prior_batch_size": "--prior-batch-size"}


def read_data(given: Given) -> DataConfig:
    """Take the table [data] out of what was given; InputError when it is wrong or names no pictures."""
    pictures = given.values.pop("data", {})
    _choose_masks(pictures, given.flags)
    data = from_dict(DataConfig, pictures)
    if not data.folder:
        raise InputError("no pictures were given; add --data DIR, or `folder` under [data] in the --config file")
    refuse_idle(given, _REFINES, data)
    return data


def _choose_masks(pictures: Any, flags: frozenset[str]) -> None:
    """A folder of masks is used unless another source is asked for."""
    if {"data.masks.source", "data.masks.folder"} <= flags:
        raise InputError("--mask-alpha and --masks were both given; choose one")
    masks = pictures.get("masks") if isinstance(pictures, dict) else None
    if isinstance(masks, dict) and masks.get("folder") and ("data.masks.folder" in flags or "source" not in masks):
        masks["source"] = "folder"


def read_prior(given: Given, output: Path) -> PriorConfig | None:
    """Take the table [prior] out of what was given; None when no prior pictures are wanted."""
    config = from_dict(PriorConfig, given.values.pop("prior", {}))
    if not (config.folder or config.prompt or config.count):
        for place in sorted(given.flags & _PRIOR_ONLY.keys()):
            name = _PRIOR_ONLY[place]
            raise InputError(f"{name} does nothing without prior pictures; add --prior DIR or --prior-prompt TEXT")
        return None
    return replace(config, folder=config.folder or str(output.with_name(f"{output.stem}_prior")))


def read_cache(given: Given) -> CacheOptions:
    """Take `cache` and `cache_limit` out of what was given; InputError when they are wrong."""
    place, limit = given.values.pop("cache", ""), given.values.pop("cache_limit", _LIMIT)
    if not isinstance(place, str):
        raise InputError(f'cache is {place!r}; wanted a folder in quotes, or "{IN_MEMORY}"')
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not number or not math.isfinite(limit) or limit <= 0:
        raise InputError(f"cache_limit is {limit!r}; wanted a finite number of GB above 0")
    if place == IN_MEMORY:
        return CacheOptions(None)
    return CacheOptions(expanded(place) if place.strip() else default_cache_folder(), int(limit * BYTES))
