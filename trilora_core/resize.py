"""One adapter at a smaller rank: the same for every layer, or as many directions as each layer needs for its energy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median

from . import checks
from .errors import InputError
from .fileformat import Adapter, Layer
from .spectral import cut_energy, cut_rank
from .spectral import energy as energy_of

__all__ = ["ResizeReport", "resize"]


@dataclass(frozen=True)
class ResizeReport:
    """What a cut left. Energies are shares of ‖ΔW‖_F², 0 to 1; ranks by layer before and after."""

    kept_energy: float
    layer_energy: dict[str, float]
    before: dict[str, int]
    after: dict[str, int]

    def text(self, worst: int = 3) -> str:
        """The ranks before and after, the energy kept, and the layers that lost most of theirs."""
        head = f"{_ranks(self.before)} to {_ranks(self.after)} in {len(self.after)} layers: "
        lines = [head + f"{self.kept_energy:.2%} of the energy kept"]
        least = sorted(self.layer_energy.items(), key=lambda item: item[1])[:worst]
        lines += [f"  {kept:.2%} in {stem}" for stem, kept in least if kept < self.kept_energy]
        return "\n".join(lines)


def resize(adapter: Adapter, *, rank: int = 0, energy: float = 1.0) -> tuple[Adapter, ResizeReport]:
    """Keep of each layer the fewest singular values that hold `energy` (0 to 1) of its energy, at most `rank` of them.

    rank 0: no limit. The best fit of its rank (Eckart and Young 1936); layers that need no cut stay bit for bit.
    Raises InputError for a rank or share that makes no sense, when neither asks for a cut, or without layers.
    """
    checks.whole("rank", rank, 0)
    checks.number("energy", energy, above=0, most=1)
    if rank == 0 and energy == 1.0:
        raise InputError(
            "rank is 0 and energy 1, which keeps everything; give a rank such as 8, or an energy such as 0.95"
        )
    if not adapter.layers:
        raise InputError("the adapter has no layers; train or load one first")
    layers: dict[str, Layer] = {}
    shares: dict[str, float] = {}
    total, left = 0.0, 0.0
    for stem, layer in adapter.layers.items():
        layers[stem] = _cut(layer, rank, energy)
        whole, kept = float(energy_of(layer.svd.s)), float(energy_of(layers[stem].svd.s))
        shares[stem] = kept / whole if whole else 1.0
        total, left = total + whole, left + kept
    report = ResizeReport(left / total if total else 1.0, shares, _counts(adapter.layers), _counts(layers))
    return Adapter(layers, _metadata(adapter, rank, energy, report)), report


def _cut(layer: Layer, rank: int, energy: float) -> Layer:
    svd = layer.svd
    if energy < 1:
        svd = cut_energy(svd, energy)[0]
    if rank and svd.s.shape[-1] > rank:
        svd = cut_rank(svd, rank)[0]
    return layer if svd.s.shape == layer.svd.s.shape else Layer(svd, layer.kernel)


def _metadata(adapter: Adapter, rank: int, energy: float, report: ResizeReport) -> dict[str, str]:
    """All that the file said of its making still holds, but it is no longer what that run left."""
    source = adapter.metadata.get("sshs_model_hash", "")
    done = {"rank": rank, "energy": energy, "kept_energy": round(report.kept_energy, 6), "from_sha256": source}
    kept = {key: value for key, value in adapter.metadata.items() if key not in _OF_THE_RUN}
    return kept | {"trilora.resize": json.dumps(done)}


_OF_THE_RUN = ("trilora.fingerprint",)  # by which a finished run is recognised


def _counts(layers: dict[str, Layer]) -> dict[str, int]:
    return {stem: layer.svd.s.shape[-1] for stem, layer in layers.items()}


def _ranks(counts: dict[str, int]) -> str:
    """ "rank 16", or "rank 3 to 12 (median 7)"."""
    least, most = min(counts.values()), max(counts.values())
    return f"rank {most}" if least == most else f"rank {least} to {most} (median {median(counts.values()):g})"
