"""Where an adapter acts: energy and effective rank by layer, block and kind, and the overlap of several adapters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import block_of
from .errors import InputError
from .fileformat import Adapter
from .keys import ARCHITECTURES, canonical_stem, is_text
from .layers import KINDS, kind_of
from .metadata import architecture_of
from .plots import short_name
from .spectral import effective_rank, energy, overlap

__all__ = ["KIND_NAMES", "Anatomy", "LayerFacts", "Place", "anatomy", "describe", "overlap_lines", "overlaps"]

KIND_NAMES = (*KINDS, "text", "other")


class Place(NamedTuple):
    """Where a layer lies: `part` of the model ("down", "mid", "up", "text", "double", "single", "joint", "other"),
    `block` within it, and `sub`, which of the transformers of a U-Net's block (else 0)."""

    part: str
    block: int
    sub: int = 0


@dataclass(frozen=True)
class LayerFacts:
    """One layer: its singular values (k,), their energy (sum of squares) and effective rank.

    `name` is the stem in diffusers' spelling, whose blocks are those of `place`.
    """

    stem: str
    name: str
    place: Place
    kind: str
    values: Tensor
    energy: float
    effective: float

    @property
    def short(self) -> str:
        """What tells this layer from the others of its model."""
        return short_name(self.name)


@dataclass(frozen=True)
class Anatomy:
    """The layers of an adapter in the order of the model: text encoders, then from the model's input to its output."""

    name: str
    layers: tuple[LayerFacts, ...]

    @property
    def energy(self) -> float:
        """Of all layers."""
        return sum(layer.energy for layer in self.layers)

    @property
    def rank(self) -> str:
        """ "rank 16" or "rank 4 to 16"."""
        ranks = sorted({len(layer.values) for layer in self.layers})
        return f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} to {ranks[-1]}"

    def shares(self, of: Callable[[LayerFacts], str]) -> dict[str, float]:
        """Share of the energy, 0 to 1, by what `of` says of a layer, such as its kind, in the order of the model."""
        whole = self.energy or 1.0
        found: dict[str, float] = {}
        for layer in self.layers:
            key = of(layer)
            found[key] = found.get(key, 0.0) + layer.energy / whole
        return found


def anatomy(adapter: Adapter, name: str) -> Anatomy:
    """The facts of every layer; raises InputError for an adapter without layers."""
    if not adapter.layers:
        raise InputError(f"{name} has no layers, so there is no spectrum; train or load one first")
    architecture = architecture_of(adapter)
    facts = []
    for stem, layer in adapter.layers.items():
        values = layer.svd.s.detach().float().cpu()
        kind = _kind(stem, architecture)
        numbers = float(energy(values)), float(effective_rank(values))
        place = place_of(stem, architecture)
        facts.append(LayerFacts(stem, _plain(stem, architecture), place, kind, values, *numbers))
    return Anatomy(name, tuple(sorted(facts, key=_order)))


_SIDE = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_")
_TEXT = re.compile(r"lora_te(\d?)_text_model_encoder_layers_(\d+)_")
_PARTS = ("text", "down", "mid", "up", "joint", "double", "single", "other")


def place_of(stem: str, architecture: str) -> Place:
    """The place of a canonical stem; SDXL's names are read as diffusers' first."""
    if found := _TEXT.match(stem):
        return Place("text", int(found[1] or 1), int(found[2]))
    group, number = block_of(stem, architecture)
    if group in ("JOINT", "DOUBLE", "SINGLE"):
        return Place(group.lower(), number or 0)
    plain = _plain(stem, architecture)
    if plain.startswith("lora_unet_mid_block_"):
        return Place("mid", 0)
    if found := _SIDE.match(plain):
        part, block, kind, index = found[1], int(found[2]), found[3], int(found[4])
        last = 1 if part == "down" else 2  # what changes the size comes behind the last transformer of its block
        return Place(part, block, last if kind.endswith("samplers") else index)
    return Place("other", 0)


def _plain(stem: str, architecture: str) -> str:
    return canonical_stem(stem, "sd15") if architecture == "sdxl" and stem.startswith("lora_unet_") else stem


def _kind(stem: str, architecture: str) -> str:
    if is_text(stem) or stem.startswith("text_encoder"):
        return "text"
    return (kind_of(stem, architecture) if architecture in ARCHITECTURES else "") or "other"


def _order(layer: LayerFacts) -> tuple[object, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", layer.name)]
    return (_PARTS.index(layer.place.part), layer.place, numbers, KIND_NAMES.index(layer.kind), layer.stem)


# --- several adapters ------------------------------------------------------------------------------------------------


def overlaps(adapters: Sequence[Adapter], side: str) -> Tensor:
    """How far adapters act on the same directions, pair by pair: (n, n) from 0 to 1, NaN where they share no layer.

    side: "in" is what they read, "out" what they write. The mean over common layers of `spectral.overlap`, in which
    strong directions count more, weighted by the product of both norms: layers in which one of them does little hardly
    count.
    """
    table = torch.full((len(adapters), len(adapters)), torch.nan)
    table.fill_diagonal_(1.0)
    for i, j in combinations(range(len(adapters)), 2):
        table[i, j] = table[j, i] = _overlap(adapters[i], adapters[j], side)
    return table


def _overlap(a: Adapter, b: Adapter, side: str) -> float:
    total, weights = 0.0, 0.0
    for stem in a.layers.keys() & b.layers.keys():
        one, other = a.layers[stem].svd, b.layers[stem].svd
        if one.u.shape[0] != other.u.shape[0] or one.vh.shape[1] != other.vh.shape[1]:
            raise InputError(f"layer {stem} differs in shape: these adapters are for different models")
        weight = float((energy(one.s) * energy(other.s)).sqrt())
        total, weights = total + weight * overlap(one, other, side=side, weighted=True), weights + weight
    return total / weights if weights else float("nan")


def overlap_lines(adapters: Sequence[Adapter], names: Sequence[str]) -> list[str]:
    """A line for each pair: how much of what they read and of what they write is the same; none for one adapter."""
    if len(adapters) < 2:
        return []
    reads, writes = overlaps(adapters, "in"), overlaps(adapters, "out")
    lines = []
    for i, j in combinations(range(len(adapters)), 2):
        both = f"{names[i]} and {names[j]}"
        if bool(reads[i, j].isfinite()):
            lines.append(
                f"{both}: {reads[i, j]:.0%} of what they read and {writes[i, j]:.0%} of what they write overlaps"
            )
        else:
            lines.append(f"{both} have no layer in common")
    return lines


def describe(found: Anatomy) -> str:
    """A few lines: ranks, the kinds and the blocks that hold most of the energy."""
    mean = sum(layer.effective for layer in found.layers) / len(found.layers)
    kinds = _most(found.shares(lambda layer: layer.kind))
    blocks = _most(found.shares(lambda layer: f"{layer.place.part} {layer.place.block}".replace("mid 0", "mid")))
    return (
        f"{found.name}: {len(found.layers)} layers, {found.rank}, effective rank {mean:.1f},"
        f" energy {found.energy:.4g}\n"
        f"  by kind: {kinds}\n  by block: {blocks}"
    )


def _most(shares: Mapping[str, float], count: int = 6) -> str:
    ranked = sorted(shares.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {share:.0%}" for name, share in ranked)
