"""The pictures of a run: encoded with a progress bar, and those of the prior drawn before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from ..backend_diffusers import DiffusersDenoiser, DiffusersEncoder, DiffusersPreviewer
from ..backend_diffusers_text import find_overlong
from ..config import TrainConfig
from ..config_data import DataConfig, PriorConfig
from ..data import Dataset, Progress, Store, load_folder, survey_folder
from ..data.prior import ensure_prior
from ..home import expanded
from ..preserve import LEVELS, Kept, encode_prior, keep

__all__ = ["draw_prior", "encode", "keep_base", "prior_data", "progress_bar", "reported", "survey"]


def encode(pipe: Any, data: DataConfig, store: Store, *, silent: bool = False) -> Dataset:
    """Read the folder and encode those of its pictures and captions that the store lacks, with a progress bar."""
    # finding everything in the store takes no time that needs a bar
    with reported("encoding", "item", silent, delay=1.0) as progress:
        dataset = load_folder(data, DiffusersEncoder(pipe), store, progress)
    return replace(dataset, notes=(*_overlong(pipe, dataset), *dataset.notes))


def _overlong(pipe: Any, dataset: Dataset) -> list[str]:
    """A note on the captions that the model does not read to their end, if there are any."""
    long, most = find_overlong(pipe, dataset.captions)
    names = [item.name for item in dataset.items if item.caption in long]
    if not names:
        return []
    which = f"the caption of {names[0]} is" if len(names) == 1 else f"the captions of {len(names)} pictures are"
    more = f": {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if len(names) > 1 else ""
    return [f"{which} longer than the {most} tokens that this model reads, so that the end is not seen{more}"]


def survey(data: DataConfig, store: Store, *, silent: bool = False) -> Dataset:
    """Read the folder without encoding anything, with a progress bar."""
    with reported("reading", "picture", silent, delay=1.0) as progress:
        # what is found counts once here, and again when it is encoded, which it is not
        return survey_folder(data, store, progress and (lambda done, total: progress(done, total // 2)))


def draw_prior(pipe: Any, prior: PriorConfig, resolution: int, *, base: str = "", silent: bool = False) -> int:
    """Draw the prior pictures that are missing, with the model as it is now; how many these were."""
    previewer = DiffusersPreviewer(pipe, resolution=resolution)
    with reported("drawing prior", "picture", silent) as progress:
        _, drawn = ensure_prior(prior, previewer, progress, base=base)
    return drawn


def keep_base(
    pipe: Any, dataset: Dataset, config: TrainConfig, store: Store, device: torch.device, *, silent: bool = False
) -> Kept:
    """What the base predicts on its own sampling paths, as far as the store lacks it, with a progress bar."""
    captions = encode_prior(config.preserve.prompts, DiffusersEncoder(pipe), store)
    amount, denoiser = LEVELS[config.preserve.base], DiffusersDenoiser(pipe)
    with reported("asking the base", "point", silent, delay=1.0) as progress:
        return keep(denoiser, captions, dataset, amount, device, precision=config.precision, progress=progress)


def prior_data(prior: PriorConfig, data: DataConfig) -> DataConfig:
    """The options that prior pictures are read with: framed as the others, with the first prompt for a caption."""
    lines = [line.strip() for line in prior.prompt.splitlines() if line.strip()]
    return DataConfig(
        folder=str(expanded(prior.folder)),
        resolution=data.resolution,
        trigger_word=lines[0] if lines else "",
        skip_unreadable=data.skip_unreadable,
        framing=data.framing,
    )


def progress_bar(total: int, what: str, unit: str, done: int = 0, delay: float = 0.0) -> Any:
    """A bar on standard error that begins at `done`; a log file gets a line every ten seconds in place of it.

    One that is through after less than `delay` seconds is not shown.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        delay=delay,
        dynamic_ncols=True,
        file=sys.stderr,
    )


@contextmanager
def reported(what: str, unit: str, silent: bool, delay: float = 0.0) -> Iterator[Progress | None]:
    """A progress callback that shows a bar as soon as there is something to wait for."""
    bar: Any = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and done < total:
            bar = progress_bar(total, what, unit, done, delay)
        if bar is not None:
            bar.total = total
            bar.update(done - bar.n)

    try:
        yield None if silent else progress
    finally:
        if bar is not None:
            bar.close()
