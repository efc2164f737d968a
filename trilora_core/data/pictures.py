"""Find the pictures of a folder, and open any kind as upright 8-bit RGB, as a mask, or as its alpha channel."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageCms, UnidentifiedImageError, features
from torch import Tensor

from ..errors import InputError

__all__ = [
    "DECODE_ERRORS",
    "ENDINGS",
    "LARGEST_RATIO",
    "SMALLEST_SIDE",
    "Header",
    "inspect_picture",
    "open_alpha",
    "open_mask",
    "open_picture",
    "to_tensor",
]

_AVIF = "avif" in features.modules and features.check_module("avif")  # Pillow 11.3 and later, where it was built in

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff") + (".avif",) * _AVIF
SMALLEST_SIDE = 16  # pixels; below this there is nothing to learn from
LARGEST_RATIO = 16  # longer side over shorter side; the centre crop would keep less than 1/16 of the picture
LARGEST_PIXELS = 178_956_970  # where Pillow too speaks of a decompression bomb

# The content decides among these, whatever the name ends in. Other decoders of Pillow stay out: some run programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF") + ("AVIF",) * _AVIF

# What Pillow raises for files that it cannot decode: its own errors are OSErrors, its parsers leak the others.
DECODE_ERRORS = (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    RuntimeError,
    TypeError,
)

_ORIENTATION = 0x0112  # the EXIF tag: how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # the orientations that swap width and height
_PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # the chunks of a PNG that can hold one

_GRAY = ("1", "L", "LA")
_PROFILED = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of an ICC profile -> mode that it describes


class Header(NamedTuple):
    """What is known of a picture before its pixels: its upright size, and whether it says that some are transparent."""

    width: int
    height: int
    alpha: bool


def inspect_picture(data: bytes, name: str) -> Header:
    """Read the size of a picture after EXIF rotation, and whether it has transparency, from its header.

    Raises InputError as `open_picture` does, for what the header shows; broken pixels are found only there.
    """
    with _opened(data, name) as image:
        if image.format == "TIFF" and _orientation(image) != 1:
            image.load()  # Pillow turns these by itself, and says so only then
        width, height = image.size
        # Pillow decodes all of a PNG to look for an orientation, which may come last: not if there is none.
        turned = image.format != "PNG" or any(chunk in data for chunk in _PNG_ORIENTATIONS)
        if turned and _orientation(image) in _LYING:
            width, height = height, width
        return Header(width, height, image.has_transparency_data)


def open_picture(data: bytes, name: str) -> Image.Image:
    """Decode a picture as upright 8-bit RGB: EXIF rotation applied, alpha laid over white, first frame of many.

    Colours are brought to sRGB where a colour profile is embedded that can be used.
    Raises InputError that names the picture when it cannot be decoded or has an absurd size.
    """
    with _opened(data, name) as image:
        picture, alpha = _split(_upright(image))
        colours = _to_srgb(picture)
        return colours if alpha is None else _over(Image.new("RGB", colours.size, "white"), colours, alpha)


def open_alpha(data: bytes, name: str) -> Image.Image | None:
    """Decode the transparency of a picture, upright, as 8-bit gray (255 is opaque); None if it has none."""
    with _opened(data, name) as image:
        return _split(_upright(image))[1]


def open_mask(data: bytes, name: str) -> Image.Image:
    """Decode a picture of any kind as an upright 8-bit gray mask: white counts, black and transparent do not."""
    with _opened(data, name) as image:
        picture, alpha = _split(_upright(image))
        gray = picture.convert("L")
        return gray if alpha is None else _over(Image.new("L", gray.size, 0), gray, alpha)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB picture into a (3, H, W) float32 tensor in [0, 1]."""
    pixels = torch.from_numpy(numpy.array(image, dtype=numpy.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32).div_(255.0)


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Read the header, check the size that it declares, and turn what goes wrong from then on into InputError."""
    try:
        if not data:
            raise EOFError("the file is empty")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, name)
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"picture {name} is too large ({error}); scale it down or take it out") from error
    except DECODE_ERRORS as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error) or "bad data"
        raise InputError(f"picture {name} cannot be read ({reason}); repair it, take it out, or skip it") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    short, long = min(size), max(size)
    if width * height > LARGEST_PIXELS:
        raise InputError(
            f"picture {name} has {width}x{height} pixels; wanted at most {LARGEST_PIXELS:,}; "
            "scale it down or take it out"
        )
    if short < SMALLEST_SIDE or long > LARGEST_RATIO * short:
        raise InputError(
            f"picture {name} has {width}x{height} pixels; wanted a shorter side of at least {SMALLEST_SIDE} "
            f"and sides of at most {LARGEST_RATIO}:1; crop it or take it out"
        )


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):  # broken EXIF: shown as it is stored, as viewers do
        return 1


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Part the colours of a picture, in 8 bits, from its transparency; None where it has none."""
    image = _eight_bits(image)
    if not image.has_transparency_data:
        return image, None
    gray, image = image.mode in _GRAY, image.convert("RGBA")
    alpha = image.getchannel("A")
    return image.convert("L" if gray else "RGB"), alpha


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale gray pictures of more than 8 bits, which convert() would clip to white; ValueError beyond their range."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = numpy.asarray(image)
    full = 1 if image.mode == "F" else 65535
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= full):  # so that NaN is refused too
        raise ValueError(f"its gray values go from {low:g} to {high:g}, wanted 0 to {full}")
    result = Image.fromarray((pixels * (255.0 / full) + 0.5).astype(numpy.uint8))
    result.info = dict(image.info)
    if "transparency" in result.info:  # the gray value that is transparent
        result.info["transparency"] = int(result.info["transparency"] * (255.0 / full) + 0.5)
    return result


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = _usable_profile(image)
    if profile is None:
        return image.convert("RGB")
    source = image.convert(_PROFILED[profile.profile.xcolor_space])
    try:
        converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # a profile that cannot be applied; the pixels alone are shown, as viewers do
        converted = None
    return image.convert("RGB") if converted is None else converted


def _usable_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """Open the embedded ICC profile; None if there is none, it is sRGB, or it is not for this kind of picture."""
    data = image.info.get("icc_profile")
    if not data or not features.check_module("littlecms2"):
        return None
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(data))
    except ImageCms.PyCMSError:
        return None
    described = _PROFILED.get(profile.profile.xcolor_space)
    kind = "CMYK" if image.mode == "CMYK" else "L" if image.mode in _GRAY else "RGB"
    fits = described == kind or (described == "RGB" and kind == "L")
    known = (profile.profile.profile_description or "").casefold().startswith("srgb")  # by far the most
    return profile if fits and not known else None


def _over(paper: Image.Image, image: Image.Image, alpha: Image.Image) -> Image.Image:
    paper.paste(image, mask=alpha)
    return paper
