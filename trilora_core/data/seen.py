"""A picture as training sees it: its crops, and what its mask leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image, ImageChops, ImageFilter

from .dataset import Item
from .framing import Frame

__all__ = ["MOST_FURTHER", "further_crops", "seen"]

MOST_FURTHER = 3  # crops behind the first
OUTLINE = (232, 233, 236)
VEIL = (92, 74, 140)  # over what a mask covers
VEILED = 0.45  # of the brightness that is left there


def further_crops(item: Item) -> tuple[Frame, ...]:
    """The crops behind the first one, a few at most; mirrored ones show nothing new."""
    return tuple(frame for frame in item.frames[1:] if not frame.flip)[:MOST_FURTHER]


def seen(item: Item, sizes: Sequence[tuple[int, int]], floor: float) -> list[Image.Image]:
    """The first crop of a picture and the further ones, drawn at `sizes`; none of an item without a picture.

    Masks darken what counts less; `floor` is the weight of what they cover. Raises InputError as opening does.
    """
    if item.open is None or not item.frames:
        return []
    image = item.open()
    mask = item.open_mask() if item.masks and item.open_mask is not None else None
    cuts = []
    for frame, size in zip((item.frames[0], *further_crops(item)), sizes, strict=True):
        here = replace(frame, size=size)  # at once: by way of the bucket's own size it would look the same
        cut = here.cut(image)
        cuts.append(cut if mask is None else _veiled(cut, here.cut(mask), floor))
    return cuts


def _veiled(image: Image.Image, mask: Image.Image, floor: float) -> Image.Image:
    """Darken what counts less, as far as it counts less, and draw the edge of the mask."""
    weight = mask.point([round(255 * floor + value * (1 - floor)) for value in range(256)])
    dim = Image.merge("RGB", [image.convert("L").point([round(value * VEILED) for value in range(256)])] * 3)
    covered = Image.blend(dim, Image.new("RGB", image.size, VEIL), 0.3)
    shown = Image.composite(image, covered, weight)
    inside = mask.point([255 * (value > 127) for value in range(256)])
    shown.paste(OUTLINE, mask=ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(3)), inside))
    return shown
