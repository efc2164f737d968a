"""An adapter from two models: the low-rank part of what fine-tuning changed, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import checks
from .config import LayerConfig
from .errors import InputError
from .fileformat import Adapter, Layer
from .keys import is_text
from .layers import CHOICES, choose, kinds_of, knows_text, text_kinds
from .metadata import architecture_metadata
from .randomized import truncated_svd
from .spectral import SVD, cut_energy, energy
from .weights import Weights

__all__ = ["ExtractConfig", "ExtractReport", "LayerFit", "extract"]

_HALF_ROUNDING = 2.0**-11  # relative; what storing a model in float16 leaves of differences
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 3


@dataclass(frozen=True)
class ExtractConfig:
    """What is extracted: at most `rank` directions a layer, and no more than hold `energy` (0 to 1) of the difference.

    `layers` chooses layers of the denoiser, and of the text encoders those of the same kind, where `text` is set.
    """

    rank: int = 32
    energy: float = 1.0
    layers: LayerConfig = field(default_factory=LayerConfig)
    text: bool = True

    def __post_init__(self) -> None:
        checks.whole("rank", self.rank, 1)
        checks.number("energy", self.energy, above=0, most=1)
        checks.flag("text", self.text)


@dataclass(frozen=True)
class LayerFit:
    """One layer: its rank, the relative Frobenius error of the fit to the difference, and ‖difference‖² and ‖W‖²."""

    rank: int
    error: float
    difference: float
    weight: float


@dataclass(frozen=True)
class ExtractReport:
    """How well the adapter stands for the difference of the chosen layers; `same` are layers without any."""

    layers: dict[str, LayerFit]
    same: tuple[str, ...]
    left_out: tuple[str, ...]  # of text encoders that only one of the models has

    @property
    def error(self) -> float:
        """Relative Frobenius error of all layers together; 0 is exact."""
        lost = sum(fit.error**2 * fit.difference for fit in self.layers.values())
        return math.sqrt(lost / sum(fit.difference for fit in self.layers.values()))

    @property
    def change(self) -> float:
        """‖tuned - base‖ / ‖base‖ over the layers that differ."""
        fits = self.layers.values()
        return math.sqrt(sum(fit.difference for fit in fits) / max(sum(fit.weight for fit in fits), 1e-300))

    def text(self, worst: int = _SHOWN) -> str:
        """Counts, the error as a whole, and the layers that are fitted worst."""
        ranks = [fit.rank for fit in self.layers.values()]
        rank = f"rank {max(ranks)}" if min(ranks) == max(ranks) else f"rank {min(ranks)} to {max(ranks)}"
        lines = [
            f"{len(self.layers)} layers, {rank}; {1 - self.error**2:.1%} of the difference's energy"
            f" (relative error {self.error:.3g}); the models differ by {self.change:.2%}"
        ]
        if self.same:
            lines.append(f"{len(self.same)} of the chosen layers are the same in both models")
        if self.left_out:
            lines.append(f"{len(self.left_out)} layers of text encoders are in one of the models only: left out")
        if self.change < _HALF_ROUNDING:
            lines.append("they differ by no more than the rounding of half precision: perhaps one was only converted")
        ranked = sorted(self.layers.items(), key=lambda item: -item[1].error)[:worst]
        return "\n".join(
            lines + [f"  error {fit.error:.3g} in {stem}" for stem, fit in ranked if fit.error > self.error]
        )


Progress = Callable[[int, int], None]


def extract(
    tuned: Weights,
    base: Weights,
    config: ExtractConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Adapter, ExtractReport]:
    """The adapter that comes nearest to tuned - base at its rank, with the error of every layer.

    One layer of each model is on the device at a time; the difference is taken in float32. `progress` is told how many
    layers of how many are done. Raises InputError for models of two architectures, layers that differ in shape, fp8
    weights, and models that are the same.
    """
    stems, left_out = _common(tuned, base, config)
    layers: dict[str, Layer] = {}
    fits: dict[str, LayerFit] = {}
    same: list[str] = []
    for done, stem in enumerate(stems):
        delta, weight = _difference(tuned, base, stem, device)
        if float(delta.abs().amax()) == 0:
            same.append(stem)
        else:
            svd, fits[stem] = _fit(stem, delta, weight, config)
            layers[stem] = Layer(svd, base.shapes[stem][2:])
        if progress is not None:
            progress(done + 1, len(stems))
    if not layers:
        raise InputError(
            f"{_both(tuned, base)} are the same in all {len(stems)} chosen layers; give the fine-tuned model"
            " first and the model that it was tuned from second, or choose more layers"
        )
    report = ExtractReport(fits, tuple(same), left_out)
    return Adapter(layers, _metadata(tuned, base, config, report)), report


def _difference(tuned: Weights, base: Weights, stem: str, device: torch.device | str) -> tuple[Tensor, float]:
    """tuned - base of one layer (out, in · kernel) in float32 on the device, and ‖base‖²."""
    parts = []
    for model in (tuned, base):
        weight = model.read(stem).detach()
        if weight.dtype not in _DTYPES:
            raise InputError(
                f"{stem} of {model.name} is stored as {str(weight.dtype).removeprefix('torch.')}, whose rounding is"
                " larger than what fine-tuning changes; give the model in fp16, bf16 or fp32"
            )
        parts.append(weight.to(device, torch.float32).flatten(1))
    return parts[0] - parts[1], float(energy(parts[1].flatten()))


def _fit(stem: str, delta: Tensor, weight: float, config: ExtractConfig) -> tuple[SVD, LayerFit]:
    try:
        svd, error = truncated_svd(delta, config.rank)
    except InputError as found:
        raise InputError(f"layer {stem}: {found}") from found
    whole = energy(delta.flatten())
    lost = error.square() * whole
    if config.energy < 1:
        share = float(config.energy * whole / energy(svd.s))
        if share < 1:
            svd, discarded = cut_energy(svd, share)
            lost = lost + discarded
    fit = LayerFit(svd.s.shape[0], float((lost / whole).sqrt()), float(whole), weight)
    return SVD(*(part.cpu() for part in svd)), fit


# --- which layers ---------------------------------------------------------------------------------------------------


def _common(tuned: Weights, base: Weights, config: ExtractConfig) -> tuple[list[str], tuple[str, ...]]:
    """The chosen layers, and those of text encoders that only one model has."""
    if tuned.architecture != base.architecture:
        raise InputError(
            f"{_both(tuned, base)} are {tuned.architecture} and {base.architecture}: models of two architectures"
            " have no difference; give a fine-tuned model and the one that it was tuned from"
        )
    ours, theirs = _chosen(tuned, config), _chosen(base, config)
    lone = [stem for stem in dict.fromkeys([*ours, *theirs]) if not (stem in ours and stem in theirs)]
    missing = [stem for stem in lone if not is_text(stem)]
    if missing:
        raise InputError(
            f"{len(missing)} layers are in one only of {_both(tuned, base)}, such as {missing[0]}:"
            " give two models of the same shape"
        )
    common = [stem for stem in ours if stem in theirs]
    for stem in common:
        if tuned.shapes[stem] != base.shapes[stem]:
            raise InputError(
                f"layer {stem} is {_size(tuned.shapes[stem])} and {_size(base.shapes[stem])} in {_both(tuned, base)}:"
                " give two models of the same shape"
            )
    return common, tuple(lone)


def _chosen(model: Weights, config: ExtractConfig) -> dict[str, None]:
    kinds = kinds_of(model.shapes, model.architecture)
    if config.text and knows_text(model.architecture):
        kinds |= text_kinds(model.shapes, model.architecture)
    if not any(kind in CHOICES[config.layers.which] for kind in kinds.values()):
        raise InputError(f"{model.name} has no layer of the choice {config.layers.which!r} under names known here")
    return dict.fromkeys(choose(kinds, config.layers))


def _both(tuned: Weights, base: Weights) -> str:
    return f"the tuned model {tuned.name} and the base model {base.name}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _metadata(tuned: Weights, base: Weights, config: ExtractConfig, report: ExtractReport) -> dict[str, str]:
    done = {
        "tuned": tuned.name,
        "base": base.name,
        "rank": config.rank,
        "energy": config.energy,
        "layers": config.layers.which,
        "relative_error": float(f"{report.error:.4g}"),
    }
    return architecture_metadata(base.architecture) | {
        "ss_sd_model_name": base.name,
        "ss_output_name": tuned.name,
        "modelspec.title": tuned.name,
        "modelspec.description": f"The difference of {tuned.name} from {base.name}.",
        "modelspec.tags": "trilora, extract",
        "trilora.base_name": base.name,
        "trilora.extract": json.dumps(done),
    }
