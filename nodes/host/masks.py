"""The host's masks as the data set wants them: 1 where the loss counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...trilora_core.errors import InputError

__all__ = ["latent_masks", "masks_of_images"]


def masks_of_images(images: Tensor, masks: Tensor | None, source: str) -> Tensor | None:
    """The masks (B, H, W) of pictures (B, H, W, 3 or 4): those that came with them, or their alpha.

    A mask that is white everywhere is none, of whatever size: the host makes up one of 64 pixels for a picture without
    transparency. Raises InputError when `source`, the choice of the options, cannot be had.
    """
    if source == "alpha" and masks is None and images.shape[-1] == 4:
        return images[..., 3]
    if source != "none":
        raise InputError(
            f"the options set masks to {source}, which files have, but these pictures come from the graph"
            f"{'' if masks is None else ' with masks'}; connect the masks input, and set masks to none"
        )
    return None if masks is None or bool((masks == 1).all()) else masks


def latent_masks(mask: Tensor, count: int, size: tuple[int, int], name: str) -> list[Tensor]:
    """The noise mask of a batch of `count` latents, averaged to their size (h, w): one (1, h, w) for each.

    Raises InputError for another number of masks, and for one that leaves nothing to learn.
    """
    with torch.inference_mode(False):
        pixels = mask.detach().to("cpu", torch.float32).clone()
    pixels = pixels.reshape(-1, 1, *pixels.shape[-2:])
    if len(pixels) not in (1, count):
        raise InputError(f"{name} has {len(pixels)} masks for {count} pictures; give one for each, or one for all")
    if not bool(torch.isfinite(pixels).all()):
        raise InputError(f"the mask of {name} is not finite; wanted numbers from 0 to 1")
    small = functional.adaptive_avg_pool2d(pixels.clamp(0, 1), size)
    if not bool(small.flatten(1).amax(1).all()):
        raise InputError(f"the mask of {name} is all black: nothing of it would be learned; repair or remove it")
    return [small[min(index, len(small) - 1)] for index in range(count)]
