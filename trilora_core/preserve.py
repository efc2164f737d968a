"""Prior preservation without pictures: points of the base model's own sampling paths beside every batch.

The base is asked once, before the run, and its predictions are kept as what they are to stay: a point costs what a
picture of the batch costs, and no second forward. (Ruiz et al. 2023 preserve by pictures of a class instead.)
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import Row
from .config import PreserveConfig
from .data.cache import Store
from .data.dataset import Dataset, Encoder, Sample
from .data.encoding import encode_captions
from .errors import InputError
from .paths import Point, walk
from .precision import autocast
from .prompts import BROAD
from .protocols import Denoiser
from .start import derive_seed

__all__ = ["LEVELS", "Amount", "Captions", "Kept", "KeptLine", "check_kept", "encode_prior", "keep", "prompts_hash"]

_TOGETHER = 4  # paths that are walked in one batch: always the same ones, so that each comes out alike every time


@dataclass(frozen=True)
class Amount:
    """How much of the base is kept in mind; `weight` is that of the mean loss on its points beside the pictures'."""

    weight: float
    share: float = 1 / 3  # points for each picture of a batch
    points: int = 8  # on each path
    paths: int = 104  # in all; captions take turns


LEVELS: dict[str, Amount] = {"light": Amount(0.1), "strong": Amount(0.3)}  # benchmarks/preserve says what they do


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
        return [self.row(step, number) for number in range(len(self._places(step)))]

    def row(self, step: int, number: int) -> Row:
        """Row `number` of those beside batch `step`; no other is loaded for it."""
        return self._kept.row(self._index(self._places(step)[number]), self._weight)

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


def check_kept(config: PreserveConfig, kept: Kept | None) -> None:
    """Raise InputError where the base is to be preserved and nothing was kept of it, or the other way round."""
    if (config.base != "off") != (kept is not None):
        what = "nothing of the base's was" if kept is None else "points of the base's paths were"
        raise InputError(f"preserve.base is {config.base!r}, but {what} given; see preserve.keep")


def prompts_hash(config: PreserveConfig) -> str:
    """Of what a level stands for and of the captions that are meant, which may both change with this program."""
    told = (sorted(asdict(LEVELS[config.base]).items()), config.prompts or BROAD)
    return hashlib.sha256(repr(told).encode()).hexdigest()


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
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Kept:
    """Walk the paths that the store does not hold yet; the adapter must not be attached.

    All have the most frequent shape of the data set. `progress` hears (done, total) in points, and may raise to stop:
    what was done is kept.
    """
    shape, size = _common(dataset)
    made = _Maker(denoiser, captions, size, amount, device, precision)
    report = progress or (lambda done, total: None)
    for first in range(0, amount.paths, _TOGETHER):
        together = range(first, min(first + _TOGETHER, amount.paths))
        made.walk(together, lambda done: report(done, amount.paths * amount.points))
    captions.store.flush()
    points = tuple(
        (made.key(path, n), made.caption(path)) for path in range(amount.paths) for n in range(amount.points)
    )
    return Kept(points, captions, shape, amount)


@dataclass(frozen=True)
class _Maker:
    """Makes the points of paths, named by all that they depend on."""

    denoiser: Denoiser
    captions: Captions
    size: tuple[int, ...]
    amount: Amount
    device: torch.device
    precision: str

    def walk(self, paths: Sequence[int], report: Callable[[int], None]) -> None:
        """Make what the store lacks of some paths, which are walked together."""
        count, store = self.amount.points, self.captions.store
        before = paths[0] * count
        if store.missing(self.key(path, n) for path in paths for n in range(count)):
            cond = [_get(store, self.captions.keys[self.caption(path)]) for path in paths]
            with autocast(self.precision, self.device):
                for n, point in enumerate(walk(self.denoiser, cond, *_starts(paths, self.size), count, self.device)):
                    for row, path in enumerate(paths):
                        store.put(self.key(path, n), _entry(point, row))
                    report(before + (n + 1) * len(paths))
        report(before + count * len(paths))

    def caption(self, path: int) -> int:
        """Which caption a path has: they take turns."""
        return path % len(self.captions.texts)

    def key(self, path: int, number: int) -> str:
        """Where a point lies in the store."""
        base = (self.denoiser.base_fingerprint, str(self.denoiser.compute_dtype), self.precision)
        parts = (1, *base, self.captions.keys[self.caption(path)], path, self.size, self.amount.points, number)
        return f"kept {hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _common(dataset: Dataset) -> tuple[Hashable, tuple[int, ...]]:
    """The most frequent shape of a data set, as it has it and as that of latents."""
    shape = Counter(item.shape for item in dataset.items).most_common(1)[0][0]
    index = next(index for index, item in enumerate(dataset.items) if item.shape == shape)
    return shape, tuple(dataset.sample(index, random.Random(0)).latents.shape)


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


def _get(store: Store, key: str) -> Any:
    try:
        return store.get(key)
    except KeyError as error:
        raise InputError(
            "what the base draws for a caption is damaged in the cache, or was removed to make room; start this run "
            "again, with a larger cache if it does not fit"
        ) from error
