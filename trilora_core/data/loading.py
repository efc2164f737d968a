"""Read pictures and captions from a folder or from memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..config_data import DataConfig
from ..errors import InputError
from .cache import Facts, MemoryStore, Store
from .captions import final_caption
from .dataset import Dataset, Encoder
from .encoding import Picture, Progress, encoded, unencoded
from .framing import Frame, bucket_step, frames
from .pictures import inspect_picture, open_alpha, open_mask, open_picture
from .sources import Source, scan_folder

__all__ = ["load_folder", "load_images", "survey_folder"]

T = TypeVar("T")


def load_folder(
    config: DataConfig, encoder: Encoder, store: Store | None = None, progress: Progress | None = None
) -> Dataset:
    """Read the pictures of `config.folder` with their captions, and encode what `store` does not hold.

    Raises InputError for a folder, caption, mask or picture that cannot be used; with `config.skip_unreadable` such a
    picture is left out and named in `skipped`.
    """
    store = store or MemoryStore()
    pictures, skipped, notes = _from_folder(config, store, progress)
    return encoded(pictures, config, encoder, store, progress, skipped, notes)


def survey_folder(config: DataConfig, store: Store | None = None, progress: Progress | None = None) -> Dataset:
    """The same data set before anything is encoded: good for a report, not for training.

    A picture without caption has an empty one here, and one that cannot be used is left out and named in `skipped`;
    else raises as `load_folder`.
    """
    store = store or MemoryStore()
    lenient = replace(config, skip_unreadable=True)
    pictures, skipped, notes = _from_folder(lenient, store, progress, captioned=False)
    return unencoded(pictures, config, store, skipped, notes)


def _from_folder(
    config: DataConfig, store: Store, progress: Progress | None = None, *, captioned: bool = True
) -> tuple[list[Picture], tuple[str, ...], tuple[str, ...]]:
    """The pictures that can be used, why others cannot, and notes."""
    bucket_step(config.resolution, config.framing)  # what is wrong for all is no fault of the first picture
    scan = scan_folder(config.folder, config.masks.folder if config.masks.source == "folder" else "")
    captions = [_caption(source, config, captioned) for source in scan.sources]  # all at first: errors before the work
    pictures, skipped = [], []
    for index, (source, caption) in enumerate(zip(scan.sources, captions, strict=True)):
        if progress:
            progress(index, 2 * len(captions))  # a new file is read whole: gigabytes in a large set
        try:
            pictures.append(_from_file(source, caption, config, store))
        except InputError as error:
            if not config.skip_unreadable:
                raise
            skipped.append(str(error))
    if not pictures:
        raise InputError(f"none of the {len(skipped)} pictures can be used; the first: {skipped[0]}")
    return pictures, tuple(skipped), scan.notes


def load_images(
    images: Tensor,
    captions: Sequence[str],
    config: DataConfig,
    encoder: Encoder,
    store: Store | None = None,
    progress: Progress | None = None,
    masks: Tensor | None = None,
) -> Dataset:
    """Encode pictures (B, H, W, 3) in [0, 1] that are already in memory, with masks (B, H, W) or (1, H, W) if any.

    `captions` has one text per picture, or one for all, or none; a blank one becomes the trigger word.
    Raises InputError for another shape, another number of captions or masks, or a picture without caption.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or not images.shape[0]:
        raise InputError(f"images have the shape {tuple(images.shape)}; wanted (pictures, height, width, 3)")
    count = images.shape[0]
    if len(captions) not in (0, 1, count):
        raise InputError(f"{len(captions)} captions for {count} pictures; give one per picture, one for all, or none")
    if masks is not None and (masks.ndim != 3 or masks.shape[0] not in (1, count)):
        raise InputError(
            f"masks have the shape {tuple(masks.shape)}; wanted one of {tuple(images.shape[1:3])} for each"
        )
    texts = list(captions) if len(captions) == count else list(captions or [""]) * count
    pictures = [
        _from_pixels(images[index], None if masks is None else masks[min(index, len(masks) - 1)], name, text, config)
        for index, text in enumerate(texts)
        for name in [f"picture_{index + 1}"]
    ]
    return encoded(pictures, config, encoder, store or MemoryStore(), progress)


