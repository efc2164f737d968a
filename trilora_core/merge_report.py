"""What a merge did and what it met: energy kept and left out, and how far the adapters get in each other's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .merge_methods import Layers, there

__all__ = ["Interference", "LayerReport", "MergeReport", "PairReport", "interference", "pair_reports"]

_SHARED = 0.7  # of the spaces that two adapters read, far above what learning alone does
_APART = 0.5  # of the spaces that they write
_NARROW = 4  # ranks above a quarter of the inputs overlap by their size alone


class Interference(NamedTuple):
    """Each two of n adapters on a batch of layers, (B, n, n) each, 0 to 1 but for the cosine.

    `write` and `read` weigh the principal angles of what they write and read by S² (as `spectral.overlap`, weighted);
    `cosine` is that of the two ΔW: below 0 they cancel. `same_down`: read spaces that agree where written ones do not.
    """

    write: Tensor
    read: Tensor
    cosine: Tensor
    same_down: Tensor


@dataclass(frozen=True)
class LayerReport:
    """One merged layer; shares from 0 to 1, overlaps the largest over the pairs of its adapters."""

    owners: tuple[int, ...]  # places of its adapters in the list
    rank: int
    kept_energy: float  # share of the merged ‖ΔW‖_F² left after the cut to rank and energy
    removed: float  # share of the adapters' own energy that the method left out
    write: float = 0.0
    read: float = 0.0
    cosine: float = 0.0  # the one furthest from 0


@dataclass(frozen=True)
class PairReport:
    """Two adapters, as means over the layers that both have."""

    first: str
    second: str
    layers: int
    write: float
    read: float
    cosine: float
    same_down: float  # share of the layers


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. `kept_energy` is the share of ‖ΔW‖_F² left after cutting; `removed` that of each adapter."""

    method: str
    names: tuple[str, ...]
    weights: tuple[float, ...]
    kept_energy: float
    removed: tuple[float, ...]
    layers: Mapping[str, LayerReport] = field(repr=False)
    pairs: tuple[PairReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """Layers that more than one adapter has."""
        return sum(len(layer.owners) > 1 for layer in self.layers.values())

    @property
    def single(self) -> int:
        """Layers that one adapter has."""
        return len(self.layers) - self.shared

    @property
    def layer_energy(self) -> dict[str, float]:
        """Energy kept of each layer."""
        return {stem: layer.kept_energy for stem, layer in self.layers.items()}

    def data(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {**asdict(self), "layers": {stem: asdict(layer) for stem, layer in self.layers.items()}}

    def lines(self, most_pairs: int = 3) -> list[str]:
        """A few lines for a person; the notes are what should be looked at."""
        ranks = [layer.rank for layer in self.layers.values()]
        rank = f"{max(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
        lines = [
            f"{self.method}: {self.shared} layers are in more than one file, {self.single} in one only; rank {rank}",
            f"kept {self.kept_energy:.2%} of the energy at rank {rank}",
        ]
        if any(self.removed):
            parts = ", ".join(f"{share:.1%} of {name}" for name, share in zip(self.names, self.removed, strict=True))
            lines.append(f"left out by {self.method}: {parts}")
        closest = sorted(self.pairs, key=lambda pair: -max(pair.write, pair.read))
        lines += [_told(pair) for pair in closest[:most_pairs]]
        if closest:
            lines += self._crowded()
        return lines

    def _crowded(self) -> list[str]:
        """Where the adapters meet most, if anywhere they do so clearly."""
        stem, layer = max(self.layers.items(), key=lambda item: item[1].write * item[1].read)
        if layer.write * layer.read < 0.01:
            return []
        return [f"most in {stem}: write {layer.write:.2f}, read {layer.read:.2f}, cosine {layer.cosine:+.2f}"]

    def remarks(self) -> list[str]:
        """What the user should look at: shared random starts, and what the method could not do."""
        return [*(_same_down(pair) for pair in self.pairs if pair.same_down > 0.5), *self.notes]


def interference(layers: Layers) -> Interference:
    """How each two of the n adapters meet on B layers of equal shape: all pairs at once, from the spans' cosines."""
    written, read = layers.written.gram, layers.read.gram
    present = [there(svd).double() for svd in layers.svds]
    lengths = [svd.s.double() * mask for svd, mask in zip(layers.svds, present, strict=True)]
    shares = [s / s[..., :1].clamp_min(1e-300) for s in lengths]
    squares, unsigned = _side_by_side([_unit(s.square()) for s in shares]), _side_by_side(present)
    counts = torch.stack([mask.sum(-1) for mask in present], -1)
    counts = torch.minimum(counts.unsqueeze(-1), counts.unsqueeze(-2))
    spaces = [_between(unsigned, cosines.square()) / counts.clamp_min(1) for cosines in (read, written)]
    narrow = counts * _NARROW <= layers.read.columns.shape[-2]
    return Interference(
        _between(squares, written.square()).clamp(0, 1),
        _between(squares, read.square()).clamp(0, 1),
        _between(_side_by_side([_unit(s) for s in shares]), written * read).clamp(-1, 1),
        narrow & (spaces[0] > _SHARED) & (spaces[1] < _APART),
    )


def pair_reports(
    names: Sequence[str], found: Mapping[tuple[int, int], Sequence[Interference]]
) -> tuple[PairReport, ...]:
    """Means over all batches of each pair of adapters."""
    reports = []
    for first, second in combinations(range(len(names)), 2):
        batches = found.get((first, second), ())
        if batches:
            whole = [torch.cat([batch[i] for batch in batches]).double() for i in range(4)]
            means = [float(values.mean()) for values in whole]
            reports.append(PairReport(names[first], names[second], len(whole[0]), *means))
    return tuple(reports)


def _told(pair: PairReport) -> str:
    """One line about a pair."""
    return (
        f"{pair.first} and {pair.second} overlap: write {pair.write:.2f}, read {pair.read:.2f},"
        f" cosine {pair.cosine:+.2f} (0 apart, 1 the same)"
    )


def _same_down(pair: PairReport) -> str:
    return (
        f"{pair.first} and {pair.second} read the same in {pair.same_down:.0%} of their layers but write elsewhere:"
        " they seem to have begun with the same random numbers, and this overlap says nothing about what they learned;"
        " train one of them with another seed"
    )


def _unit(values: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values / torch.where(norm > 0, norm, torch.ones_like(norm))


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """(B, k_i) of each adapter -> (B, Σ k_i, n), each in a column of its own and 0 for the others' directions."""
    columns = torch.stack([torch.cat(list(weights), -1)] * len(weights), -1)
    start = 0
    for index, weight in enumerate(weights):
        end = start + weight.shape[-1]
        columns[..., :start, index] = 0
        columns[..., end:, index] = 0
        start = end
    return columns


def _between(ends: Tensor, middle: Tensor) -> Tensor:
    """a^T · M · b of each layer for each two of `ends` (B, k, n): (B, n, n)."""
    return ends.mT @ middle @ ends
