"""What a run is about to do, and what it left, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ..data import Dataset
from ..data.report_text import printable, short
from ..keeper import Outcome
from ..keys import is_text
from ..metadata import rank_summary
from ..presets import preset_text
from ..runlog import log_path
from ..train import Run
from .base import describe_device
from .store import CountedStore

__all__ = ["at_most", "left", "preset_lines", "remarks", "starting", "summary"]

MOST_LINES = 10


def summary(
    run: Run,
    dataset: Dataset,
    device: torch.device,
    store: CountedStore,
    *,
    drawn: int = 0,
    held_out: Dataset | None = None,
) -> list[str]:
    """What will be trained, on what, with what; `drawn` prior pictures are new, `held_out` is for validation."""
    count = sum(parameter.numel() for parameter in run.trainable.trainable())
    rank = run.config.adapter.rank
    return [
        *remarks(dataset),
        *_pictures(dataset),
        *_validation(run, held_out),
        *_prior(run, drawn),
        *_preserve(run),
        f"cache:      {store}",
        f"model:      {run.denoiser.base_name} ({run.denoiser.architecture}) on {describe_device(device)}",
        f"adapter:    {_layers(run)}, rank {rank}, {count:,} parameters",
        _length(run, dataset),
    ]


def starting(file: str, run: Run) -> list[str]:
    """The adapter in `file`, if the run goes on from it."""
    if not run.start_hash:
        return []
    rest = f"; {len(run.trainable.carried)} of its layers stay as they are" if run.trainable.carried else ""
    return [f"start:      {Path(file).resolve()}{rest}"]


def preset_lines(goal: str, run: Run, dataset: Dataset) -> list[str]:
    """What the preset comes to, where there is one."""
    if not goal:
        return []
    return [f"preset:     {preset_text(goal, run.denoiser.architecture, dataset.epoch_size, run.config)}"]


def left(outcome: Outcome, output: Path) -> list[str]:
    """What the run to `output` left, and where; the adapter itself comes last."""
    note = [outcome.note] if outcome.note else []
    kept = [f"kept: {path.resolve()}" for path in outcome.kept]
    log = [f"log: {log_path(output).resolve()}"] if log_path(output).is_file() else []
    return [*note, str(rank_summary(outcome.adapter)), *kept, *log, f"adapter: {outcome.path.resolve()}"]


def remarks(dataset: Dataset) -> list[str]:
    """Pictures that were left out, and what else the reader of the folder noticed."""
    skipped = at_most([printable(f"left out: {problem}") for problem in dataset.skipped])
    return skipped + at_most([printable(f"note: {note}") for note in dataset.notes])


def at_most(lines: Sequence[str], most: int = MOST_LINES) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - most
    return [*lines[:most], f"… and {rest} more of these"] if rest > 0 else list(lines)


def _pictures(dataset: Dataset) -> list[str]:
    """Pictures, subsets with repeats, buckets, masks."""
    config, items = dataset.config, dataset.items
    word = f', trigger word "{config.trigger_word}"' if config.trigger_word else ""
    least = f", {dataset.epoch_size} of them in each epoch" if dataset.epoch_size < len(items) else ""
    captions = f"{_count(len(set(dataset.captions)), 'caption')}{word}"
    lines = [f"pictures:   {_count(len(items), 'picture')} at resolution {config.resolution}, {captions}{least}"]
    subsets = Counter((item.subset, item.repeats) for item in items)
    if len(subsets) > 1 or any(repeats > 1 for _, repeats in subsets):
        told = [
            f"{repeats} x {_count(count, 'picture')} {f'of {printable(name)!r}' if name else 'outside such folders'}"
            for (name, repeats), count in sorted(subsets.items())
        ]
        lines += [f"subsets:    {line}" for line in at_most(told)]
    lines.append(f"buckets:    {_buckets(Counter(item.frames[0].size for item in items))}")
    if config.masks.source != "none":
        masked = sum(bool(item.masks) for item in items)
        lines.append(f"masks:      {masked} of {len(items)} pictures, {config.masks.floor:g} of the loss under them")
    return lines


def _layers(run: Run) -> str:
    """How many layers are trained, those of text encoders named beside the denoiser's."""
    total, text = len(run.trainable.branches), sum(is_text(stem) for stem in run.trainable.branches)
    if not text:
        return f"{total} layers"
    rate = run.config.optimizer.text_encoder_rate
    return f"{total} layers ({total - text} of the denoiser, {text} of the text encoder at {rate:g} x the rate)"


def _validation(run: Run, held_out: Dataset | None) -> list[str]:
    if held_out is None:
        return []
    every = run.config.monitor.validate_every
    return [f"validation: {_count(len(held_out), 'picture')} held out, measured every {_count(every, 'step')}"]


def _buckets(sizes: Counter[tuple[int, int]]) -> str:
    narrow, wide = min(sizes, key=_shape), max(sizes, key=_shape)
    if len(sizes) == 1:
        return f"1, {narrow[0]} x {narrow[1]}"
    alone = sum(count == 1 for count in sizes.values())
    single = f"; {alone} with one picture" if alone else ""
    return f"{len(sizes)}, from {narrow[0]} x {narrow[1]} to {wide[0]} x {wide[1]} pixels{single}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _shape(size: tuple[int, int]) -> float:
    return size[0] / size[1]


def _prior(run: Run, drawn: int) -> list[str]:
    if run.prior is None:
        return []
    # pictures of an older prompt count too: whoever changed it should see that
    (caption, _), *others = Counter(run.prior.captions).most_common()
    more = f" and {_count(len(others), 'other caption')}" if others else ""
    new = f", {drawn} of them drawn now" if drawn else ""
    folder = Path(run.prior.config.folder).resolve()
    return [
        f'prior:      {_count(len(run.prior), "picture")} of "{printable(short(caption, 60))}"{more} in {folder}{new};'
        f" {run.config.prior_batch_size} beside each batch, weight {run.config.prior_weight:g}"
    ]


def _preserve(run: Run) -> list[str]:
    if run.kept is None:
        return []
    amount, kept = run.kept.amount, run.kept
    return [
        f"preserve:   {run.config.preserve.base}, by {_count(len(kept.points), 'point')} of what the base draws for"
        f" {_count(len(kept.captions.texts), 'caption')}; {amount.share:.2g} beside each picture, weight"
        f" {amount.weight:g}"
    ]


def _length(run: Run, dataset: Dataset) -> str:
    config = run.config
    accumulated, processes = config.optimizer.accumulation, run.crew.size
    batch = " x ".join([f"{config.batch_size}"] + [f"{accumulated} accumulated"] * (accumulated > 1))
    batch += f" shared by {processes} processes" if processes > 1 else ""
    batch += f", at most {run.at_once} in a forward" if run.at_once else ""
    epochs = config.steps * config.batch_size * accumulated / dataset.epoch_size
    return (
        f"run:        {config.steps} steps of batch {batch} ({epochs:.3g} epochs),"
        f" learning rate {config.optimizer.learning_rate:g}, seed {config.seed}"
    )
