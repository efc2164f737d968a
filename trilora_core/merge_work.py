"""The work of a merge: layers in groups of equal shape and owners, merged batch by batch, cut, and told of."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .calibration import Calibration
from .errors import InputError
from .fileformat import Adapter, Layer
from .merge_methods import Layers, Merged, MergeOptions, Merger, combined
from .merge_report import Interference, LayerReport, MergeReport, interference, pair_reports
from .moments import Moments
from .spectral import SVD, cut_rank, energy, rank_holding

__all__ = ["Method", "Work"]

_BATCH_NUMBERS = 1 << 22  # numbers of factors that are merged at once: 16 MiB in float32


@dataclass(frozen=True)
class Method:
    """One way to merge: how it is made ready for a merge, and when to take it."""

    ready: Callable[[], Merger]
    when: str
    batched: bool = True  # many layers of equal shape at once; False: dense matrices, one layer at a time
    alone: bool = False  # makes sense of a single adapter
    calibrated: bool = False  # needs a calibration for each adapter


class Work:
    """One merge under way: layers in groups of equal shape and owners, results by stem."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weights: Sequence[float],
        method: Method,
        options: MergeOptions,
        calibrations: Sequence[Calibration],
        device: torch.device | str | None,
    ) -> None:
        self._adapters, self._weights, self._options = adapters, weights, options
        self._method, self._merger, self._calibrations, self._device = method, method.ready(), calibrations, device
        self.stems = list(dict.fromkeys(stem for adapter in adapters for stem in adapter.layers))
        self._merged: dict[str, Layer] = {}
        self._told: dict[str, LayerReport] = {}
        self._met: defaultdict[tuple[int, int], list[Interference]] = defaultdict(list)
        self._sums = torch.zeros(2, dtype=torch.float64)  # energy before and after the cut
        self._own, self._removed = ([0.0] * len(adapters) for _ in range(2))
        self._uncalibrated = 0

    def run(self) -> Iterator[int]:
        """Merge everything; gives the number of layers done after each batch."""
        for owners, stems in self._groups():
            for start in range(0, len(stems), self._batch(owners, stems[0])):
                batch = stems[start : start + self._batch(owners, stems[0])]
                self._one_batch(owners, batch)
                yield len(self._merged)

    def layers(self) -> dict[str, Layer]:
        """The merged layers in the order of the adapters."""
        return {stem: self._merged[stem] for stem in self.stems}

    def report(self, method: str, names: tuple[str, ...]) -> MergeReport:
        """What was done, after `run`."""
        before, after = self._sums.tolist()
        removed = tuple(r / e if e else 0.0 for r, e in zip(self._removed, self._own, strict=True))
        layers = {stem: self._told[stem] for stem in self.stems}
        report = MergeReport(
            method,
            names,
            tuple(float(weight) for weight in self._weights),
            min(1.0, after / before) if before else 1.0,
            removed,
            layers,
            pair_reports(names, self._met),
        )
        return replace(report, notes=tuple(self._notes(report)))

    def _notes(self, report: MergeReport) -> Iterator[str]:
        if len(self._adapters) > 1 and not report.shared:
            yield "the adapters have no layer in common: each passes through, whatever the method"
        if self._uncalibrated:
            yield f"{self._uncalibrated} layers are not in every calibration, so they were summed"
        for name, adapter, calibration in zip(report.names, self._adapters, self._calibrations, strict=False):
            told, facts = adapter.metadata, calibration.facts
            if told.get("trilora.data_hash", facts.data_hash) != facts.data_hash:
                yield f"{name} was trained on other pictures than its calibration; are they in one order?"
            if told.get("trilora.base_fingerprint", facts.base_fingerprint) != facts.base_fingerprint:
                yield f"{name} was trained on another base model than its calibration was made on"

    def _groups(self) -> Iterator[tuple[tuple[int, ...], list[str]]]:
        """(adapters, layers that these have with equal shapes, ranks and number formats)."""
        groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
        owners: dict[tuple[object, ...], tuple[int, ...]] = {}
        for stem in self.stems:
            found = [index for index, adapter in enumerate(self._adapters) if stem in adapter.layers]
            layers = [self._adapters[index].layers[stem] for index in found]
            _check_shapes(stem, layers)
            key = (*found, *((*layer.svd.u.shape, layer.svd.vh.shape[1], layer.svd.s.dtype) for layer in layers))
            groups[key].append(stem)
            owners[key] = tuple(found)
        for key, stems in groups.items():
            yield owners[key], stems

    def _batch(self, owners: tuple[int, ...], stem: str) -> int:
        """How many layers of a group are merged at once."""
        svds = [self._adapters[index].layers[stem].svd for index in owners]
        size = sum(svd.u.numel() + svd.vh.numel() for svd in svds)
        return max(1, _BATCH_NUMBERS // size) if self._method.batched or len(owners) == 1 else 1

    def _one_batch(self, owners: tuple[int, ...], stems: Sequence[str]) -> None:
        active = [index for index in owners if self._weights[index]]
        weights = [self._weights[index] for index in active]
        svds = [self._stacked(index, stems) for index in active or owners[:1]]
        if len(active) > 1:
            layers = self._layers(active, stems, svds, weights)
            merged, met = self._chosen(layers)(layers), interference(layers)
            self._note_pairs(active, met)
        else:
            merged, met = _scaled(svds[0], sum(weights)), None
        energies = [weight**2 * energy(svd.s) for weight, svd in zip(weights, svds, strict=False)]
        for index, own, removed in zip(active, energies, merged.removed.sum(0).tolist(), strict=False):
            self._own[index] += float(own.sum())
            self._removed[index] += removed
        self._keep(owners, stems, merged, met, sum(energies))

    def _stacked(self, index: int, stems: Sequence[str]) -> SVD:
        """One adapter's layers as a batch, on the device."""
        svds = [self._adapters[index].layers[stem].svd for stem in stems]
        return SVD(*(torch.stack(parts).to(self._device) for parts in zip(*svds, strict=True)))

    def _layers(
        self, active: Sequence[int], stems: Sequence[str], svds: Sequence[SVD], weights: Sequence[float]
    ) -> Layers:
        moments = self._moments(active, stems[0]) if self._calibrations else ()
        return Layers(stems, active, svds, weights, self._options, moments)

    def _chosen(self, layers: Layers) -> Merger:
        """The method, or the sum where it lacks calibrations."""
        if not self._calibrations or layers.moments:
            return self._merger
        self._uncalibrated += 1
        return combined

    def _note_pairs(self, active: Sequence[int], met: Interference) -> None:
        for (i, a), (j, b) in combinations(enumerate(active), 2):
            self._met[a, b].append(Interference(*(part[:, i, j].cpu() for part in met)))

    def _moments(self, active: Sequence[int], stem: str) -> tuple[tuple[Moments, Moments], ...]:
        """The moments of one layer for each adapter, () where a calibration lacks it."""
        found = [self._calibrations[index].moments(stem) for index in active]
        wanted = self._adapters[active[0]].layers[stem].svd.vh.shape[1]
        for given in (pair[0].width for pair in found if pair is not None):
            if given != wanted:
                raise InputError(f"layer {stem} reads {wanted} inputs, its calibration {given}; calibrate this model")
        return tuple(pair for pair in found if pair is not None) if all(found) else ()

    def _keep(
        self, owners: tuple[int, ...], stems: Sequence[str], merged: Merged, met: Interference | None, own: Any
    ) -> None:
        """Cut the layers of a batch and note what is told of them."""
        svd = SVD(*(part.cpu() for part in merged.svd))
        whole, removed = merged.whole.double().cpu(), merged.removed.double().sum(-1).cpu()
        shares = (removed / torch.as_tensor(own).double().cpu().clamp_min(1e-300)).tolist()
        kept = [_cut(SVD(*parts), total, self._options) for *parts, total in zip(*svd, whole, strict=True)]
        after = torch.stack([energy(found.s) for found in kept])
        self._sums += torch.stack([whole.sum(), after.sum()])
        left = torch.where(whole > 0, after / whole, torch.ones_like(whole)).clamp_max(1.0).tolist()
        worst = _worst(met) if met else [(0.0, 0.0, 0.0)] * len(stems)
        for stem, found, share, lost, overlaps in zip(stems, kept, left, shares, worst, strict=True):
            self._merged[stem] = Layer(found, self._adapters[owners[0]].layers[stem].kernel)
            self._told[stem] = LayerReport(owners, len(found.s), share, lost, *overlaps)


def _worst(met: Interference) -> list[tuple[float, float, float]]:
    """The largest overlaps of each layer over all pairs, and the cosine furthest from 0."""
    first, second = torch.triu_indices(met.write.shape[-2], met.write.shape[-1], offset=1)
    write, read, cosine = (part[:, first, second].cpu() for part in met[:3])
    furthest = cosine.gather(-1, cosine.abs().argmax(-1, keepdim=True))
    table: list[tuple[float, float, float]]
    table = torch.stack([write.amax(-1), read.amax(-1), furthest[:, 0]], -1).tolist()
    return table


def _scaled(svd: SVD, weight: float) -> Merged:
    """The layers of one adapter alone, each bit kept at weight 1."""
    scaled = SVD(svd.u, svd.s * abs(weight), svd.vh if weight >= 0 else -svd.vh)
    return Merged(scaled, energy(scaled.s), torch.zeros(len(svd.s), 1, dtype=torch.float64))


def _cut(svd: SVD, whole: Tensor, options: MergeOptions) -> SVD:
    """One layer at the asked rank, or at the smaller one that holds the asked share of the energy `whole`."""
    rank = options.rank or len(svd.s)
    if options.keep_energy < 1:
        rank = min(rank, rank_holding(svd.s, options.keep_energy, whole))
    return cut_rank(svd, rank)[0] if rank < len(svd.s) else svd


def _check_shapes(stem: str, layers: Sequence[Layer]) -> None:
    shapes = [_shape(layer) for layer in layers]
    if len(set(shapes)) > 1:
        found = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise InputError(f"layer {stem} is {found} in these adapters; choose adapters for one base model")


def _shape(layer: Layer) -> tuple[int, ...]:
    """(out, in) of Linear, (out, in, kh, kw) of Conv; a 1x1 convolution counts as Linear: files differ in it."""
    kernel = layer.kernel if math.prod(layer.kernel) > 1 else ()
    return (layer.svd.u.shape[0], layer.svd.vh.shape[1] // math.prod(kernel), *kernel)
