"""A grid of pictures drawn by the host: prompts, adapters and strengths, from the noise of one seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...trilora_core.errors import InputError
from ...trilora_core.fileformat import Adapter, read_adapter
from ...trilora_core.grid import Cell, Plan
from ...trilora_core.grid_sheet import fit
from ...trilora_core.metadata import adapter_names
from .base import other_base
from .events import reporter
from .patching import apply
from .paths import kept_files
from .preview import HostPreviewer

__all__ = ["Source", "draw_grid", "sources", "step_sources"]

# what Train puts behind the name of a run's file
SUFFIXES = re.compile(r"_(best|step_\d+|stopped_at_\d+(_\d+)?)$")
DIGITS = 9  # of a number of steps: Python refuses to read thousands of them


@dataclass(frozen=True)
class Source:
    """An adapter of a grid, read when its turn comes, and what it is called there."""

    name: str
    adapter: Adapter | Path

    def read(self) -> Adapter:
        """The adapter itself; raises InputError for a damaged file."""
        return self.adapter if isinstance(self.adapter, Adapter) else read_adapter(self.adapter)


def sources(adapters: Sequence[Adapter]) -> list[Source]:
    """The adapters under names that tell them apart."""
    return [Source(*pair) for pair in zip(adapter_names(adapters), adapters, strict=True)]


def step_sources(adapters: Sequence[Adapter]) -> list[Source]:
    """Each adapter, and before it those that its training kept on the way.

    They are found by the name that the run gave its file. Raises InputError for an adapter that has none.
    """
    found = []
    for source, adapter in zip(sources(adapters), adapters, strict=True):
        run = SUFFIXES.sub("", adapter.metadata.get("ss_output_name", ""))
        kept = kept_files(run)
        if not kept:
            raise InputError(
                f'training_steps is on, but no file like "{run or source.name}_step_00100.safetensors" lies in'
                " models/loras; set keep_adapters in TriLoRA Monitor Options and save_every in TriLoRA Optimizer"
                " Options before training, or turn training_steps off"
            )
        first = f"{source.name}\n" if len(adapters) > 1 else ""
        steps = adapter.metadata.get("ss_steps", "")
        kept.pop(int(steps) if steps.isdecimal() and len(steps) <= DIGITS else -1, None)  # the adapter itself
        found += [Source(f"{first}step {step}", path) for step, path in kept.items()]
        found.append(Source(f"{first}step {steps}" if steps.isdecimal() else source.name, adapter))
    return found


def draw_grid(
    laid_out: Plan,
    prompts: Sequence[str],
    chosen: Sequence[Source],
    model: Any,
    clip: Any,
    vae: Any,
    *,
    seed: int,
    side: int,
    sampling: dict[str, Any],
    node_id: str | None,
) -> tuple[list[list[Image.Image]], list[str]]:
    """The pictures of a plan by row, each fitted to `side` pixels, and what the user should know about the adapters.

    `sampling` is what HostPreviewer takes. Model and clip are cloned for each adapter and strength; strength 0 is the
    model itself. The host's interrupt passes through. Raises InputError for an adapter that does not fit.
    """
    work, drawn, problems = laid_out.work(), dict[Cell, Image.Image](), dict[str, None]()
    total = sum(map(len, work.values()))
    report = reporter(node_id, "picture")
    report(0, total)
    previewer = HostPreviewer(model, clip, vae, **sampling)
    for (number, strength), cells in work.items():
        patched, text = model, clip
        if number is not None:
            adapter = chosen[number].read()
            patched, text = apply(adapter, model, strength, clip, strength)
            problems[other_base(adapter, model)] = None
        if text is not previewer.clip:  # another text encoder knows nothing of what this one has encoded
            previewer = HostPreviewer(patched, text, vae, **sampling)
        previewer.model = patched
        for cell in cells:
            (picture,) = previewer.preview([prompts[cell.prompt]], [seed])
            drawn[cell] = fit(picture, side)
            report(len(drawn), total)
    return laid_out.rows(drawn), [problem for problem in problems if problem]
