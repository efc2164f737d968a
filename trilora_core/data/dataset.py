"""What a run trains on: pictures and captions, encoded once and kept in a store under keys of their content."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from ..config_data import DataConfig
from ..errors import InputError
from .cache import MemoryStore, Store
from .framing import Frame

__all__ = ["Dataset", "Encoder", "Item", "Sample", "load_tensors", "normal"]


@runtime_checkable
class Encoder(Protocol):
    """What turns pictures into latents and captions into conditioning.

    The results are plain structures of tensors on the CPU that do not depend on what else is encoded with them.
    """

    @property
    def fingerprint(self) -> str:
        """Of everything that the results depend on."""
        ...

    @property
    def picture_fingerprint(self) -> str:
        """Of what latents depend on."""
        ...

    @property
    def caption_fingerprint(self) -> str:
        """Of what conditioning depends on."""
        ...

    def pictures(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1] -> latents (B, C, h, w), before any scaling of the model."""
        ...

    def captions(self, texts: Sequence[str], *, weights: bool = False) -> list[Any]:
        """One conditioning for each text; `weights` reads (word:1.2) as a weight."""
        ...

    def placed(self, cond: Any, frame: Frame) -> Any:
        """The conditioning of a picture that was cut by `frame`, for models that are told so; else as it is."""
        ...


@dataclass(frozen=True)
class Item:
    """One picture of a data set; what was encoded lies in the store under these keys."""

    name: str
    caption: str  # as the model sees it, before any shuffle
    shape: Hashable  # only pictures of one shape fit into one batch
    latents: tuple[str, ...]  # one for each frame
    cond: tuple[str, ...]  # one for each order of the caption's tags
    masks: tuple[str, ...] = ()  # one for each frame, or none
    frames: tuple[Frame, ...] = ()
    repeats: int = 1
    subset: str = ""
    digest: bytes = b""  # SHA-256 of the picture as it came
    written: bool = True  # the caption was found with the picture
    open: Callable[[], Image.Image] | None = field(default=None, compare=False)  # the whole upright picture
    open_mask: Callable[[], Image.Image | None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Sample:
    """One look at a picture: latents (C, h, w), conditioning, where the loss counts, (1, h, w) in [0, 1], caption."""

    latents: Tensor
    cond: Any
    mask: Tensor | None = None
    text: str | None = None  # what `cond` encodes; None where only the encoding came


@dataclass(frozen=True)
class Dataset:
    """Encoded pictures and captions.

    `content_hash` covers the bytes of pictures and masks in their order, captions, repeats, the options and the
    encoder, not the names of files or folders: a data set that was only moved keeps its hash.
    """

    items: tuple[Item, ...]
    store: Store
    config: DataConfig
    content_hash: str
    blank: str = ""  # key of the empty caption's conditioning, where captions are dropped
    placed: Callable[[Any, Frame], Any] | None = None
    skipped: tuple[str, ...] = ()  # one message for each picture that could not be used
    notes: tuple[str, ...] = ()  # what else the reader of the folder should know
    texts: Mapping[str, str] = field(default_factory=dict)  # captions by the keys of their conditioning

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every picture."""
        return tuple(item.name for item in self.items)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption of every picture."""
        return tuple(item.caption for item in self.items)

    @property
    def epoch_size(self) -> int:
        """Looks at pictures in one epoch."""
        total = sum(item.repeats for item in self.items)
        return min(self.config.max_train_samples or total, total)

    def sample(self, index: int, chance: random.Random) -> Sample:
        """One of the crops, flips and caption orders of picture `index`, as `chance` has it."""
        item = self.items[index]
        variant = chance.randrange(len(item.latents))
        order = chance.randrange(len(item.cond))
        dropped = chance.random() < self.config.captions.dropout
        key = self.blank if dropped else item.cond[order]
        cond = self._get(key)
        if self.placed is not None and item.frames:
            cond = self.placed(cond, item.frames[variant])
        mask = self._mask(item.masks[variant]) if item.masks else None
        return Sample(self._get(item.latents[variant]), cond, mask, self.texts.get(key))

    def part(self, first: int, step: int) -> Dataset:
        """Every step-th picture from `first` on."""
        return replace(self, items=self.items[first::step])

    def _get(self, key: str) -> Any:
        try:
            return self.store.get(key)
        except KeyError as error:
            raise InputError(
                "a cached picture or caption is damaged, or was removed to make room for another data set; load this "
                "data set again, with a larger cache if it does not fit"
            ) from error

    def _mask(self, key: str) -> Tensor:
        mask: Tensor = self._get(key)
        floor = self.config.masks.floor
        return mask * (1 - floor) + floor


def load_tensors(
    latents: Sequence[Tensor],
    cond: Sequence[Any],
    *,
    captions: Sequence[str] = (),
    masks: Sequence[Tensor | None] = (),
    config: DataConfig | None = None,
) -> Dataset:
    """A data set of what is encoded already: latents (C, h, w) with one conditioning each, kept in memory.

    `masks` are (1, h, w) in [0, 1], one for each picture, or none. Raises InputError for numbers that do not match and
    for latents that are not finite.
    """
    if not latents or len(cond) != len(latents):
        raise InputError(f"{len(latents)} latents came with {len(cond)} conditionings; wanted one for each, at least 1")
    store, total = MemoryStore(), hashlib.sha256(f"trilora tensors 2 {config.trigger_word if config else ''}".encode())
    items = []
    for index, (latent, entry) in enumerate(zip(latents, cond, strict=True)):
        name = f"picture {index + 1}"
        mask = masks[index] if masks else None
        kept = normal(latent)
        if kept.ndim != 3 or not bool(torch.isfinite(kept).all()):
            raise InputError(f"{name} has latents of shape {tuple(kept.shape)}; wanted finite numbers, (C, h, w)")
        digest = hashlib.sha256(kept.numpy().tobytes())
        for part in _parts((entry, mask)):
            digest.update(part)
        keys = [f"{kind} {index}" for kind in ("latents", "cond", "mask")]
        store.put(keys[0], kept)
        store.put(keys[1], entry)
        if mask is not None:
            store.put(keys[2], normal(mask))
        text = captions[index] if captions else ""
        items.append(
            Item(
                name=name,
                caption=text,
                shape=tuple(kept.shape),
                latents=(keys[0],),
                cond=(keys[1],),
                masks=(keys[2],) if mask is not None else (),
                digest=digest.digest(),
                written=bool(text),
            )
        )
        total.update(digest.digest() + hashlib.sha256(text.encode()).digest())
    return Dataset(tuple(items), store, config or DataConfig(), total.hexdigest())


def normal(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that autograd takes."""
    # Cloned outside inference mode, which a host may be in: its tensors would refuse autograd later.
    with torch.inference_mode(False):
        return tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


def _parts(value: Any) -> Iterator[bytes]:
    """What a structure of tensors and plain values holds, in an order that does not depend on how it was built."""
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)}".encode()
        yield value.detach().float().cpu().contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield f"{key}:".encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)};".encode()
        for entry in value:
            yield from _parts(entry)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield repr(value).encode()
