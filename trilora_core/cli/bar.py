"""A run to its file with a progress bar, and every way that it may end in words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..crew import Lost
from ..data import Dataset
from ..errors import InputError
from ..keeper import Outcome
from ..memory import OUT_OF_MEMORY, Estimate, make_room, out_of_memory, spilled
from ..milestones import Listeners
from ..monitor import Measure
from ..protocols import Previewer
from ..session import train_to_file
from ..spectrum import Spectrum
from ..train import Run, Step, TrainingDiverged
from .pictures import progress_bar

__all__ = ["train_with_bar"]


def train_with_bar(
    run: Run,
    output: Path,
    *,
    resume: bool = False,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] = MappingProxyType({}),
    estimate: Estimate | None = None,
    held_out: Dataset | None = None,
    previewer: Previewer | None = None,
    on_begin: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train to the file with a progress bar that shows loss, learning rate and remaining time.

    `on_begin` is called when a resumed run has its steps, `check` after each step; it may raise KeyboardInterrupt.
    Measures on `held_out` and the place of what `previewer` draws are printed above the bar. A KeyboardInterrupt
    goes on with the name of the file that holds what was trained; a run that diverges, does not fit into memory or
    loses another process raises InputError.
    """
    bar = progress_bar(run.config.steps, "training", "step")
    shown: list[float] = []
    kept: list[Path] = []
    spills: list[str] = []  # one warning is enough

    def on_step(step: Step) -> None:
        bar.update(step.step - bar.n)
        if step.dropped:
            bar.write(f"step {step.step} was dropped: {step.dropped}", file=sys.stderr)
        else:
            shown.append(step.loss)
        recent = shown[-20:]
        loss = sum(recent) / len(recent) if recent else float("nan")
        bar.set_postfix_str(f"loss {loss:.4f}, lr {step.learning_rate:.2g}", refresh=False)
        if not spills and (spill := spilled(run.device)):
            spills.append(spill)
            bar.write(f"warning: {spill}", file=sys.stderr)
        check()

    try:
        return train_to_file(
            run,
            output,
            metadata=metadata,
            resume=resume,
            dtype=dtype,
            on_step=on_step,
            on_stopped=kept.append,
            held_out=held_out,
            previewer=previewer,
            listeners=_listeners(bar, on_begin),
        )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_where(run, kept)) from interrupt
    except Lost as error:
        raise InputError(f"{error}; {_where(run, kept)}") from error
    except TrainingDiverged as error:
        raise InputError(f"training diverged: {error}") from error
    except OUT_OF_MEMORY as error:
        make_room(run, error)
        raise InputError(out_of_memory(run, estimate, kept[0] if kept else None)) from error
    except InputError as error:
        raise InputError(f"{error}; {_where(run, kept)}" if kept else str(error)) from error
    except Exception:
        if kept:
            bar.write(_where(run, kept), file=sys.stderr)
        raise
    finally:
        bar.close()


def _listeners(bar: Any, on_begin: Callable[[], None]) -> Listeners:
    """Print what happens on the way above the bar; where previews lie is said once."""
    told: set[Path] = set()

    def measured(measure: Measure) -> None:
        bar.write(f"step {measure.step}: validation {measure.validation:.4f}, drift {measure.drift:.4g}")

    def drawn(step: int, paths: list[Path]) -> None:
        strip = paths[-1].resolve()
        if strip not in told:
            told.add(strip)
            bar.write(f"previews: {strip} shows all, the pictures by step lie beside it")

    def problem(text: str) -> None:
        bar.write(f"warning: {text}", file=sys.stderr)

    def looked(spectrum: Spectrum) -> None:
        bar.write(f"step {spectrum.step}: effective rank {spectrum.effective_rank:.3g}, norm {spectrum.norm:.3g}")

    return Listeners(measured, drawn, problem, looked, on_begin)


def _where(run: Run, kept: list[Path]) -> str:
    if not kept:
        return "no step was done yet, so there is nothing to keep"
    return f"the adapter after step {run.step} is {kept[0].resolve()}; the same command with --resume goes on"
