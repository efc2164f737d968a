"""What a node shows of an adapter or a merge at a glance: a few words and numbers, as plain data of bounded size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .blocks import block_of, blocks_of
from .errors import InputError
from .fileformat import Adapter
from .merge_report import LayerReport, MergeReport
from .metadata import architecture_of, base_model, trigger_words
from .spectral import effective_rank

__all__ = ["adapter_card", "merge_card"]

VALUES = 64  # bars of the spectrum; more could not be told apart on a node
PERCENT = 100  # steps of keep_energy, of a hundredth each
WORDS = 32
BLOCKS = 96  # Flux, the largest model known here, has 62 with its text encoders
REMARKS = 8
LETTERS = 300  # of one text: the metadata of a file can hold anything
_DIGITS = 4


def adapter_card(adapter: Adapter) -> dict[str, Any]:
    """Base model, ranks, trigger words and the mean spectrum; raises InputError for an adapter without layers.

    `spectrum`: singular values over the largest of their layer, as means over the layers that are not zero, the first
    VALUES of them. `kept`: for keep_energy 0.01, 0.02, … 1 the mean number of directions that a layer keeps.
    """
    values = [layer.svd.s.detach().double().cpu() for layer in adapter.layers.values()]
    if not values:
        raise InputError("the adapter has no layers; train or load one first")
    ranks = torch.tensor([s.numel() for s in values])
    table = pad_sequence(values, batch_first=True)  # zeros change nothing below
    alive = table[table[:, 0] > 0]
    spectrum = (alive / alive[:, :1]).mean(0)[:VALUES] if len(alive) else table[:0, 0]
    return {
        "architecture": architecture_of(adapter),
        "base": _text(base_model(adapter)),
        "words": [_text(word) for word in trigger_words(adapter)[:WORDS]],
        "hash": _text(adapter.metadata.get("sshs_model_hash", "")),
        "layers": len(values),
        "rank": [int(ranks.min()), int(ranks.max())],
        "effective": _rounded(float(effective_rank(table).mean())),
        "spectrum": [_rounded(value) for value in spectrum.tolist()],
        "kept": [_rounded(value) for value in _kept(table, ranks).tolist()],
    }


def merge_card(report: MergeReport, architecture: str = "") -> dict[str, Any]:
    """The report of a merge block by block, in the order of the model, at most BLOCKS of them.

    `interference` is the mean over the layers of a block that several adapters have of sqrt(write · read), 0 to 1,
    None where there is no such layer; `energy_kept` and `left_out` are means over all its layers.
    """
    found: defaultdict[Any, list[LayerReport]] = defaultdict(list)
    for stem, layer in report.layers.items():
        found[block_of(stem, architecture)].append(layer)
    order = [block for block in blocks_of(architecture, report.layers) if block in found]
    return {
        "method": report.method,
        "names": [_text(name) for name in report.names],
        "energy_kept": _rounded(report.kept_energy),
        "blocks": [{"name": str(block), **_met(found[block])} for block in order[:BLOCKS]],
        "more_blocks": max(0, len(order) - BLOCKS),
        "warnings": [_text(remark) for remark in report.remarks()[:REMARKS]],
    }


def _kept(table: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Mean number of directions that `shaping.shape` keeps at each hundredth of energy: (PERCENT,)."""
    held = table.square().cumsum(-1)
    shares = torch.arange(1, PERCENT, dtype=torch.float64) / PERCENT
    enough = torch.searchsorted(held, shares * held[:, -1:]) + 1  # the count of those below it, and the next
    return torch.cat([enough.double().mean(0), ranks.double().mean().unsqueeze(0)])


def _met(layers: Sequence[LayerReport]) -> dict[str, Any]:
    shared = [(layer.write * layer.read) ** 0.5 for layer in layers if len(layer.owners) > 1]
    return {
        "layers": len(layers),
        "interference": _rounded(fmean(shared)) if shared else None,
        "energy_kept": _rounded(fmean(layer.kept_energy for layer in layers)),
        "left_out": _rounded(fmean(layer.removed for layer in layers)),
    }


def _text(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
