"""What a run leaves behind: its adapter and its state, written whole under the name that its end deserves."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import remove_state, save_state, state_path
from .errors import InputError
from .fileformat import Adapter, read_adapter, write_adapter
from .metadata import training_metadata
from .milestones import History, best_path, step_path
from .monitor import Measure, best_measure
from .runlog import RunLog
from .train import Run

__all__ = ["Keeper", "Outcome", "outcome_of", "stopped_path", "whole"]


@dataclass(frozen=True)
class Outcome:
    """What a run left: the file, the adapter as read back from it, the loss of every step.

    `ended` says why it ended: "steps" (all were done), "validation" (no better value for as long as it was to wait: a
    finished run too, since that is what was asked for) or "stop" (someone asked to stop and keep).
    """

    path: Path
    adapter: Adapter
    losses: list[float]
    steps_done: int
    finished: bool
    ended: str = "steps"
    measures: tuple[Measure, ...] = ()
    best: Path | None = None  # the adapter of the best measure, if it was to be kept
    kept: tuple[Path, ...] = ()  # adapters by step

    @property
    def note(self) -> str:
        """What else the user should know, in a sentence or two; "" for a run that did all its steps."""
        best = best_measure(self.measures)
        told = []
        if self.ended == "validation" and best:
            told.append(
                f"Ended after step {self.steps_done}: the validation loss was best at step {best.step}"
                f" ({best.validation:.4f}) and has not been better since."
            )
        if self.best and best:
            told.append(f"The adapter of step {best.step}, the best by validation, is {self.best}.")
        return " ".join(told)


def stopped_path(output: Path, step: int) -> Path:
    """A free name for a run that ended before its time, so that nobody takes it for a finished one."""
    path, count = output.with_name(f"{output.stem}_stopped_at_{step:05d}.safetensors"), 1
    while path.exists():
        count += 1
        path = output.with_name(f"{output.stem}_stopped_at_{step:05d}_{count}.safetensors")
    return path


@contextmanager
def whole(*, forget: bool = False) -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, so that what belongs together is done together.

    `forget` drops it there, where the run ends anyway. Nothing is changed where signals are not Python's own: in other
    threads, and where the program has its own handler.
    """
    caught: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught and not forget:
        raise KeyboardInterrupt


def outcome_of(path: Path, output: Path, history: History, losses: list[float], steps: int, ended: str) -> Outcome:
    """What lies at `path`, as a reader of the file would get it, and what the run to `output` left beside it."""
    kept = (step_path(output, step) for step in sorted({*history.adapters, *history.saved}))
    best = best_measure(history.measures)
    return Outcome(
        path=path,
        adapter=read_adapter(path),
        losses=losses,
        steps_done=steps,
        finished=ended != "stop",
        ended=ended,
        measures=tuple(history.measures),
        best=best_path(output) if best and history.best == best.step and best_path(output).is_file() else None,
        kept=tuple(file for file in kept if file.is_file()),
    )


@dataclass
class Keeper:
    """Writes what a run has learned, under the name that its end deserves."""

    run: Run
    output: Path
    metadata: dict[str, str]
    dtype: torch.dtype
    started: float
    on_stopped: Callable[[Path], None]
    on_problem: Callable[[str], None]
    history: History
    log: RunLog
    closing: bool = False  # the run did what it was to do, and its result is being written

    def save_state(self) -> None:
        """Save what a resumed run needs; the log first, which is cut back to the state's step then."""
        self.log.flush()
        save_state(state_path(self.output), self.run, self.history.values())

    def on_the_way(self, path: Path, kept: str) -> None:
        """Write the adapter of a run that goes on, as "best" or "step"."""
        self._write(path, {"trilora.kept": kept}, finished=False)

    def stopped(self, why: str, problem: str = "") -> Path | None:
        """Save the adapter of a run that ends early, and a state if it may go on; None if nothing was learned."""
        told = {"problem": problem} if problem else {}
        if self.run.step == 0:
            self.log.write("end", 0, {"ended": why, "file": None} | told)
            return None
        with whole(forget=True):
            self.run.come_back()
            if why != "diverged" and self.run.whole:
                self._try_state()
            path = stopped_path(self.output, self.run.step)
            self._write_result(path, why, finished=False)
            self.log.write("end", self.run.step, {"ended": why, "file": str(path)} | told)
        self.on_stopped(path)
        return path

    def rescue(self, error: Exception) -> None:
        """Save what can be saved of a run that an unforeseen error ended, which the caller passes on."""
        if self.closing:  # the result itself could not be written: that was dealt with there
            return
        if not self.run.whole:
            self.run.undo()
        with suppress(Exception):  # a device that fails at everything now; the first error says more
            self.stopped("error", f"{type(error).__name__}: {error}")

    def _try_state(self) -> None:
        try:
            self.save_state()
        except InputError as error:  # the adapter is smaller, and may have room on a disk that is almost full
            self.on_problem(f"the state was not saved at step {self.run.step}: {error}")

    def ended(self, *, exhausted: bool) -> tuple[Path | None, str]:
        """Write what a run leaves that did its last step or was asked to stop: the file, and how it ended."""
        self.closing = True
        if self.run.step == self.run.config.steps:
            return self.finished("steps")
        return self.finished("validation") if exhausted else (self.stopped("stop"), "stop")

    def finished(self, why: str) -> tuple[Path, str]:
        """Write the adapter of a run that did what was asked for, and clear its state away unless that is to stay."""
        with whole(forget=True):
            self._write_result(self.output, why, finished=True)
            if self.run.config.monitor.keep_state:
                self._try_state()
            else:
                remove_state(state_path(self.output))
            self.log.write("end", self.run.step, {"ended": why, "file": str(self.output)})
        return self.output, why

    def outcome(self, path: Path | None, why: str) -> Outcome:
        """The result as a reader of the file would get it."""
        if path is None:
            raise InputError("the run was stopped before its first step; nothing was trained and no file was written")
        return outcome_of(path, self.output, self.history, list(self.run.losses), self.run.step, why)

    def _write_result(self, path: Path, why: str, *, finished: bool) -> None:
        """Write what a run leaves; where that cannot be, on a full disk say, keep it among the temporary files."""
        try:
            self._write(path, {"trilora.ended": why}, finished=finished)
        except InputError as error:
            try:
                other = Path(tempfile.mkdtemp(prefix="trilora-")) / path.name
                self._write(other, {"trilora.ended": why}, finished=finished)
            except (InputError, OSError):
                raise error from None
            raise InputError(
                f"{error}. What was trained is kept as {other}: move it before it is cleared away"
            ) from None

    def _write(self, path: Path, more: Mapping[str, str], *, finished: bool) -> None:
        """Write the adapter that is to be saved now with the metadata of this run."""
        if self.history.measures or self.history.adapters or self.history.saved:
            more = {**more, "trilora.history": json.dumps(self.history.values())}
        extra = training_metadata(self.run, started=self.started, finished=finished, name=path.stem)
        adapter = Adapter(self.run.adapter().layers, {**extra, **more, **self.metadata})
        write_adapter(path, adapter, dtype=self.dtype)
        what = more.get("trilora.kept") or "result"
        self.log.write("file", self.run.step, {"path": str(path), "what": what})
