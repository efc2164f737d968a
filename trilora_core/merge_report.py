"""What a merge did and what it met: energy kept and left out, and how far the adapters get in each other's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .spectral import SVD, energy

__all__ = ["Interference", "LayerReport", "MergeReport", "PairReport", "interference", "pair_reports"]

_SHARED = 0.7  # of the spaces that two adapters read, far above what learning alone does
_APART = 0.5  # of the spaces that they write
_NARROW = 4  # ranks above a quarter of the inputs overlap by their size alone


class Interference(NamedTuple):
    """Two adapters on a batch of layers, (B,) each, 0 to 1 but for the cosine.

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


def interference(a: SVD, b: SVD) -> Interference:
    """How two adapters meet on B layers of equal shape, each SVD with the leading dimension B, as `filled` gives it."""
    written, read = (a.u.mT @ b.u).double(), (a.vh @ b.vh.mT).double()
    counts = torch.minimum((a.s > 0).sum(-1), (b.s > 0).sum(-1))
    squares = [_unit((svd.s.double() / svd.s[..., :1].double().clamp_min(1e-300)).square()) for svd in (a, b)]
    lengths = [_unit(svd.s.double()) for svd in (a, b)]
    spaces = [energy(cosines.flatten(-2)) / counts.clamp_min(1) for cosines in (read, written)]
    narrow = counts * _NARROW <= a.vh.shape[-1]
    return Interference(
        _between(squares, written.square()).clamp(0, 1),
        _between(squares, read.square()).clamp(0, 1),
        _between(lengths, written * read).clamp(-1, 1),
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
            whole = Interference(*(torch.cat([batch[i] for batch in batches]).double() for i in range(4)))
            means = [float(values.mean()) for values in whole]
            reports.append(PairReport(names[first], names[second], len(whole.write), *means))
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


def _between(ends: Sequence[Tensor], middle: Tensor) -> Tensor:
    """a^T · M · b of each layer."""
    return (ends[0].unsqueeze(-2) @ middle @ ends[1].unsqueeze(-1))[..., 0, 0]
