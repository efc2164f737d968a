"""One run from start to file: resume, periodic state, and what was trained is kept whatever ends it."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .atomic import check_name, check_writable
from .checkpoint import load_state, remove_leftovers, remove_state, save_state, state_path
from .companion import same_start
from .crew import Lost
from .data.dataset import Dataset
from .errors import InputError
from .fileformat import Adapter, read_adapter, read_metadata, write_adapter
from .jsontext import read_json
from .memory import OUT_OF_MEMORY, make_room
from .metadata import training_metadata
from .milestones import History, Listeners, Milestones, best_path, step_path
from .monitor import Measure, Monitor, best_measure
from .protocols import Previewer
from .recompute import checkpointed
from .runlog import RunLog, run_facts
from .train import Run, Step, TrainingDiverged, train

__all__ = ["Listeners", "Outcome", "adapter_hash", "find_finished", "stopped_path", "train_to_file"]


_NOBODY = Listeners()


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


def adapter_hash(adapter: Adapter) -> str:
    """SHA-256 over the names and singular triplets of an adapter's layers."""
    digest = hashlib.sha256()
    for stem, layer in sorted(adapter.layers.items()):
        digest.update(stem.encode())
        for part in layer.svd:
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def find_finished(output: Path, fingerprint: str) -> Outcome | None:
    """The outcome of a finished run with this fingerprint that already lies at `output`, or None.

    A file that cannot be read is no finished run, whatever its name: a neighbour's must not keep a run from starting.
    """
    if not output.is_file():
        return None
    try:
        metadata = read_metadata(output)
        if metadata.get("trilora.fingerprint") != fingerprint or metadata.get("trilora.finished") != "true":
            return None
        steps = int(metadata["ss_steps"])
        losses = [float(value) for value in metadata.get("trilora.losses", "").split()]
        history = History.load(read_json(metadata.get("trilora.history", "{}")))
    except (AttributeError, KeyError, TypeError, ValueError):  # InputError is a ValueError
        return None
    return _outcome(output, output, history, losses, steps, metadata.get("trilora.ended", "steps"))


def train_to_file(
    run: Run,
    output: Path,
    *,
    metadata: Mapping[str, str],
    on_step: Callable[[Step], None],
    resume: bool = False,
    dtype: torch.dtype = torch.float16,
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    on_stopped: Callable[[Path], None] = lambda path: None,
    held_out: Dataset | None = None,
    previewer: Previewer | None = None,
    listeners: Listeners = _NOBODY,
) -> Outcome:
    """Train `run` to its end and write the adapter to `output`.

    `on_step` hears of every step and may raise one of `interrupts`: what was trained so far is then written under the
    name of `stopped_path`, with a state to resume from beside it, and the exception goes on. The same holds for a run
    that diverges, loses another process of its crew or runs out of its device's memory; `on_stopped` hears where the
    file is. In a crew this is for the first process, the others accompany it (companion.py). `held_out` is what
    `monitor.split` held out of the run's pictures, `previewer` draws with the run's model. Beside the adapter lies the
    log of the run, and whatever else `run.config.monitor` asks for. Raises InputError when the file cannot be written
    or something is missing that the options need, before anything is trained.
    """
    check_name(output)
    check_writable(output.parent)
    _check_watch(run, held_out, previewer)
    remove_leftovers(output)
    state = state_path(output)
    history = History.load(load_state(state, run) if resume and state.is_file() else {})
    monitor = None if held_out is None else Monitor(run, held_out)  # asks the base, so before the adapter is attached
    with RunLog(output, run.step) as log:
        log.write("start", run.step, run_facts(run, output, held_out))
        keep = _Keeper(run, output, dict(metadata), dtype, time.time(), on_stopped, history, log)
        way = Milestones(run, output, history, log, keep.on_the_way, keep.save_state, monitor, previewer, listeners)
        listeners.on_begin()
        same_start(run, history)  # last of what may be refused
        try:
            with ExitStack() as stack:
                stack.enter_context(run.trainable.attach(run.targets()))
                if run.config.gradient_checkpointing:
                    stack.enter_context(checkpointed(run.blocks(), in_place_safe=run.denoiser.in_place_safe))
                way.reach()  # the start, or what an interrupt kept the resumed step from
                for step in stack.enter_context(closing(_steps(run, way, log))):
                    way.reach()
                    if way.saves:
                        keep.save_state()
                    on_step(step)
                if run.step == run.config.steps or way.exhausted:
                    way.reach(last=True)
        except interrupts:
            keep.stopped("interrupt")
            raise
        except Lost:
            keep.stopped("lost")
            raise
        except OUT_OF_MEMORY as error:
            make_room(run, error)  # first: writing needs some of it
            keep.stopped("memory")
            raise
        except TrainingDiverged as error:
            log.write("step", error.step.step, _facts(error.step))
            path = keep.stopped("diverged")
            raise TrainingDiverged(f"{error}. Saved: {path}" if path else str(error), error.step) from error
        if run.step < run.config.steps and not way.exhausted:
            return keep.outcome(keep.stopped("stop"), "stop")
        return keep.outcome(*keep.finished("validation" if run.step < run.config.steps else "steps"))


