"""What a data set holds and what is wrong with it, as numbers and as a text that a person reads."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..config_data import DataConfig
from .captions import has_trigger, tags
from .dataset import Dataset, Item
from .framing import bucket
from .report_text import report_text

__all__ = ["Bucket", "Cropped", "Report", "Small", "Subset", "Uncaptioned", "report"]

MUCH_CUT = 0.25  # share of a picture; above it the subject itself is often cut


@dataclass(frozen=True)
class Bucket:
    """The pictures that are seen at one size."""

    size: tuple[int, ...]  # width and height in pixels; where only latents are known, theirs: (C, h, w)
    names: tuple[str, ...]
    aspect_error: float  # mean of how much longer in proportion picture or bucket is than the other; 0: same shape
    cut: float  # mean share of a picture that a crop leaves out


@dataclass(frozen=True)
class Subset:
    """The pictures of one class of kohya's folders that are repeated as often."""

    name: str
    repeats: int
    pictures: int


@dataclass(frozen=True)
class Uncaptioned:
    """A picture without a caption, and what the model sees in its place."""

    name: str
    caption: str


@dataclass(frozen=True)
class Small:
    """A picture with fewer pixels than the resolution asks for; sizes are width and height in pixels."""

    name: str
    size: tuple[int, int]
    seen: tuple[int, int]


@dataclass(frozen=True)
class Cropped:
    """A picture that loses more than a quarter of its area to each crop."""

    name: str
    cut: float  # share


@dataclass(frozen=True)
class Report:
    """What a data set holds; every list is whole and in the order of the pictures unless said otherwise."""

    pictures: int
    looks: int  # at pictures, in one epoch
    repeated: int  # looks that the repeats would make without `max_train_samples`
    config: DataConfig
    crops: int  # most crops that a picture is seen in, mirrored ones not counted
    subsets: tuple[Subset, ...]
    buckets: tuple[Bucket, ...]  # most pictures first
    uncaptioned: tuple[Uncaptioned, ...]
    untriggered: tuple[str, ...]  # names of pictures whose caption lacks the trigger word
    small: tuple[Small, ...]
    cropped: tuple[Cropped, ...]  # most first
    duplicates: tuple[tuple[str, ...], ...]  # names of pictures of the same content
    captions: int  # different ones
    shared_captions: int  # pictures whose own caption another one has too
    tags: tuple[tuple[str, int], ...]  # and the number of pictures that have it, most first
    masked: int  # pictures with a mask
    unmasked: tuple[str, ...]  # names of those without one, where masks are asked for
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def alone(self) -> tuple[Bucket, ...]:
        """Buckets of one picture, which only meet others in mixed batches."""
        return tuple(entry for entry in self.buckets if len(entry.names) == 1) if len(self.buckets) > 1 else ()

    @property
    def resolution(self) -> int:
        """The one that was asked for, in pixels; 0 where only latents are known."""
        return self.config.resolution if any(len(entry.size) == 2 for entry in self.buckets) else 0

    def text(self) -> str:
        """A page for a person: what needs a look first, long lists cut short."""
        return report_text(self)

    def values(self) -> dict[str, Any]:
        """Everything, uncut, as plain values for JSON."""
        return dataclasses.asdict(self)


def report(dataset: Dataset) -> Report:
    """Look through a data set; no picture is opened."""
    items, config = dataset.items, dataset.config
    seen = [item for item in items if item.frames]
    captions = Counter(item.caption for item in items)
    masked = sum(bool(item.masks) for item in items)
    return Report(
        pictures=len(items),
        looks=dataset.epoch_size,
        repeated=sum(item.repeats for item in items),
        config=config,
        crops=max((sum(not frame.flip for frame in item.frames) for item in seen), default=1),
        subsets=_subsets(items),
        buckets=_buckets(items),
        # What came as conditioning has its captions in it, known to us or not.
        uncaptioned=tuple(Uncaptioned(item.name, item.caption) for item in seen if not item.written),
        untriggered=_untriggered(items, config.trigger_word),
        small=_small(seen, config),
        cropped=_cropped(seen),
        duplicates=_duplicates(items),
        captions=len(captions),
        shared_captions=sum(captions[item.caption] > 1 for item in items if item.written),
        tags=_tags(items),
        masked=masked,
        unmasked=tuple(item.name for item in items if not item.masks)
        if masked or config.masks.source != "none"
        else (),
        skipped=dataset.skipped,
        notes=dataset.notes,
    )


def _subsets(items: Sequence[Item]) -> tuple[Subset, ...]:
    found = Counter((item.subset, item.repeats) for item in items)
    return tuple(Subset(name, repeats, count) for (name, repeats), count in found.items())


def _buckets(items: Sequence[Item]) -> tuple[Bucket, ...]:
    groups: dict[tuple[int, ...], list[Item]] = defaultdict(list)
    for item in items:
        groups[_size(item)].append(item)
    found = [
        Bucket(
            size,
            tuple(item.name for item in group),
            _mean(1 / (1 - _cut(item)) - 1 for item in group),
            _mean(map(_cut, group)),
        )
        for size, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda entry: (-len(entry.names), entry.size)))


def _size(item: Item) -> tuple[int, ...]:
    if item.frames:
        return item.frames[0].size
    return item.shape if isinstance(item.shape, tuple) else ()


def _cut(item: Item) -> float:
    """The share of a picture that each of its crops leaves out, which all are of one size."""
    if not item.frames:
        return 0.0
    left, top, right, bottom = item.frames[0].box
    width, height = item.frames[0].original
    return max(0.0, 1 - (right - left) * (bottom - top) / (width * height))


def _untriggered(items: Iterable[Item], trigger: str) -> tuple[str, ...]:
    if not trigger.strip():
        return ()
    return tuple(item.name for item in items if item.written and not has_trigger(item.caption, trigger))


def _small(items: Iterable[Item], config: DataConfig) -> tuple[Small, ...]:
    wanted = dataclasses.replace(config.framing, upscale=True)

    @cache
    def asked(width: int, height: int) -> tuple[int, int]:
        return bucket(width, height, config.resolution, wanted)

    found = []
    for item in items:
        size = item.frames[0].original
        full = asked(*size)
        if full[0] > size[0] or full[1] > size[1]:
            found.append(Small(item.name, size, item.frames[0].size))
    return tuple(found)


def _cropped(items: Iterable[Item]) -> tuple[Cropped, ...]:
    found = [Cropped(item.name, cut) for item in items for cut in [_cut(item)] if cut > MUCH_CUT]
    return tuple(sorted(found, key=lambda entry: -entry.cut))


def _duplicates(items: Iterable[Item]) -> tuple[tuple[str, ...], ...]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for item in items:
        if item.digest:
            groups[item.digest].append(item.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _tags(items: Iterable[Item]) -> tuple[tuple[str, int], ...]:
    found: Counter[str] = Counter()
    for item in items:
        found.update(set(tags(item.caption)))
    return tuple(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
