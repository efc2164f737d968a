"""A data set: pictures encoded to latents and captions encoded to conditioning, once, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy
import torch
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..errors import InputError
from .captions import caption_or_trigger, read_caption
from .pictures import fit_square, list_pictures, open_picture, to_tensor

__all__ = ["Dataset", "Encoder", "Progress", "load_folder", "load_images"]

PICTURES_AT_ONCE = 4  # encoded together: bounds the memory, large enough to keep a device busy
CAPTIONS_AT_ONCE = 16

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (done, total), pictures and distinct captions counted alike


class Encoder(Protocol):
    """What turns pictures into latents and captions into conditioning; the same as in train.py, seen from here."""

    @property
    def fingerprint(self) -> str: ...
    def pictures(self, images: Tensor) -> Tensor: ...
    def captions(self, texts: Sequence[str]) -> list[object]: ...


@dataclass(frozen=True)
class Dataset:
    """What a run trains on; item i of each list belongs to the same picture. Latents are float32 on the CPU.

    `content_hash` covers the bytes of the pictures in their order, the captions, the resolution and the encoder,
    not the names of files or folders: a data set that was only moved keeps its hash.
    """

    latents: list[Tensor]  # each (C, h, w)
    cond: list[object]  # equal captions share one object
    names: tuple[str, ...]
    captions: tuple[str, ...]
    resolution: int
    trigger_word: str
    content_hash: str
    skipped: tuple[str, ...] = ()  # one message per picture that could not be read

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class _Item:
    name: str
    caption: str
    digest: bytes  # SHA-256 of the picture as it came
    image: Image.Image | None  # None: not readable, `problem` says why
    problem: str = ""


def load_folder(config: DataConfig, encoder: Encoder, progress: Progress | None = None) -> Dataset:
    """Read and encode the pictures of `config.folder` and the .txt captions beside them.

    Raises InputError for a missing or empty folder, a caption that is missing or not UTF-8, and a picture that
    cannot be read, unless `config.skip_unreadable`: then the picture is left out and named in `skipped`.
    """
    paths = list_pictures(config.folder)
    captions = [read_caption(path, config.trigger_word) for path in paths]  # all at first: errors before the work
    items = (_read_item(path, caption, config) for path, caption in zip(paths, captions, strict=True))
    return _encode(items, captions, config, encoder, progress)


def load_images(
    images: Tensor,
    captions: Sequence[str],
    config: DataConfig,
    encoder: Encoder,
    progress: Progress | None = None,
) -> Dataset:
    """Encode pictures (B, H, W, 3) in [0, 1] that are already in memory.

    `captions` has one text per picture, or one for all, or none; a blank one becomes the trigger word.
    Raises InputError for another shape, another number of captions, or a picture without caption.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or not images.shape[0]:
        raise InputError(f"images have the shape {tuple(images.shape)}; wanted (pictures, height, width, 3)")
    count = images.shape[0]
    if len(captions) not in (0, 1, count):
        raise InputError(f"{len(captions)} captions for {count} pictures; give one per picture, one for all, or none")
    names = [f"picture_{index + 1}" for index in range(count)]
    texts = list(captions) if len(captions) == count else list(captions or [""]) * count
    texts = [caption_or_trigger(text, config.trigger_word, name) for text, name in zip(texts, names, strict=True)]
    items = (_image_item(images[index], names[index], texts[index], config) for index in range(count))
    return _encode(items, texts, config, encoder, progress)


def _read_item(path: Path, caption: str, config: DataConfig) -> _Item:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"picture {path.name} cannot be read ({error.strerror}); check its permissions") from error
    digest = hashlib.sha256(data).digest()
    try:
        image = open_picture(data, path.name)
    except InputError as error:
        if not config.skip_unreadable:
            raise
        return _Item(path.name, caption, digest, None, str(error))
    return _Item(path.name, caption, digest, fit_square(image, config.resolution))


def _image_item(pixels: Tensor, name: str, caption: str, config: DataConfig) -> _Item:
    values = pixels.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{name} has values that are not finite; wanted numbers in [0, 1]")
    array = values.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    digest = hashlib.sha256(str(array.shape).encode() + numpy.ascontiguousarray(array).tobytes()).digest()
    return _Item(name, caption, digest, fit_square(Image.fromarray(array), config.resolution))


def _encode(
    items: Iterable[_Item], captions: Sequence[str], config: DataConfig, encoder: Encoder, progress: Progress | None
) -> Dataset:
    pictures, texts = len(captions), list(dict.fromkeys(captions))
    report = progress or (lambda done, total: None)
    latents: list[Tensor] = []
    kept: list[_Item] = []
    skipped: list[str] = []
    for batch in _batches(items, PICTURES_AT_ONCE):
        readable = [(item, item.image) for item in batch if item.image is not None]
        skipped += [item.problem for item in batch if item.image is None]
        if readable:
            latents += _keep(encoder.pictures(torch.stack([to_tensor(image) for _, image in readable])))
        kept += [replace(item, image=None) for item, _ in readable]  # the pixels are not kept
        report(len(kept) + len(skipped), pictures + len(texts))
    if not kept:
        raise InputError(f"none of the {pictures} pictures can be read; the first: {skipped[0]}")
    cond = _encode_captions(texts, encoder, lambda done: report(pictures + done, pictures + len(texts)))
    return Dataset(
        latents=latents,
        cond=[cond[item.caption] for item in kept],
        names=tuple(item.name for item in kept),
        captions=tuple(item.caption for item in kept),
        resolution=config.resolution,
        trigger_word=config.trigger_word,
        content_hash=_content_hash(kept, config, encoder),
        skipped=tuple(skipped),
    )


def _encode_captions(texts: Sequence[str], encoder: Encoder, report: Callable[[int], None]) -> dict[str, object]:
    cond: dict[str, object] = {}
    for batch in _batches(texts, CAPTIONS_AT_ONCE):
        cond.update(zip(batch, encoder.captions(batch), strict=True))
        report(len(cond))
    return cond


def _keep(latents: Tensor) -> list[Tensor]:
    # Cloned outside inference mode, which a host may be in: its tensors would refuse autograd later.
    with torch.inference_mode(False):
        return [latent.detach().to("cpu", torch.float32).clone() for latent in latents]


def _content_hash(items: Sequence[_Item], config: DataConfig, encoder: Encoder) -> str:
    total = hashlib.sha256(f"trilora data 1 {config.resolution} {encoder.fingerprint}".encode())
    for item in items:
        total.update(item.digest + hashlib.sha256(item.caption.encode()).digest())
    return total.hexdigest()


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