def _check_watch(run: Run, held_out: Dataset | None, previewer: Previewer | None) -> None:
    """Raise InputError for options that would silently do nothing."""
    monitor = run.config.monitor
    if monitor.validation_share and held_out is None:
        raise InputError("monitor.validation_share is set, but no pictures were held out; set it to 0")
    if monitor.preview_every and previewer is None:
        raise InputError("monitor.preview_every is set, but there is nothing here to draw with; set it to 0")
    if monitor.keep_adapters and not run.config.save_every:
        raise InputError("monitor.keep_adapters is set, but save_every is 0; say after how many steps to keep one")


def _steps(run: Run, way: Milestones, log: RunLog) -> Generator[Step, None, None]:
    """The steps of a run that goes on, each logged; Ctrl-C waits until a step is whole."""
    with closing(train(run)) as steps:
        while not way.exhausted:
            with _whole():
                step = next(steps, None)
                if step is None:
                    return
                log.write("step", step.step, _facts(step))
            yield step


def _facts(step: Step) -> dict[str, Any]:
    names = ("loss", "learning_rate", "grad_norm", "seconds")
    return {name: getattr(step, name) for name in names} | ({"dropped": step.dropped} if step.dropped else {})


@contextmanager
def _whole(*, forget: bool = False) -> Iterator[None]:
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


def _outcome(path: Path, output: Path, history: History, losses: list[float], steps: int, ended: str) -> Outcome:
    """What lies at `path`, as a reader of the file would get it, and what the run to `output` left beside it."""
    kept = (step_path(output, step) for step in sorted({*history.adapters, *history.saved}))
    return Outcome(
        path=path,
        adapter=read_adapter(path),
        losses=losses,
        steps_done=steps,
        finished=ended != "stop",
        ended=ended,
        measures=tuple(history.measures),
        best=best_path(output) if history.best and best_path(output).is_file() else None,
        kept=tuple(file for file in kept if file.is_file()),
    )


@dataclass
class _Keeper:
    """Writes what a run has learned, under the name that its end deserves."""

    run: Run
    output: Path
    metadata: dict[str, str]
    dtype: torch.dtype
    started: float
    on_stopped: Callable[[Path], None]
    history: History
    log: RunLog

    def save_state(self) -> None:
        """Save what a resumed run needs; the log first, which is cut back to the state's step then."""
        self.log.flush()
        save_state(state_path(self.output), self.run, self.history.values())

    def on_the_way(self, path: Path, kept: str) -> None:
        """Write the adapter of a run that goes on, as "best" or "step"."""
        self._write(path, {"trilora.kept": kept}, finished=False)

    def stopped(self, why: str) -> Path | None:
        """Save the adapter of a run that ends early, and a state if it may go on; None if nothing was learned."""
        if self.run.step == 0:
            self.log.write("end", 0, {"ended": why, "file": None})
            return None
        with _whole(forget=True):
            if why != "diverged":
                self.save_state()
            path = stopped_path(self.output, self.run.step)
            self._write(path, {"trilora.ended": why}, finished=False)
            self.log.write("end", self.run.step, {"ended": why, "file": str(path)})
        self.on_stopped(path)
        return path

    def finished(self, why: str) -> tuple[Path, str]:
        """Write the adapter of a run that did what was asked for, and clear its state away unless that is to stay."""
        with _whole(forget=True):
            self._write(self.output, {"trilora.ended": why}, finished=True)
            if self.run.config.monitor.keep_state:
                self.save_state()
            else:
                remove_state(state_path(self.output))
            self.log.write("end", self.run.step, {"ended": why, "file": str(self.output)})
        return self.output, why

    def outcome(self, path: Path | None, why: str) -> Outcome:
        """The result as a reader of the file would get it."""
        if path is None:
            raise InputError("the run was stopped before its first step; nothing was trained and no file was written")
        return _outcome(path, self.output, self.history, list(self.run.losses), self.run.step, why)

    def _write(self, path: Path, more: Mapping[str, str], *, finished: bool) -> None:
        """Write the adapter that is to be saved now with the metadata of this run."""
        if self.history.measures or self.history.adapters or self.history.saved:
            more = {**more, "trilora.history": json.dumps(self.history.values())}
        extra = training_metadata(self.run, started=self.started, finished=finished, name=path.stem)
        adapter = Adapter(self.run.adapter().layers, {**extra, **more, **self.metadata})
        write_adapter(path, adapter, dtype=self.dtype)
        what = more.get("trilora.kept") or "result"
        self.log.write("file", self.run.step, {"path": str(path), "what": what})
