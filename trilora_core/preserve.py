"""Prior preservation without pictures: points of the base model's own sampling paths beside every batch.

The base is asked once, before the run, and its predictions are kept as what they are to stay: a point costs what a
picture of the batch costs, and no second forward. (Ruiz et al. 2023 preserve by pictures of a class instead.)
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adapter import derive_seed
from .batches import Row
from .data.cache import Store
from .data.dataset import Dataset, Encoder, Sample
from .data.encoding import encode_captions
from .errors import InputError
from .paths import Point, walk
from .prompts import BROAD
from .protocols import Denoiser

__all__ = ["LEVELS", "Amount", "Captions", "Kept", "KeptLine", "encode_prior", "keep"]

_TOGETHER = 4  # paths that are walked in one batch: always the same ones, so that each comes out alike every time


@dataclass(frozen=True)
class Amount:
    """How much of the base is kept in mind; `weight` is that of the mean loss on its points beside the pictures'."""

    weight: float
    share: float = 1 / 3  # points for each picture of a batch
    points: int = 8  # on each path
    paths: int = 104  # in all; captions take turns


LEVELS: dict[str, Amount] = {"light": Amount(1.0), "strong": Amount(4.0)}


@dataclass(frozen=True)
class Captions:
    """Captions of what is to stay, and where their conditioning lies."""

    texts: tuple[str, ...]
    keys: tuple[str, ...]
    store: Store


@dataclass(frozen=True)
class Kept:
    """Points of the base's paths in a store, all of one shape."""

    points: tuple[tuple[str, int], ...]  # key of the point, index of its caption
    captions: Captions
    shape: Hashable  # as the data set has it
    amount: Amount

    def row(self, index: int, weight: float) -> Row:
        """Point number `index` as a row of a batch whose target is the base's prediction."""
        key, caption = self.points[index]
        found, cond = _get(self.captions.store, key), _get(self.captions.store, self.captions.keys[caption])
        sample = Sample(found["latents"], cond, None, self.captions.texts[caption])
        return Row(sample, found["noise"], found["u"], weight, found["prediction"])


class KeptLine:
    """The endless line of looks at kept points beside that of the pictures (batches.Line)."""

    def __init__(self, kept: Kept, seed: int, batch_size: int) -> None:
        self._kept, self._seed = kept, seed
        self._each = kept.amount.share * batch_size
        self._weight = kept.amount.weight / self._each

    def batch(self, step: int) -> list[Row]:
        """The rows beside batch number `step` (from 0), none beside some where there are more batches than points."""
        return [self._kept.row(self._index(place), self._weight) for place in self._places(step)]

    def shapes(self, step: int) -> list[Hashable]:
        """The shape of each of them; nothing is loaded for it."""
        return [self._kept.shape for _ in self._places(step)]

    def _places(self, step: int) -> range:
        return range(int(step * self._each + _SLACK), int((step + 1) * self._each + _SLACK))

    def _index(self, place: int) -> int:
        """Every point once in each round, in an order of its own."""
        size = len(self._kept.points)
        order = list(range(size))
        random.Random(f"trilora kept {self._seed} {place // size}").shuffle(order)
        return order[place % size]


_SLACK = 1e-6  # three thirds are a whole


def encode_prior(texts: Sequence[str], encoder: Encoder, store: Store) -> Captions:
    """Captions of what is to stay, those of prompts.BROAD where none are given, encoded."""
    chosen = tuple(texts) or BROAD
    keys = encode_captions(chosen, encoder, store)
    store.flush()
    return Captions(chosen, keys, store)


def keep(
    denoiser: Denoiser,
    captions: Captions,
    dataset: Dataset,
    amount: Amount,
    device: torch.device,
    *,
    autocast: AbstractContextManager[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Kept:
    """Walk the paths that the store does not hold yet; the adapter must not be attached.

    `progress` hears (done, total) in points. The shape is the most frequent one of the data set.
    """
    shape = Counter(item.shape for item in dataset.items).most_common(1)[0][0]
    index = next(index for index, item in enumerate(dataset.items) if item.shape == shape)
    size = tuple(dataset.sample(index, random.Random(0)).latents.shape)
    total, report = amount.paths * amount.points, progress or (lambda done, total: None)
    found: list[tuple[str, int]] = []
    for first in range(0, amount.paths, _TOGETHER):
        paths = range(first, min(first + _TOGETHER, amount.paths))
        places = [[_key(denoiser, captions, path, size, amount, n) for n in range(amount.points)] for path in paths]
        if captions.store.missing(key for keys in places for key in keys):
            with autocast or nullcontext():
                _walked(denoiser, captions, paths, places, size, amount, device)
        found += [(key, path % len(captions.texts)) for path, keys in zip(paths, places, strict=True) for key in keys]
        report(len(found), total)
    captions.store.flush()
    return Kept(tuple(found), captions, shape, amount)


def _walked(
    denoiser: Denoiser,
    captions: Captions,
    paths: Sequence[int],
    places: Sequence[Sequence[str]],
    size: tuple[int, ...],
    amount: Amount,
    device: torch.device,
) -> None:
    cond = [_get(captions.store, captions.keys[path % len(captions.keys)]) for path in paths]
    noise, offsets = _starts(paths, size)
    for number, point in enumerate(walk(denoiser, cond, noise, offsets, amount.points, device)):
        for row, keys in enumerate(places):
            captions.store.put(keys[number], _entry(point, row))


def _starts(paths: Sequence[int], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The noise (B, C, h, w) where paths begin, and the shift (B,) of their times: a function of their numbers."""
    noise, offsets = [], []
    for path in paths:
        generator = torch.Generator().manual_seed(derive_seed("trilora kept path", path))
        offsets.append(torch.rand((), generator=generator))
        noise.append(torch.randn(size, generator=generator))
    return torch.stack(noise), torch.stack(offsets)


def _entry(point: Point, row: int) -> dict[str, Tensor]:
    """One point as it is kept: in half precision where that loses nothing, or nothing that matters (predictions)."""
    return {
        "latents": point.latents[row].clone(),
        "noise": point.noise[row].clone(),
        "u": point.u[row : row + 1].clone(),
        "prediction": point.prediction[row].half().float(),
    }


def _key(
    denoiser: Denoiser, captions: Captions, path: int, size: tuple[int, ...], amount: Amount, number: int
) -> str:
    caption = captions.keys[path % len(captions.keys)]
    parts = (1, denoiser.base_fingerprint, str(denoiser.compute_dtype), caption, path, size, amount.points, number)
    return f"kept {hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _get(store: Store, key: str) -> Any:
    try:
        return store.get(key)
    except KeyError as error:
        raise InputError(
            "what the base draws for a caption is damaged in the cache, or was removed to make room; start this run "
            "again, with a larger cache if it does not fit"
        ) from error
