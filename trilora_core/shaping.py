"""Say how much of an adapter comes through, exactly and at once: on its singular values, before it is applied.

In this order: the cut by rank and by energy, the tone, the energy restored, the strengths of blocks. None of them is
claimed to be better than a scalar strength: at equal drift from the base model they were measured to be no better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .block_text import PRESETS, read_blocks
from .blocks import Block, block_of, blocks_of
from .checks import flag, number, one_of, whole
from .errors import InputError
from .fileformat import Adapter, Layer
from .metadata import architecture_of
from .spectral import SVD

__all__ = ["Shape", "band", "highest_rank", "shape"]

TONE_LIMIT = 10.0


@dataclass(frozen=True)
class Shape:
    """What `shape` does; the defaults change nothing. Raises InputError for values out of range.

    Energies and ranks are those of each layer alone; `blocks` is read by block_text once the adapter is known.
    """

    keep_rank: int = 0  # the largest singular values that are kept, 0 for all
    keep_energy: float = 1.0  # in (0, 1]: as many of them as hold this share of the energy
    tone: float = 1.0  # power on the singular values: 0 makes them equal, above 1 lets the strong ones stand out
    normalize: bool = False  # hold ‖ΔW‖_F of each layer against the cut and the tone
    preset: str = "ALL"
    blocks: str = ""

    def __post_init__(self) -> None:
        whole("keep_rank", self.keep_rank, 0)
        number("keep_energy", self.keep_energy, above=0.0, most=1.0)
        number("tone", self.tone, least=0.0, most=TONE_LIMIT)
        flag("normalize", self.normalize)
        one_of("preset", self.preset, PRESETS)
        if not isinstance(self.blocks, str):
            raise InputError(f"blocks is {self.blocks!r}; wanted a text such as IN04-08:0.5, MID:0")

    @property
    def spectral(self) -> bool:
        """Whether the spectrum of a layer changes otherwise than by a factor."""
        return bool(self.keep_rank) or self.keep_energy < 1.0 or self.tone != 1.0


def shape(adapter: Adapter, how: Shape) -> Adapter:
    """Give the shaped adapter; layers of strength 0 are left out, so that it may have none.

    ΔW of a layer becomes w · U f(S) V^T. f keeps the first k of S, k the smaller of keep_rank and of the rank that
    holds keep_energy of the trained energy; then s -> s_1 (s / s_1)^tone, which holds the largest one; then, with
    normalize, a factor that restores ‖ΔW‖_F. w is the strength of the layer's block. What is not changed is shared
    with `adapter`.
    Raises InputError for a keep_rank above the adapter's highest rank and for a text of blocks that cannot be read.
    """
    most = highest_rank(adapter)
    if how.keep_rank > most:
        raise InputError(
            f"keep_rank is {how.keep_rank}, but the adapter's highest rank is {most}; give 1 to {most}, or 0 for all"
        )
    strengths = _strengths(adapter, how)
    layers = {stem: layer for stem, layer in adapter.layers.items() if strengths.get(stem, 1.0) != 0.0}
    if how.spectral:
        layers = _bent(layers, how)
    changed = {stem: _scaled(layers[stem], strengths[stem]) for stem in layers if strengths.get(stem, 1.0) != 1.0}
    return Adapter({stem: changed.get(stem, layer) for stem, layer in layers.items()}, adapter.metadata)


def band(adapter: Adapter, first: int, last: int) -> Adapter:
    """The singular values `first` to `last` (not included) of every layer, in order of size, that has such.

    Bands that adjoin add up to the whole exactly: U[:, a:b] S[a:b] V[a:b] of each layer.
    """
    layers = {
        stem: Layer(SVD(svd.u[:, first:last], svd.s[first:last], svd.vh[first:last]), layer.kernel)
        for stem, layer in adapter.layers.items()
        if (svd := layer.svd).s.numel() > first
    }
    return Adapter(layers, adapter.metadata)


def highest_rank(adapter: Adapter) -> int:
    """The largest number of singular values that a layer has, 0 without layers."""
    return max((layer.svd.s.numel() for layer in adapter.layers.values()), default=0)


def _strengths(adapter: Adapter, how: Shape) -> Mapping[str, float]:
    """Stem -> strength of its block; empty where every block keeps its own."""
    if how.preset == "ALL" and not how.blocks.strip():
        return {}
    architecture = architecture_of(adapter)
    known = blocks_of(architecture, adapter.layers)
    found: Mapping[Block, float] = read_blocks(how.blocks, architecture, known, how.preset)
    return {stem: found[block_of(stem, architecture)] for stem in adapter.layers}


def _bent(layers: Mapping[str, Layer], how: Shape) -> dict[str, Layer]:
    """Every layer with its new spectrum; those of equal rank together, for a thousand small tensors take their time."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for stem, layer in layers.items():
        groups[layer.svd.s.numel()].append(stem)
    found: dict[str, Layer] = {}
    for stems in groups.values():
        svds = [layers[stem].svd for stem in stems]
        floors = [torch.finfo(svd.s.dtype).eps * max(svd.u.shape[0], svd.vh.shape[1]) for svd in svds]
        s, kept = _spectra(torch.stack([svd.s.detach() for svd in svds]), torch.tensor(floors).double(), how)
        for stem, svd, values, k in zip(stems, svds, s.unbind(), kept, strict=True):
            found[stem] = Layer(SVD(svd.u[:, :k], values[:k], svd.vh[:k]), layers[stem].kernel)
    return {stem: found[stem] for stem in layers}


def _spectra(s: Tensor, floors: Tensor, how: Shape) -> tuple[Tensor, list[int]]:
    """The spectra s (layers, k) after cut, tone and normalize, and how many values of each are kept.

    Values below floors · s_1 are rounding of zero, which a low tone would raise: they stay as they are.
    """
    wide = s.double()
    held = wide.square().cumsum(-1)
    kept = torch.full(s.shape[:1], min(how.keep_rank, s.shape[1]) if how.keep_rank else s.shape[1])
    if how.keep_energy < 1.0:
        enough = (held < how.keep_energy * held[:, -1:]).sum(-1) + 1
        kept = torch.minimum(kept, enough)
    first = wide[:, :1]
    share = wide / torch.where(first > 0, first, 1.0)
    bent = torch.where(share > floors.unsqueeze(1), first * share.pow(how.tone), wide)
    bent = bent * (torch.arange(s.shape[1]) < kept.unsqueeze(1))
    if how.normalize:
        after = bent.square().sum(-1)
        bent = bent * torch.where(after > 0, held[:, -1] / torch.where(after > 0, after, 1.0), 1.0).sqrt().unsqueeze(1)
    return bent.to(s.dtype), kept.tolist()


def _scaled(layer: Layer, strength: float) -> Layer:
    """strength · ΔW in canonical form: singular values stay above zero, a sign goes to u."""
    svd = layer.svd
    u = -svd.u if strength < 0 else svd.u
    return Layer(SVD(u, svd.s * abs(strength), svd.vh), layer.kernel)