def _caption(source: Source, config: DataConfig, needed: bool) -> str:
    try:
        return final_caption(source.caption, config.trigger_word, source.subset, config.captions, source.name)
    except InputError:
        if needed:
            raise
        return ""


# --- where pictures come from -------------------------------------------------


def _from_file(source: Source, caption: str, config: DataConfig, store: Store) -> Picture:
    facts = _facts(source.path, source.name, store)
    digest = b""
    opener: Callable[[], Image.Image | None] | None = None
    if config.masks.source == "folder" and source.mask is not None:
        mask = _facts(source.mask, source.mask.name, store)
        if (mask.width, mask.height) != (facts.width, facts.height):
            raise InputError(
                f"mask {source.mask.name} has {mask.width}x{mask.height} pixels, its picture {source.name} has "
                f"{facts.width}x{facts.height}; make them the same size"
            )
        digest = b"file" + mask.digest
        opener = functools.partial(_open_file, source.mask, source.mask.name, mask.digest, open_mask)
    elif config.masks.source == "alpha" and facts.alpha:
        digest = b"alpha" + facts.digest
        opener = functools.partial(_open_file, source.path, source.name, facts.digest, open_alpha)
    return Picture(
        name=source.name,
        caption=caption,
        facts=facts,
        frames=_frames(facts, source.name, config),
        open=functools.partial(_open_file, source.path, source.name, facts.digest, open_picture),
        mask_digest=digest,
        open_mask=opener,
        repeats=source.repeats,
        subset=source.subset,
        written=source.caption is not None,
    )


def _frames(facts: Facts, name: str, config: DataConfig) -> tuple[Frame, ...]:
    try:
        return frames(facts.width, facts.height, config.resolution, config.framing, facts.digest)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _facts(path: Path, name: str, store: Store) -> Facts:
    """Digest and size of a picture file, from the store if the file is as it was then."""
    facts = store.facts(path)
    if facts is None:
        data = _read(path, name)
        digest = hashlib.sha256(data).digest()
        try:
            header = inspect_picture(data, name)
            facts = Facts(digest, header.width, header.height, header.alpha)
        except InputError as error:
            facts = Facts(digest, 0, 0, False, str(error))
        store.remember(path, facts)
    if facts.problem:
        raise InputError(facts.problem)
    return facts


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"picture {name} cannot be read: {error.strerror or error}; check the file") from error


def _open_file(path: Path, name: str, digest: bytes, decode: Callable[[bytes, str], T]) -> T:
    data = _read(path, name)
    if hashlib.sha256(data).digest() != digest:
        raise InputError(f"picture {name} has changed since it was found; start again")
    return decode(data, name)


def _from_pixels(pixels: Tensor, mask: Tensor | None, name: str, text: str, config: DataConfig) -> Picture:
    image = _to_image(pixels, name)
    shape = f"{image.width}x{image.height}".encode()
    facts = Facts(hashlib.sha256(shape + image.tobytes()).digest(), image.width, image.height, False)
    digest, opener = b"", None
    if mask is not None:
        if tuple(mask.shape) != tuple(pixels.shape[:2]):
            size = f"{mask.shape[1]}x{mask.shape[0]}"
            raise InputError(
                f"the mask of {name} has {size} pixels, the picture {image.width}x{image.height}; scale it first"
            )
        digest = hashlib.sha256(shape + _to_image(mask, name).tobytes()).digest()
        opener = functools.partial(_to_image, mask, name)
    return Picture(
        name=name,
        caption=final_caption(text, config.trigger_word, "", config.captions, name),
        facts=facts,
        frames=_frames(facts, name, config),
        open=functools.partial(_to_image, pixels, name),
        mask_digest=digest,
        open_mask=opener,
        written=bool(text.strip()),
    )


def _to_image(pixels: Tensor, name: str) -> Image.Image:
    values = pixels.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{name} has values that are not finite; wanted numbers in [0, 1]")
    return Image.fromarray(values.clamp(0, 1).mul(255).round().to(torch.uint8).numpy())
