"""Find the pictures of a folder, open them as RGB, and fit them to a square."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError

__all__ = ["ENDINGS", "LARGEST_RATIO", "SMALLEST_SIDE", "fit_square", "list_pictures", "open_picture", "to_tensor"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SMALLEST_SIDE = 16  # pixels; below this there is nothing to learn from
LARGEST_RATIO = 16  # longer side over shorter side; the centre crop would keep less than 1/16 of the picture
LARGEST_PIXELS = 178_956_970  # where Pillow too speaks of a decompression bomb

# What Pillow raises for files that it cannot decode: its own errors are OSErrors, its parsers leak the others.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def list_pictures(folder: str | Path) -> list[Path]:
    """List the pictures of a folder (not of its subfolders) in natural order, hidden files left out; else InputError.

    The order is that of the names alone, so that it is the same on every machine: 2.png comes before 10.png.
    """
    if not str(folder).strip():
        raise InputError("no picture folder was given; name the folder that holds the pictures")
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise InputError(f"picture folder {folder} does not exist; check the path")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; wanted the folder that holds the pictures")
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"picture folder {folder} cannot be read ({error.strerror}); check its permissions") from error
    pictures = [entry for entry in entries if entry.suffix.lower() in ENDINGS and entry.is_file()]
    if not pictures:
        raise InputError(
            f"picture folder {folder} has no pictures; put files that end in {' '.join(ENDINGS)} directly into it"
        )
    return sorted(pictures, key=lambda path: _natural(path.name))


def open_picture(data: bytes, name: str) -> Image.Image:
    """Decode a picture as upright 8-bit RGB: EXIF rotation applied, alpha laid over white, first frame of many.

    Raises InputError that names the picture when it cannot be decoded or has an absurd size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.size, name)
            return _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"picture {name} is too large ({error}); scale it down or take it out") from error
    except _DECODE_ERRORS as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error) or "bad data"
        raise InputError(f"picture {name} cannot be read ({reason}); repair it, take it out, or skip it") from error


def fit_square(image: Image.Image, resolution: int) -> Image.Image:
    """Scale the shorter side to `resolution` pixels and keep the centre square, in one resampling (Lanczos)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB picture into a (3, H, W) float32 tensor in [0, 1]."""
    pixels = torch.from_numpy(numpy.array(image, dtype=numpy.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32).div_(255.0)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray; convert() would clip it to white
        gray = numpy.asarray(image, dtype=numpy.int64).clip(0, 65535) // 257
        image = Image.fromarray(gray.astype(numpy.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", name.casefold())
    # Numbers and words never meet in a comparison: odd positions are numbers, even ones are words.
    return [(1, int(part), "") if index % 2 else (0, 0, part) for index, part in enumerate(parts)], name
