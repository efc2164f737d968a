"""Several adapters to one, layer by layer, by a method of the table below, kept whole or cut to a rank or an energy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from .calibration import Calibration
from .errors import InputError
from .fileformat import Adapter
from .keys import canonical_stem
from .merge_dense import dare, dare_ties, ties
from .merge_methods import MergeOptions, combined, concatenated, knots, orthogonal, tsv
from .merge_regmean import RegMean
from .merge_report import MergeReport
from .merge_work import Method, Work
from .metadata import architecture_of, trigger_words

__all__ = ["METHODS", "MergeOptions", "MergeReport", "Method", "merge"]

DEFAULT = MergeOptions()

Progress = Callable[[int, int], None]  # (layers done, all of them); may raise to stop


METHODS: dict[str, Method] = {
    "sum": Method(
        lambda: combined, "the exact weighted sum, as if one were applied after the other; begin with it", alone=True
    ),
    "concatenate": Method(
        lambda: concatenated, "the sum with nothing ever cut: rank and keep_energy are refused", alone=True
    ),
    "ties": Method(
        lambda: ties,
        "drops small changes and those outvoted in sign; for several of one kind that blur (dense, slow)",
        batched=False,
    ),
    "dare": Method(lambda: dare, "drops changes at random, then adds; for many adapters (dense, slow)", batched=False),
    "dare_ties": Method(lambda: dare_ties, "drops at random, then votes on signs (dense, slow)", batched=False),
    "knots": Method(lambda: knots, "TIES in the directions that all share; in place of ties: of low rank and fast"),
    "tsv": Method(lambda: tsv, "turns directions that lie close apart from each other; when two subjects blend"),
    "orthogonal": Method(
        lambda: orthogonal, "the first stays whole, the others lose what lies in its directions; when one matters more"
    ),
    "regmean": Method(
        RegMean,
        "nearest to each one on its own inputs, with little change on others; needs calibrations",
        batched=False,
        calibrated=True,
    ),
}


def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    method: str = "sum",
    options: MergeOptions = DEFAULT,
    calibrations: Sequence[Calibration] = (),
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> tuple[Adapter, MergeReport]:
    """Merge adapters of one architecture with a strength for each; a weight of 0 leaves one out.

    Layers that only one adapter has pass through, scaled, whatever the method. `calibrations`: one for each adapter,
    for regmean. `device`: where the algebra runs (cpu or cuda), the adapters' own if None; the result is on the CPU.
    Raises InputError for unlike architectures or shapes, and for weights or options that make no sense.
    """
    _check_request(adapters, weights, method, options)
    architecture = _common_architecture(adapters)
    adapters = [_respelled(adapter, architecture) for adapter in adapters]
    _check_calibrations(adapters, calibrations, method, architecture)
    work = Work(adapters, weights, METHODS[method], options, calibrations, device)
    total = len(work.stems)
    for done in work.run():
        if progress is not None:
            progress(done, total)
    names = tuple(_name(adapter, index) for index, adapter in enumerate(adapters))
    report = work.report(method, names)
    return Adapter(work.layers(), _metadata(adapters, weights, method, options, architecture)), report


def _check_request(adapters: Sequence[Adapter], weights: Sequence[float], method: str, options: MergeOptions) -> None:
    if method not in METHODS:
        raise InputError(f"method is {method!r}; known: {', '.join(METHODS)}")
    if not adapters or len(adapters) != len(weights):
        raise InputError(f"{len(adapters)} adapters and {len(weights)} weights; give one weight for each adapter")
    for weight in weights:
        if not math.isfinite(weight):
            raise InputError(f"weights are {list(weights)}; wanted finite numbers, such as 0.7")
    if len(adapters) == 1 and not METHODS[method].alone:
        raise InputError(f"{method} reconciles two adapters or more, and one was given; take sum, or give another")
    if method == "concatenate" and (options.rank or options.keep_energy < 1):
        raise InputError("concatenate keeps every direction, so it takes no rank and no keep_energy; take sum to cut")
    for index, adapter in enumerate(adapters):
        if not adapter.layers:
            raise InputError(f"{_name(adapter, index)} has no layers; leave it out")


def _check_calibrations(
    adapters: Sequence[Adapter], calibrations: Sequence[Calibration], method: str, architecture: str
) -> None:
    if not METHODS[method].calibrated:
        if calibrations:
            raise InputError(f"{method} uses no calibration; leave it out, or take regmean")
        return
    if len(calibrations) != len(adapters):
        raise InputError(
            f"regmean needs a calibration for each of the {len(adapters)} adapters, and {len(calibrations)} were given;"
            " make them with TriLoRA Calibrate or train --calibrate"
        )
    for index, calibration in enumerate(calibrations):
        facts = calibration.facts
        if architecture and facts.architecture != architecture:
            raise InputError(
                f"the calibration of {_name(adapters[index], index)} is for {facts.architecture}, the adapters are for"
                f" {architecture}; calibrate the model that they were trained on"
            )


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


def _metadata(
    adapters: Sequence[Adapter], weights: Sequence[float], method: str, options: MergeOptions, architecture: str
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
        "trilora.merge": json.dumps({"method": method, **asdict(options), "from": sources}),
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
    "trilora.base_content",
    "trilora.base_fingerprint",
    "trilora.base_name",
)


def _name(adapter: Adapter, index: int) -> str:
    """What an adapter calls itself, or its place in the list."""
    names = ("modelspec.title", "ss_output_name")
    return next((adapter.metadata[name] for name in names if adapter.metadata.get(name)), f"adapter {index + 1}")
