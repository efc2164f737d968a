"""Folders of pictures that are judged against each other: captions, one common size, tensors in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from PIL import Image, ImageOps
from torch import Tensor

from .atomic import check_spelling
from .data.pictures import inspect_picture, open_picture
from .data.sources import scan_folder
from .errors import InputError
from .home import expanded

__all__ = ["PictureSet", "Shown", "batches", "common_size", "names_of", "open_shown", "read_set", "tensor_of"]

_TOGETHER = 8  # pictures that a network sees at once


@dataclass(frozen=True)
class Shown:
    """One picture; `caption` is empty where none is known."""

    name: str  # relative to its folder, with "/"
    path: Path
    caption: str

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one folder; `drift` of the model that drew them, where it is known."""

    name: str
    folder: Path
    pictures: tuple[Shown, ...]
    drift: float | None = None

    def captioned(self, captions: Mapping[str, str]) -> PictureSet:
        """The same with captions by stem for the pictures that have none."""
        filled = (replace(one, caption=one.caption or captions.get(one.stem, "")) for one in self.pictures)
        return replace(self, pictures=tuple(filled))

    def captions(self) -> dict[str, str]:
        """The captions by stem."""
        return {one.stem: one.caption for one in self.pictures if one.caption}

    def check_captions(self, where: str) -> None:
        """Raise InputError for the first picture without one; `where` says what they are needed for."""
        bare = [one for one in self.pictures if not one.caption]
        if bare:
            raise InputError(
                f"{len(bare)} of {len(self.pictures)} pictures in {self.folder} have no caption, such as "
                f"{bare[0].name}; {where} needs them: write {bare[0].stem}.txt beside it, or name it as a real picture"
                " that has a caption"
            )


def read_set(folder: str | Path, name: str = "", least: int = 2) -> PictureSet:
    """The pictures of a folder with the captions beside them; InputError for fewer than `least`."""
    check_spelling(Path(folder))  # the report names it
    sources = scan_folder(folder).sources
    if len(sources) < least:
        raise InputError(
            f"{folder} has {len(sources)} picture{'s' * (len(sources) != 1)}; comparing sets needs at least {least} in"
            " each"
        )
    shown = tuple(Shown(source.name, source.path, source.caption or "") for source in sources)
    return PictureSet(name or Path(folder).name, Path(folder), shown)


def names_of(folders: Sequence[str]) -> list[str]:
    """Names for folders: the last part of their paths, or as much as tells them apart."""
    paths = [expanded(folder).absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError("a folder was given twice; give each set of pictures once")


def common_size(sets: Sequence[PictureSet], resolution: int) -> tuple[int, int]:
    """Width and height that all pictures are brought to: `resolution` square, or, for 0, the size that these share."""
    if resolution:
        return resolution, resolution
    found: dict[tuple[int, int], Path] = {}
    for path in (one.path for pictures in sets for one in pictures.pictures):
        found.setdefault(_size(path), path)
        if len(found) > 1:
            (size, first), (other, second) = found.items()
            raise InputError(
                f"{first} has {size[0]}x{size[1]} pixels and {second} has {other[0]}x{other[1]}; distances are of"
                f" pictures of one size: give --resolution {min(*size, *other)} to bring all of them to it"
            )
    return next(iter(found))


def open_shown(shown: Shown, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture, upright; at a size: scaled until it covers it, its middle cut out."""
    picture = open_picture(_read(shown.path), shown.name)
    return picture if size in (None, picture.size) else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def batches(pictures: PictureSet, size: tuple[int, int]) -> Iterator[tuple[Tensor, Sequence[Shown]]]:
    """Pictures as (B, 3, H, W) uint8, a few at a time, in their order."""
    for first in range(0, len(pictures.pictures), _TOGETHER):
        part = pictures.pictures[first : first + _TOGETHER]
        yield torch.stack([tensor_of(open_shown(shown, size)) for shown in part]), part


def tensor_of(picture: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) uint8."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()


def _size(path: Path) -> tuple[int, int]:
    header = inspect_picture(_read(path), path.name)
    return header.width, header.height


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"picture {path} cannot be read ({error.strerror or error}); check its permissions") from error
