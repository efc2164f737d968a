"""Several adapters to one: the exact weighted sum of their changes, layer by layer, kept whole or cut to a rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import InputError
from .fileformat import Adapter, Layer
from .keys import canonical_stem
from .metadata import architecture_of, trigger_words
from .spectral import SVD, combine, cut_rank, energy

__all__ = ["METHODS", "MergeReport", "merge"]

Merger = Callable[[Sequence[SVD], Sequence[float]], SVD]


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. `kept_energy` is the share of ‖ΔW‖_F² that is left after cutting to the rank, 0 to 1."""

    kept_energy: float
    layer_energy: dict[str, float]  # the same for each layer
    shared: int  # layers that more than one adapter has
    single: int  # layers that one adapter has


def merge(
    adapters: Sequence[Adapter], weights: Sequence[float], *, method: str = "sum", rank: int = 0
) -> tuple[Adapter, MergeReport]:
    """Merge adapters of one architecture with a weight for each; layers that only some have pass through, scaled.

    method: "sum" = Σ weight · ΔW, exact. rank: 0 keeps everything; r keeps the r largest singular values of a layer.
    Raises InputError for unlike architectures or shapes, and for weights or a rank that make no sense.
    """
    _check_request(adapters, weights, method, rank)
    architecture = _common_architecture(adapters)
    adapters = [_respelled(adapter, architecture) for adapter in adapters]
    layers: dict[str, Layer] = {}
    kept: dict[str, float] = {}
    total, left, shared = 0.0, 0.0, 0
    for stem in dict.fromkeys(stem for adapter in adapters for stem in adapter.layers):
        owners = [(a.layers[stem], weight) for a, weight in zip(adapters, weights, strict=True) if stem in a.layers]
        _check_shapes(stem, [layer for layer, _ in owners])
        whole = METHODS[method]([layer.svd for layer, _ in owners], [weight for _, weight in owners])
        svd = cut_rank(whole, rank)[0] if rank else whole
        before, after = float(energy(whole.s)), float(energy(svd.s))
        layers[stem], kept[stem] = Layer(svd, owners[0][0].kernel), after / before if before else 1.0
        total, left, shared = total + before, left + after, shared + (len(owners) > 1)
    report = MergeReport(left / total if total else 1.0, kept, shared, len(layers) - shared)
    return Adapter(layers, _metadata(adapters, weights, method, rank, architecture)), report


METHODS: dict[str, Merger] = {"sum": combine}


def _check_request(adapters: Sequence[Adapter], weights: Sequence[float], method: str, rank: int) -> None:
    if method not in METHODS:
        raise InputError(f"method is {method!r}; known: {', '.join(METHODS)}")
    if not adapters or len(adapters) != len(weights):
        raise InputError(f"{len(adapters)} adapters and {len(weights)} weights; give one weight for each adapter")
    for weight in weights:
        if not math.isfinite(weight):
            raise InputError(f"weights are {list(weights)}; wanted finite numbers, such as 0.7")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise InputError(f"rank is {rank!r}; wanted 0 (keep all) or a whole number above it")
    for index, adapter in enumerate(adapters):
        if not adapter.layers:
            raise InputError(f"{_name(adapter, index)} has no layers; leave it out")


def _common_architecture(adapters: Sequence[Adapter]) -> str:
    """The architecture of all; those that do not tell it take that of the others."""
    told = [(architecture_of(adapter), _name(adapter, index)) for index, adapter in enumerate(adapters)]
    known: dict[str, str] = {}
    for architecture, name in told:
        if architecture:
            known.setdefault(architecture, name)
    if len(known) > 1:
        found = ", ".join(f"{name} is for {architecture}" for architecture, name in known.items())
        raise InputError(f"{found}: adapters of different models cannot be merged; choose adapters for one base model")
    if not known and len(adapters) > 1 and not set.intersection(*(set(a.layers) for a in adapters)):
        names = " and ".join(name for _, name in told)
        raise InputError(f"{names} share no layer and do not name their model; choose adapters for one model")
    return next(iter(known), "")


def _respelled(adapter: Adapter, architecture: str) -> Adapter:
    """The adapter with the names of this architecture, which a file that did not tell its own may spell otherwise."""
    layers = {canonical_stem(stem, architecture): layer for stem, layer in adapter.layers.items()}
    return Adapter(layers, adapter.metadata)


def _check_shapes(stem: str, layers: Sequence[Layer]) -> None:
    shapes = [_shape(layer) for layer in layers]
    if len(set(shapes)) > 1:
        found = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise InputError(f"layer {stem} is {found} in these adapters; choose adapters for one base model")


def _shape(layer: Layer) -> tuple[int, ...]:
    """(out, in) of Linear, (out, in, kh, kw) of Conv; a 1x1 convolution counts as Linear: files differ in it."""
    kernel = layer.kernel if math.prod(layer.kernel) > 1 else ()
    return (layer.svd.u.shape[0], layer.svd.vh.shape[1] // math.prod(kernel), *kernel)


def _metadata(
    adapters: Sequence[Adapter], weights: Sequence[float], method: str, rank: int, architecture: str
) -> dict[str, str]:
    """What still holds for the merged adapter, where it came from, and the trigger words of all."""
    names = [_name(adapter, index) for index, adapter in enumerate(adapters)]
    sources = [
        {"name": name, "weight": float(weight), "sha256": adapter.metadata.get("sshs_model_hash", "")}
        for name, adapter, weight in zip(names, adapters, weights, strict=True)
    ]
    words = dict.fromkeys(word for adapter in adapters for word in trigger_words(adapter))
    entries = {key: value for key, value in adapters[0].metadata.items() if key in _KEPT_WHERE_EQUAL}
    entries = {k: v for k, v in entries.items() if all(a.metadata.get(k) == v for a in adapters)}
    entries |= {
        "trilora.architecture": architecture,
        "trilora.merge": json.dumps({"method": method, "rank": rank, "from": sources}),
        "modelspec.title": " + ".join(names),
        "modelspec.merged_from": ", ".join(names),
        "modelspec.trigger_phrase": ", ".join(words),
        "modelspec.usage_hint": f"Put {', '.join(words)} into the prompt." if words else "",
        "modelspec.tags": "trilora, merge",
    }
    return {key: value for key, value in entries.items() if value}


_KEPT_WHERE_EQUAL = (
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
    "ss_base_model_version",
    "ss_network_module",
    "ss_resolution",
    "ss_sd_model_name",
    "ss_v2",
    "trilora.base_fingerprint",
    "trilora.base_name",
)


def _name(adapter: Adapter, index: int) -> str:
    """What an adapter calls itself, or its place in the list."""
    names = ("modelspec.title", "ss_output_name")
    return next((adapter.metadata[name] for name in names if adapter.metadata.get(name)), f"adapter {index + 1}")
