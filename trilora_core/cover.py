"""The cover of an adapter file: a small picture in its metadata and one beside it, where model browsers look."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image
from torch import Tensor

from .atomic import write_atomic
from .data.pictures import DECODE_ERRORS
from .errors import InputError
from .fileformat import Adapter
from .jsontext import read_json

__all__ = ["COVERS", "cover_size", "to_picture", "with_cover", "write_preview"]

COVERS = "ssmd_cover_images"  # kohya's additional networks: a JSON list of JPEGs in base64
_THUMBNAIL = "modelspec.thumbnail"  # the model spec: one JPEG as a data URL, 256 pixels wide
_COVER_SIDE, _THUMBNAIL_SIDE, _PREVIEW_SIDE = 512, 256, 1024
_QUALITY = 85
_FORMATS = ("JPEG", "PNG", "WEBP")  # of covers; other decoders of Pillow stay out


def to_picture(pixels: Tensor) -> Image.Image:
    """A picture of pixels (3 or 4, H, W) in [0, 1]."""
    eight_bits = (pixels[:3].detach().float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu()
    return Image.fromarray(eight_bits.contiguous().numpy())


def with_cover(adapter: Adapter, picture: Image.Image) -> Adapter:
    """The adapter with the picture as the only cover in its metadata, at most 512 pixels wide or high."""
    thumbnail = f"data:image/jpeg;base64,{_encoded(picture, _THUMBNAIL_SIDE)}"
    covers = json.dumps([_encoded(picture, _COVER_SIDE)])
    return Adapter(adapter.layers, adapter.metadata | {COVERS: covers, _THUMBNAIL: thumbnail})


def write_preview(path: Path, picture: Image.Image) -> Path:
    """Write NAME.preview.jpg beside the adapter file NAME.safetensors, where ComfyUI and AUTOMATIC1111 look for it."""
    output = path.with_name(f"{path.stem}.preview.jpg")
    data = _jpeg(picture, _PREVIEW_SIDE)
    write_atomic(output, lambda temporary: _write(temporary, data))
    return output


def cover_size(metadata: dict[str, str]) -> tuple[int, int] | None:
    """Width and height of the first cover in a file's metadata, None without one; InputError where it is damaged."""
    try:
        covers = read_json(metadata.get(COVERS) or "[]")
        if not covers:
            return None
        with Image.open(io.BytesIO(base64.b64decode(covers[0], validate=True)), formats=_FORMATS) as picture:
            return picture.size
    except (*DECODE_ERRORS, KeyError) as error:
        raise InputError(f"the cover in {COVERS} is damaged ({error}); save the file again with another one") from error


def _encoded(picture: Image.Image, side: int) -> str:
    return base64.b64encode(_jpeg(picture, side)).decode()


def _jpeg(picture: Image.Image, side: int) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=_QUALITY)
    return data.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
