"""Encode what the store does not hold yet: decoded in threads, named by its content, kept at once."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..config_data import DataConfig
from ..errors import InputError
from .cache import Facts, Store
from .captions import variants
from .dataset import Dataset, Encoder, Item, normal
from .framing import Frame
from .pictures import to_tensor

__all__ = ["Picture", "Progress", "encode_captions", "encoded", "unencoded"]

DECODERS = 2  # threads: enough to keep one encoder busy, and the host has work of its own
AHEAD = 8  # pictures decoded in advance: bounds the memory

# (done, total): each picture counts when it is found and when it is encoded, each caption when it is encoded. The total
# is known in full once all pictures are found.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Picture:
    """A picture before it is encoded, wherever it comes from."""

    name: str
    caption: str
    facts: Facts
    frames: tuple[Frame, ...]
    open: Callable[[], Image.Image]
    mask_digest: bytes = b""  # empty: no mask
    open_mask: Callable[[], Image.Image | None] | None = None
    repeats: int = 1
    subset: str = ""
    written: bool = True


def encoded(
    pictures: Sequence[Picture],
    config: DataConfig,
    encoder: Encoder,
    store: Store,
    progress: Progress | None,
    skipped: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Name everything by its content, then make what is missing."""
    prints = (encoder.picture_fingerprint, encoder.caption_fingerprint)
    texts: dict[str, str] = {}  # key -> text
    items = [_item(picture, config, prints, texts) for picture in pictures]
    blank = _caption_key("", config, prints[1])
    if config.captions.dropout:
        texts[blank] = ""
    report = progress or (lambda done, total: None)
    seen, total = len(items), 2 * len(items) + len(texts)
    broken = _encode_pictures(items, encoder, store, lambda done: report(seen + done, total))
    if broken and (len(broken) == len(items) or not config.skip_unreadable):
        raise next(iter(broken.values()))
    _encode_captions(texts, config, encoder, store, lambda done: report(2 * seen + done, total))
    store.flush()
    whole = tuple(item for item in items if item.name not in broken)
    skipped = (*skipped, *map(str, broken.values()))
    return replace(_dataset(whole, config, store, skipped, notes, blank=blank, placed=encoder.placed), texts=texts)


def encode_captions(
    texts: Sequence[str], encoder: Encoder, store: Store, progress: Progress | None = None
) -> tuple[str, ...]:
    """Encode captions that belong to no picture; the key of each one's conditioning."""
    config = DataConfig()
    keys = tuple(_caption_key(text, config, encoder.caption_fingerprint) for text in texts)
    report = progress or (lambda done, total: None)
    _encode_captions(dict(zip(keys, texts, strict=True)), config, encoder, store, lambda done: report(done, len(keys)))
    return keys


