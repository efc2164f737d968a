"""Which rectangle of a picture is seen, and at which size: aspect-ratio buckets, crops, and mirroring."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from PIL import Image

from ..config_data import FramingConfig
from ..errors import InputError

__all__ = ["Frame", "bucket", "bucket_step", "frames"]

LARGEST_STEP = 64  # pixels; above it buckets lie so far apart that much of a picture is cut off
SMALLEST_STEP = 8  # pixels of a picture that one value of its latents stands for


@dataclass(frozen=True)
class Frame:
    """One view of a picture: `box` is cut out of it, scaled to `size`, and mirrored left to right if `flip`."""

    size: tuple[int, int]  # width and height of the bucket, in pixels
    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the upright picture
    flip: bool
    original: tuple[int, int]  # width and height of the upright picture, in pixels

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of the cut, in pixels of the scaled (and mirrored) picture, which SDXL is told (Podell 2023)."""
        left, top, right, bottom = self.box
        start = self.original[0] - right if self.flip else left
        return round(start * self.size[0] / (right - left)), round(top * self.size[1] / (bottom - top))

    def cut(self, image: Image.Image) -> Image.Image:
        """Cut this view out of the upright picture or out of its mask, in one resampling (Lanczos)."""
        if image.size != self.original:
            got, wanted = ("x".join(map(str, size)) for size in (image.size, self.original))
            raise InputError(f"an image of {got} pixels cannot be cut as one of {wanted}; scale it first")
        cut = image.resize(self.size, Image.Resampling.LANCZOS, box=self.box)
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else cut

    def key(self) -> str:
        """Spell out everything that decides the pixels of a cut, exactly: part of the key of what is cached."""
        box = ",".join(repr(float(side)) for side in self.box)
        return f"{self.size[0]}x{self.size[1]}:{box}{':flip' if self.flip else ''}"


def bucket_step(resolution: int, framing: FramingConfig) -> int:
    """Return what the sides of buckets are multiples of, in pixels; InputError if the resolution is not one.

    Automatic is an eighth of the resolution, from 8 to 64, or the next multiple of 8 below that divides it.
    """
    if framing.step:
        steps = [framing.step]
    else:
        eighth = (resolution // 8 + SMALLEST_STEP // 2) // SMALLEST_STEP * SMALLEST_STEP
        steps = list(range(min(max(eighth, SMALLEST_STEP), LARGEST_STEP), 0, -SMALLEST_STEP))
    for step in steps:
        if resolution % step == 0:
            return step
    below = resolution // step * step
    nearest = f"{below} or {below + step}" if below else str(step)
    hint = ", or another framing.step" if framing.step else ""
    raise InputError(f"resolution {resolution} is not a multiple of {step}; choose {nearest}{hint}")


def bucket(width: int, height: int, resolution: int, framing: FramingConfig) -> tuple[int, int]:
    """Choose the size, in pixels, at which a picture of `width` x `height` is seen.

    Sides are multiples of the step and the area is at most `resolution` squared. The shape is the nearest that there
    is. A picture that would have to be enlarged gets the largest size that fits into it, unless `framing.upscale`;
    InputError if that is less than one step.
    """
    step = bucket_step(resolution, framing)
    size = _nearest(Fraction(width, height), resolution, step) if framing.buckets else (resolution, resolution)
    if framing.upscale or (size[0] <= width and size[1] <= height):
        return size
    size = _fitting(width, height, resolution, step, framing.buckets)
    if min(size) < step:
        raise InputError(
            f"the picture has {width}x{height} pixels, less than the smallest bucket {step}x{step}; "
            "allow upscaling, or take it out"
        )
    return size


def frames(width: int, height: int, resolution: int, framing: FramingConfig, digest: bytes) -> tuple[Frame, ...]:
    """List every view of an upright picture: each crop of it, then the same ones mirrored if `framing.flip`.

    Random crops follow from `digest`, the SHA-256 of the picture's file, alone: they are the same in every run and on
    every machine, all different, and fewer than `framing.crops` where there are not that many. Raises as `bucket`.
    """
    size = bucket(width, height, resolution, framing)
    wide = width * size[1] >= height * size[0]  # wider than its bucket: sides are cut off, otherwise top and bottom
    pixel = Fraction(height, size[1]) if wide else Fraction(width, size[0])  # one of the cut, in those of the picture
    spare = Fraction(width if wide else height) / pixel - size[0 if wide else 1]  # what is cut off, in those of the cut
    places = _places(int(spare), digest, framing.crops) if framing.crop == "random" else (int(spare / 2),)
    # Whole pixels of the scaled picture, so that a picture that is not scaled is cut without any resampling.
    boxes = [_box((place, 0) if wide else (0, place), size, pixel) for place in places]
    flips = (False, True) if framing.flip else (False,)
    return tuple(Frame(size, box, flip, (width, height)) for flip in flips for box in boxes)


def _box(corner: tuple[int, int], size: tuple[int, int], pixel: Fraction) -> tuple[float, float, float, float]:
    (left, top), (width, height) = corner, size
    # Exact until here: rounding to the nearest float cannot lead out of the picture, whose sides are whole.
    return float(left * pixel), float(top * pixel), float((left + width) * pixel), float((top + height) * pixel)


def _places(last: int, digest: bytes, count: int) -> tuple[int, ...]:
    """Draw `count` different numbers from 0 to `last`, the same ones for the same digest; all where these are fewer."""
    if last < count:
        return tuple(range(last + 1))
    drawn: dict[int, None] = {}
    index = 0
    while len(drawn) < count:
        number = int.from_bytes(hashlib.sha256(digest + index.to_bytes(8, "big")).digest(), "big")
        drawn[number * (last + 1) >> 256] = None
        index += 1
    return tuple(drawn)


def _nearest(shape: Fraction, resolution: int, step: int) -> tuple[int, int]:
    """Find the bucket whose ratio of width to height is nearest to `shape`; of two that are as near, the larger."""
    shapes, sizes = _buckets(resolution, step)
    at = bisect_left(shapes, shape)
    around = range(max(at - 1, 0), min(at + 1, len(shapes)))
    return sizes[min(around, key=lambda i: (max(shapes[i] / shape, shape / shapes[i]), -sizes[i][0] * sizes[i][1]))]


@lru_cache(maxsize=16)
def _buckets(resolution: int, step: int) -> tuple[list[Fraction], list[tuple[int, int]]]:
    """List all shapes in rising order, and the largest size of each: one side cannot grow without too large an area."""
    area, longest = resolution**2, 2 * resolution
    shortest = -(-resolution // (2 * step)) * step
    largest: dict[Fraction, tuple[int, int]] = {}
    for side in range(shortest, longest + 1, step):
        other = min(area // side, longest) // step * step
        if other < shortest:
            continue
        for size in ((side, other), (other, side)):
            known = largest.get(Fraction(*size), (0, 0))
            largest[Fraction(*size)] = max(known, size)  # of one shape: the wider is the larger
    shapes = sorted(largest)
    return shapes, [largest[shape] for shape in shapes]


def _fitting(width: int, height: int, resolution: int, step: int, buckets: bool) -> tuple[int, int]:
    """Cut both sides down to multiples of the step, the longer one further while the area is too large."""
    longest = 2 * resolution
    width, height = min(width, longest) // step * step, min(height, longest) // step * step
    if not buckets:
        width = height = min(width, height, resolution)
    while width * height > resolution**2:
        width, height = (width - step, height) if width >= height else (width, height - step)
    return width, height
