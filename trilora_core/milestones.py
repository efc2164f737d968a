"""What a run does on its way besides steps: measures, spectra, previews, adapters by step; and its memory of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError
from .memory import OUT_OF_MEMORY, make_room
from .monitor import Measure, Monitor, best_measure, waited
from .previews import draw_previews, draw_strip, previews_folder
from .protocols import Previewer
from .runlog import RunLog
from .spectrum import Spectrum, look_at_spectrum
from .train import Run

__all__ = ["History", "Listeners", "Milestones", "best_path", "exhausted", "measure_due", "step_path"]


def best_path(output: Path) -> Path:
    """Where the adapter of the best validation loss lies: `name.safetensors` -> `name_best.safetensors`."""
    return output.with_name(f"{output.stem}_best.safetensors")


def step_path(output: Path, step: int) -> Path:
    """Where the adapter after `step` steps lies: `name_step_00100.safetensors`."""
    return output.with_name(f"{output.stem}_step_{step:05d}.safetensors")


@dataclass(frozen=True)
class Listeners:
    """Who hears what happens on the way; of a problem that does not end the run, and of what someone had saved, too."""

    on_measure: Callable[[Measure], None] = lambda measure: None
    on_preview: Callable[[int, list[Path]], None] = lambda step, paths: None
    on_problem: Callable[[str], None] = lambda text: None
    on_spectrum: Callable[[Spectrum], None] = lambda spectrum: None
    on_begin: Callable[[], None] = lambda: None  # the log is open; a resumed run has its steps
    on_save: Callable[[Path], None] = lambda path: None


@dataclass
class History:
    """What a resumed run has to know of the time before; part of its state."""

    measures: list[Measure] = field(default_factory=list)
    previews: list[int] = field(default_factory=list)  # steps that were drawn
    adapters: list[int] = field(default_factory=list)  # steps whose adapters lie beside the final one
    best: int = 0  # step of the adapter that was kept as the best one; 0: none
    spectra: list[int] = field(default_factory=list)  # steps that were looked at; what was seen is in the log
    saved: list[int] = field(default_factory=list)  # steps whose adapters someone asked for: these stay

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> History:
        """The history that `values` gave."""
        measures = [
            Measure(step, *(math.nan if value is None else value for value in pair))
            for step, *pair in values.get("measures", [])
        ]
        previews, adapters, spectra, saved = (
            list(values.get(name, [])) for name in ("previews", "adapters", "spectra", "saved")
        )
        return cls(measures, previews, adapters, values.get("best", 0), spectra, saved)

    def values(self) -> dict[str, Any]:
        """The same in what JSON can hold."""
        measures = [
            [m.step, *(v if math.isfinite(v) else None for v in (m.validation, m.drift))] for m in self.measures
        ]
        steps = {"previews": self.previews, "adapters": self.adapters, "spectra": self.spectra, "saved": self.saved}
        return {"measures": measures, **steps, "best": self.best}


def measure_due(run: Run, history: History, last: bool) -> bool:
    """Whether the run is to be measured at the step that it has reached; `last` is always, but never twice."""
    measured = any(measure.step == run.step for measure in history.measures)
    return not measured and (last or run.step % run.config.monitor.validate_every == 0)


def exhausted(run: Run, history: History) -> bool:
    """Whether validation has gone without a better value for as long as the run is to wait."""
    patience = run.config.monitor.patience
    return bool(patience) and waited(history.measures) >= patience


@dataclass
class Milestones:
    """Does what is due at the step that the run has reached; the adapter must be attached.

    Whatever an interrupt left undone is made up for when the same step is reached again by a resumed run.
    """

    run: Run
    output: Path
    history: History
    log: RunLog
    write: Callable[[Path, str], None]  # the adapter as it is now, to a file, kept as "best" or "step"
    save_state: Callable[[], None]
    monitor: Monitor | None
    previewer: Previewer | None
    listeners: Listeners

    def reach(self, *, last: bool = False) -> None:
        """Measure, look, draw and keep what is due or asked for; `last` makes all but keeping due."""
        config, step = self.run.config, self.run.step
        if self.monitor is not None and measure_due(self.run, self.history, last):
            self._measure(self.monitor)
        every = config.monitor.spectrum_every
        if every and (last or step % every == 0) and step not in self.history.spectra:
            self._look()
        every = config.monitor.preview_every
        wanted = self.run.preview_requested() or (every and (last or step % every == 0))
        if self.previewer is not None and wanted and step not in self.history.previews:
            self._preview(self.previewer)
        if config.monitor.keep_adapters and self._saves and step not in self.history.adapters:
            self._keep(config.monitor.keep_adapters)
        if step and self.run.save_requested():
            self._save()

    def keep_state(self) -> None:
        """Save the state where that is due."""
        if self._saves:
            self._tried("the state", self.save_state)

    @property
    def _saves(self) -> bool:
        """Whether the periodic state is due; the last step leaves a file instead."""
        every, step = self.run.config.save_every, self.run.step
        return bool(every) and step % every == 0 and 0 < step < self.run.config.steps

    @property
    def exhausted(self) -> bool:
        """Whether validation has gone without a better value for as long as the run is to wait."""
        return exhausted(self.run, self.history)

    def _measure(self, monitor: Monitor) -> None:
        measure = monitor.measure()
        self.history.measures.append(measure)
        self.log.write("measure", measure.step, {"validation": measure.validation, "drift": measure.drift})
        if self.run.config.monitor.keep_best and best_measure(self.history.measures) == measure:
            before, self.history.best = self.history.best, measure.step
            if not self._tried("the best adapter", lambda: self.write(best_path(self.output), "best")):
                self.history.best = before
        self.listeners.on_measure(measure)

    def _look(self) -> None:
        step = self.run.step
        try:
            spectrum = look_at_spectrum(self.run)
        except InputError as error:  # values that are not finite: the next steps say what became of the run
            self.log.write("spectrum", step, {"problem": str(error)})
            self.listeners.on_problem(f"no spectrum at step {step}: {error}")
            return
        self.history.spectra.append(step)
        self.log.write("spectrum", step, spectrum.facts())
        self.listeners.on_spectrum(spectrum)

    def _preview(self, previewer: Previewer) -> None:
        step, folder = self.run.step, previews_folder(self.output)
        prompts, steps = self.run.config.monitor.preview_prompts, [*self.history.previews, step]
        try:
            paths = [*draw_previews(self.run, previewer, folder), draw_strip(folder, prompts, steps)]
        except (InputError, OUT_OF_MEMORY) as error:
            # hours of training are worth more than a picture that could not be drawn
            why = str(error)
            if isinstance(error, OUT_OF_MEMORY):
                make_room(self.run, error)
                why = "the device ran out of memory; lower preview_resolution"
            self.log.write("preview", step, {"problem": why})
            self.listeners.on_problem(f"no preview at step {step}: {why}")
            return
        self.history.previews = steps
        self.log.write("preview", step, {"files": [str(path) for path in paths]})
        self.listeners.on_preview(step, paths)

    def _keep(self, count: int) -> None:
        """Keep the adapter of this step, and of the earlier ones that this run kept only as many as wanted."""
        path = step_path(self.output, self.run.step)
        if not self._tried("the adapter", lambda: self.write(path, "step")):
            return
        kept = [*self.history.adapters, self.run.step]
        self.history.adapters = kept[-count:]
        for step in kept[:-count]:
            if step not in self.history.saved:
                with suppress(OSError):  # open in another program, say: one file too many costs nothing
                    step_path(self.output, step).unlink(missing_ok=True)

    def _save(self) -> None:
        """Keep the adapter of this step and the resumable state, because someone asked for them."""
        step, path = self.run.step, step_path(self.output, self.run.step)
        there = step in (*self.history.adapters, *self.history.saved)
        if not there and not self._tried("the adapter", lambda: self.write(path, "step")):
            return
        self.history.saved = sorted({*self.history.saved, step})
        if self._tried("the state", self.save_state):
            self.listeners.on_save(path)

    def _tried(self, what: str, write: Callable[[], None]) -> bool:
        """Whether it could be written: on a disk that is full now, say, the run may still end well."""
        try:
            write()
        except InputError as error:
            self.listeners.on_problem(f"{what} was not saved at step {self.run.step}: {error}")
            return False
        return True