def unencoded(
    pictures: Sequence[Picture],
    config: DataConfig,
    store: Store,
    skipped: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Dataset:
    """The data set as `encoded` would make it, with nothing behind its keys."""
    items = tuple(_item(picture, config, ("", ""), {}) for picture in pictures)
    return _dataset(items, config, store, skipped, notes)


def _dataset(
    items: tuple[Item, ...],
    config: DataConfig,
    store: Store,
    skipped: tuple[str, ...],
    notes: tuple[str, ...],
    blank: str = "",
    placed: Callable[[Any, Frame], Any] | None = None,
) -> Dataset:
    total = hashlib.sha256()
    # keys cover pixels, crops, captions and encoder; these options act on each draw, or are written into the file
    options = (config.captions.dropout, config.masks.floor, config.max_train_samples, config.trigger_word)
    total.update(f"trilora data 2 {options}".encode())
    for item in items:
        total.update("|".join((*item.latents, *item.masks, *item.cond, f"{item.repeats};")).encode())
    return Dataset(items, store, config, total.hexdigest(), blank, placed, skipped, notes)


def _item(picture: Picture, config: DataConfig, prints: tuple[str, str], texts: dict[str, str]) -> Item:
    digest, cuts, by = picture.facts.digest, picture.frames, prints[0]
    found = {_caption_key(text, config, prints[1]): text for text in variants(picture.caption, config.captions)}
    texts |= found
    latents = (_key("latents", digest.hex(), cut.key(), by) for cut in cuts)
    masks = (_key("mask", picture.mask_digest.hex(), cut.key(), by) for cut in cuts)
    return Item(
        name=picture.name,
        caption=picture.caption,
        shape=cuts[0].size,
        latents=tuple(latents),
        cond=tuple(found),
        masks=tuple(masks) if picture.mask_digest else (),
        frames=cuts,
        repeats=picture.repeats,
        subset=picture.subset,
        digest=digest,
        written=picture.written,
        open=picture.open,
        open_mask=picture.open_mask,
    )


def _encode_pictures(
    items: Sequence[Item], encoder: Encoder, store: Store, report: Callable[[int], None]
) -> dict[str, InputError]:
    """Decode in threads, a bounded number ahead; encode one by one, so that no result depends on its neighbours.

    Returns what could not be decoded, by name.
    """
    missing = store.missing(key for item in items for key in (*item.latents, *item.masks))
    made, broken = set[str](), dict[str, InputError]()
    work = _planned(items, missing)
    done = len(items) - len(work)
    report(done)
    while work:
        for item, decoded in _decoded(work):
            if isinstance(decoded, InputError):
                broken[item.name] = decoded
            else:
                for index, pixels, mask in decoded:
                    _encode(item, index, pixels, mask, encoder, store, missing)
                    made.update(_keys(item, index))
            done = min(done + 1, len(items))
            report(done)
        # what waited for its like, which turned out to be broken, is tried itself
        work = _planned([item for item in items if item.name not in broken], missing - made)
    return broken


def _planned(items: Sequence[Item], missing: set[str]) -> list[tuple[Item, list[int]]]:
    """The items to decode, with the frames that each is to make: what several have in common, the first makes."""
    work, planned = [], set[str]()
    for item in items:
        wanted = [index for index in range(len(item.frames)) if {*_keys(item, index)} & (missing - planned)]
        planned.update(key for index in wanted for key in _keys(item, index))
        if wanted:
            work.append((item, wanted))
    return work


def _encode(
    item: Item, index: int, pixels: Tensor, mask: Tensor | None, encoder: Encoder, store: Store, missing: set[str]
) -> None:
    key = item.latents[index]
    latents = None if key in missing else _found(store, key)
    if latents is None:
        latents = normal(encoder.pictures(pixels[None])[0])
        store.put(key, latents)
    if mask is not None:
        height, width = latents.shape[-2:]
        store.put(item.masks[index], normal(functional.adaptive_avg_pool2d(mask[None], (height, width))[0]))


def _found(store: Store, key: str) -> Tensor | None:
    try:
        found: Tensor = store.get(key)
    except KeyError:  # damaged
        return None
    return found


def _keys(item: Item, index: int) -> Iterator[str]:
    yield item.latents[index]
    if item.masks:
        yield item.masks[index]


_Cut = tuple[int, Tensor, Tensor | None]  # frame, picture (3, H, W), mask (1, H, W)


def _decoded(work: Iterable[tuple[Item, list[int]]]) -> Iterator[tuple[Item, list[_Cut] | InputError]]:
    """Cut pictures and masks in their order, `AHEAD` of the consumer at most."""
    waiting: deque[tuple[Item, Future[list[_Cut] | InputError]]] = deque()
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="trilora-pictures") as pool:
        try:
            for item, wanted in work:
                waiting.append((item, pool.submit(_decode, item, wanted)))
                if len(waiting) > AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for item, future in waiting:
                yield item, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(item: Item, wanted: list[int]) -> list[_Cut] | InputError:
    assert item.open is not None
    try:
        image = item.open()
        mask = item.open_mask() if item.open_mask is not None else None
    except InputError as error:
        return error
    if mask is not None and not mask.getextrema()[1]:
        return InputError(f"the mask of {item.name} is all black: nothing of it would be learned; repair or remove it")
    return [
        (index, to_tensor(frame.cut(image)), None if mask is None else _gray(frame.cut(mask)))
        for index in wanted
        for frame in [item.frames[index]]
    ]


def _gray(image: Image.Image) -> Tensor:
    return torch.from_numpy(numpy.array(image, dtype=numpy.uint8))[None].to(torch.float32).div_(255.0)


def _encode_captions(
    texts: dict[str, str], config: DataConfig, encoder: Encoder, store: Store, report: Callable[[int], None]
) -> None:
    missing = store.missing(texts)
    done = len(texts) - len(missing)
    report(done)
    for key in (key for key in texts if key in missing):
        store.put(key, encoder.captions([texts[key]], weights=config.captions.weights)[0])
        done += 1
        report(done)


# --- names by content ---------------------------------------------------------


def _key(kind: str, *parts: str) -> str:
    return f"{kind} {hashlib.sha256('|'.join(('1', *parts)).encode()).hexdigest()}"


def _caption_key(text: str, config: DataConfig, fingerprint: str) -> str:
    return _key("caption", fingerprint, str(config.captions.weights), text)
