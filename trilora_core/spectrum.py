"""The singular values of every layer while an adapter is trained, from its factors alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.nn.utils.rnn import pad_sequence

from .spectral import effective_rank, energy
from .train import Run

__all__ = ["LayerSpectrum", "Spectrum", "look_at_spectrum"]

_DIGITS = 5  # of the numbers in the log: more would only make it longer


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer: singular values of ΔW, largest first; their effective rank (Roy and Vetterli 2007); ‖ΔW‖_F."""

    values: tuple[float, ...]
    effective_rank: float
    norm: float

    def facts(self) -> dict[str, Any]:
        """The same as plain data, rounded."""
        values = [_rounded(value) for value in self.values]
        return {"values": values, "effective_rank": _rounded(self.effective_rank), "norm": _rounded(self.norm)}


@dataclass(frozen=True)
class Spectrum:
    """All layers after `step` optimizer steps, as a file saved then would have them.

    `effective_rank` is the mean over the layers that are not zero, `norm` the Frobenius norm of all ΔW together; both
    are 0 where nothing has been learned.
    """

    step: int
    effective_rank: float
    norm: float
    layers: dict[str, LayerSpectrum]

    def facts(self) -> dict[str, Any]:
        """The same as plain data for the log, without the step."""
        layers = {stem: layer.facts() for stem, layer in self.layers.items()}
        return {"effective_rank": _rounded(self.effective_rank), "norm": _rounded(self.norm), "layers": layers}


def look_at_spectrum(run: Run) -> Spectrum:
    """Look at what would be saved now; nothing of the run is changed. Raises InputError for values that are not finite.

    No ΔW is formed and no singular vector computed: two triangles and the SVD of an r x r core for each layer.
    """
    with run.as_saved():
        values = run.trainable.singular_values()
    table = pad_sequence(list(values.values()), batch_first=True)  # zeros change neither of the two
    ranks, norms = effective_rank(table), energy(table).sqrt()
    layers = {
        stem: LayerSpectrum(tuple(s.tolist()), rank, norm)
        for (stem, s), rank, norm in zip(values.items(), ranks.tolist(), norms.tolist(), strict=True)
    }
    alive = ranks[ranks > 0]
    mean = float(alive.mean()) if len(alive) else 0.0
    return Spectrum(run.step, mean, float(norms.square().sum().sqrt()), layers)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
