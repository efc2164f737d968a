"""What a training run tells while it goes on: to the node, to the log, and to the panel of the front end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from PIL import Image

from ...trilora_core.errors import InputError
from ...trilora_core.keeper import Outcome
from ...trilora_core.liverun import LiveRun
from ...trilora_core.memory import spilled
from ...trilora_core.milestones import Listeners
from ...trilora_core.monitor import Measure
from ...trilora_core.previews import previews_folder
from ...trilora_core.protocols import Previewer
from ...trilora_core.runlog import log_path
from ...trilora_core.runrecord import read_log
from ...trilora_core.spectrum import Spectrum
from ...trilora_core.train import Run, Step, TrainingDiverged
from . import routes
from .events import Progress, announce, check_interrupt, interrupt_type, listened_to, send
from .paths import name_below_loras

__all__ = ["Reporter"]

EVENT = "trilora.run"
SECONDS = 0.25  # between two events, but for those that tell of a new state: more would only load the browser

log = logging.getLogger("trilora")


class Reporter:
    """Listens to one run from its preparation on, and polls the host's interrupt; use it as a context manager.

    The run is listed for the server's routes from the start, and however the block is left, it is listed as ended.
    """

    def __init__(self, node_id: str | None, workflow: str | None, name: str, steps: int) -> None:
        self.live = LiveRun(name, steps, node=node_id, workflow=workflow)
        self.node_id = node_id
        self.progress = Progress(node_id, steps)
        self.short = ""  # a line about memory, below every text
        self._device = torch.device("cpu")
        self._kept = ""  # the file of a run that ended before its time
        self._note = ""  # what goes on, for the panel, which has the numbers besides
        self._said = ""  # the last file or problem on the way: stays, for many a preview may come in between
        self._measured = ""  # lines of the last measure and of the last previews
        self._drawn = ""
        self._looked = ""  # a line of the last look at the singular values
        self._smooth: float | None = None
        self._shown = 0.0

    def __enter__(self) -> Reporter:
        routes.add(self.live)
        self._send()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, TrainingDiverged):
            self.live.stepped(error.step)
        if error is not None:
            self.live.end(_how(error), problem=_words(error), file=self._kept)
        routes.end(self.live)
        self._send()

    def prepares(self, text: str) -> None:
        """Say what goes on before the first step."""
        self.progress.text(text)
        self._note = text
        self._send()

    def listeners(self, run: Run, output: Path, *, can_preview: bool) -> Listeners:
        """What `train_to_file` is to tell."""

        def begin() -> None:
            if run.step:
                self._recall(output)
            self._device = run.device
            self._note = ""
            self.live.renamed(output.stem)
            self.live.began(run.step, run.config.steps, can_preview=can_preview)
            routes.begin(self.live, run, can_preview=can_preview)
            self._send()

        return Listeners(self._measure, self._draw, self.problem, self._look, begin, self._save)

    def telling(self, previewer: Previewer | None, after: Callable[[], None]) -> Previewer | None:
        """The previewer, which says that it draws before it does, and calls `after` when it has or has failed."""
        return None if previewer is None else _Telling(previewer, self._draws, after)

    def step(self, step: Step) -> None:
        """Hear of one step; raises the host's interrupt."""
        self.live.stepped(step)
        if step.dropped:
            log.warning("step %d was left out: %s", step.step, step.dropped)
            self._said = f"step {step.step} was left out: {step.dropped}"
        else:
            self._smooth = _blend(self._smooth, step.loss)
        if time.monotonic() - self._shown >= SECONDS or step.step == step.steps:
            self._send()
            self.progress.update(step.step, self._text(step))
        check_interrupt()

    def stopped(self, path: Path, run: Run) -> None:
        """Hear where a run that ended before its time is kept; an interrupt of a preview comes before its step does."""
        self.live.reached(run.step, run.config.steps)
        self._kept = name_below_loras(path)

    def problem(self, text: str) -> None:
        """Hear of what went wrong without ending the run."""
        self._drawn = f"\n{text}"
        self._note, self._said = "", text  # a preview that failed is over
        log.warning("%s", text)

    def finished(self, outcome: Outcome, text: str) -> dict[str, Any]:
        """Hear how the run ended; what the node shows of it, to be kept by the front end."""
        self.live.renamed(outcome.path.stem)
        self.live.end(outcome.ended, text=text, file=name_below_loras(outcome.path))
        return self._ui(text)

    def cached(self, outcome: Outcome, text: str) -> dict[str, Any]:
        """Hear that the run was done earlier: its log, where there is one, has the curve; what the node shows."""
        self.live.reached(outcome.steps_done, outcome.steps_done)
        self._recall(outcome.path)
        self.live.renamed(outcome.path.stem)
        self.live.end("cached", text=text, file=name_below_loras(outcome.path))
        return self._ui(text)

    def say(self, text: str) -> None:
        """Leave a sentence on the node and in the log; newer front ends show no other text of a node."""
        log.info("%s", text)
        announce(self.node_id, text)

    def _ui(self, text: str) -> dict[str, Any]:
        self.say(text)
        return {"text": [text], "trilora": [self.live.whole()]}

    def _recall(self, output: Path) -> None:
        try:
            record = read_log(log_path(output))
        except InputError as error:  # gone or broken: the run itself needs none
            log.info("no curve of the steps before: %s", error)
        else:
            self.live.recall(record, previews_folder(output))

    def _measure(self, measure: Measure) -> None:
        numbers = f"validation {measure.validation:.4f} · drift {measure.drift:.4f}"
        self._measured = f"\n{numbers} at step {measure.step}"
        self.live.measured(measure)
        log.info("step %d: %s", measure.step, numbers)

    def _draws(self) -> None:
        self._note = "drawing previews"
        self._send()

    def _draw(self, step: int, paths: list[Path]) -> None:
        self._drawn = f"\npreviews of step {step} in {paths[0].parent}"
        self._note = ""
        self.live.drawn(step, paths[:-1])  # the last one is the strip of all

    def _look(self, spectrum: Spectrum) -> None:
        numbers = f"effective rank {spectrum.effective_rank:.3g} · norm {spectrum.norm:.3g}"
        self._looked = f"\n{numbers} at step {spectrum.step}"
        self.live.looked(spectrum)
        log.info("step %d: %s", spectrum.step, numbers)

    def _save(self, path: Path) -> None:
        text = f"saved as {path.name}"
        self._drawn = f"\n{text}"
        self._said = text
        log.info("%s", text)
        self._send()

    def _text(self, step: Step) -> str:
        pace = self.live.pace or step.seconds
        left = _clock(pace * (step.steps - step.step))
        loss = "-" if self._smooth is None else f"{self._smooth:.4f}"
        note = f"\nstep left out: {step.dropped}" if step.dropped else ""
        note += self._measured + self._looked + self._drawn + (f"\n{self.short}" if self.short else "")
        return f"step {step.step} of {step.steps} · loss {loss} · {pace:.2f} s/step · {left} left{note}"

    def _send(self) -> None:
        """Tell the front ends what is new; without one nobody is told, and a later one asks for all."""
        self._shown = time.monotonic()
        if self.live.state != "ended":
            self.short = spilled(self._device) or self.short
            self.live.say("\n".join(text for text in (self._note, self._said, self.short) if text))
            self.live.uses(_memory(self._device))
        message = self.live.news()
        if listened_to():
            send(EVENT, message)


@dataclass(frozen=True)
class _Telling:
    """A previewer that tells before it draws, and afterwards has the model be what it was."""

    previewer: Previewer
    tell: Callable[[], None]
    after: Callable[[], None]

    def preview(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """What the previewer draws."""
        self.tell()
        try:
            return self.previewer.preview(prompts, seeds)
        finally:
            self.after()


def _memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes that are in use and that there are: of the device, or on a CPU of this process and of the computer."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return (_process().memory_info().rss, _installed()) if device.type == "cpu" else None


@cache
def _process() -> psutil.Process:
    return psutil.Process()


@cache
def _installed() -> int:
    return int(psutil.virtual_memory().total)


def _how(error: BaseException) -> str:
    if isinstance(error, interrupt_type()):
        return "interrupt"
    return "diverged" if isinstance(error, TrainingDiverged) else "error"


def _words(error: BaseException) -> str:
    if isinstance(error, interrupt_type()):
        return ""
    if isinstance(error, TrainingDiverged):
        return str(error.__cause__ or error)  # without the file, which the run names besides
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _blend(smooth: float | None, value: float) -> float:
    return value if smooth is None else 0.95 * smooth + 0.05 * value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
