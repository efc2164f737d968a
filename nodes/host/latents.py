"""A data set of the host's own LATENT and CONDITIONING values, as its training nodes hand them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...trilora_core.config_data import DataConfig
from ...trilora_core.data import Dataset, load_tensors
from ...trilora_core.errors import InputError
from .encode import normal
from .masks import latent_masks

__all__ = ["data_of_latents"]

PIXELS = 8  # of one latent, in each direction
SMALLEST = 16  # pixels: the resolution that a data set names is at least this
# what the host's sampler does with a caption and training does not
IGNORED = ("area", "mask", "control", "gligen", "hooks", "start_percent", "end_percent")


def data_of_latents(latents: Sequence[Mapping[str, Any]], conditioning: Sequence[Any], trigger_word: str) -> Dataset:
    """Pictures of a list of LATENT, each with its entry of a list of CONDITIONING, as a data set in memory.

    Raises InputError for numbers that do not match, and for captions that training cannot take.
    """
    pictures = [picture for number, latent in enumerate(latents) for picture in _pictures(latent, number + 1)]
    entries = _entries([len(latent["samples"]) for latent in latents], conditioning)
    if not pictures:
        raise InputError("the list of latents is empty; connect pictures that are encoded, such as those of VAE Encode")
    side = max(max(picture.shape[-2:]) for picture, _ in pictures) * PIXELS
    return load_tensors(
        [picture for picture, _ in pictures],
        [_plain(entry, index + 1) for index, entry in enumerate(entries)],
        masks=[mask for _, mask in pictures],
        config=DataConfig(resolution=max(side, SMALLEST), trigger_word=" ".join(trigger_word.split())),
    )


def _pictures(latent: Mapping[str, Any], number: int) -> list[tuple[Tensor, Tensor | None]]:
    """The latents (C, h, w) of one LATENT, with masks (1, h, w) where it has a noise mask."""
    samples, name = latent["samples"], f"latent {number}"
    if not isinstance(samples, Tensor) or samples.ndim != 4 or not len(samples):
        shape = tuple(getattr(samples, "shape", ()))
        raise InputError(
            f"{name} has samples of shape {shape}; wanted those of pictures, (pictures, channels, height, width)"
        )
    mask = latent.get("noise_mask")
    height, width = samples.shape[-2:]
    masks = [None] * len(samples) if mask is None else latent_masks(mask, len(samples), (height, width), name)
    return list(zip(normal(samples), masks, strict=True))


def _entries(sizes: Sequence[int], conditioning: Sequence[Any]) -> list[Any]:
    """One entry for each picture, given the number of pictures of each latent."""
    total, given = sum(sizes), len(conditioning)
    if given == 1 and len(sizes) > 1:
        return _spread(conditioning[0], total, 1)
    if given == len(sizes):
        return [entry for number, size in enumerate(sizes) for entry in _spread(conditioning[number], size, number + 1)]
    if given == total:
        return [entry for number in range(total) for entry in _spread(conditioning[number], 1, number + 1)]
    raise InputError(
        f"{given} conditionings came with {total} pictures in {len(sizes)} latents; give one for each picture, one for "
        "each latent, or one for all"
    )


def _spread(conditioning: Any, count: int, number: int) -> list[Any]:
    """The entries of one CONDITIONING for `count` pictures: its only one for all, or one each (Resolution Bucket)."""
    if len(conditioning) == 1:
        return list(conditioning) * count
    if len(conditioning) != count:
        raise InputError(
            f"conditioning {number} has {len(conditioning)} entries for {count} "
            f"picture{'s' * (count != 1)}; wanted one caption for each: "
            "training cannot combine several, so take out Conditioning (Combine) and its like"
        )
    return list(conditioning)


def _plain(entry: Any, number: int) -> Any:
    tensor, options = entry
    used = [name for name in IGNORED if options.get(name) is not None]
    if used:
        raise InputError(
            f"the conditioning of picture {number} sets {', '.join(used)}, which training cannot follow; give plain "
            "text encodings"
        )
    return normal([tensor, options])
