"""One run from start to file: resumed where it was, and whatever ends it, what was trained is kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from .atomic import check_name, check_room, check_writable
from .checkpoint import load_state, remove_leftovers, state_path
from .companion import same_start
from .crew import Lost
from .data.dataset import Dataset
from .errors import InputError
from .fileformat import Adapter, read_metadata
from .jsontext import read_json
from .keeper import Keeper, Outcome, outcome_of, whole
from .memory import OUT_OF_MEMORY, expected_state, make_room
from .milestones import History, Listeners, Milestones
from .monitor import Monitor
from .protocols import Previewer
from .recompute import checkpointed
from .runlog import RunLog, run_facts
from .train import Run, Step, TrainingDiverged, train

__all__ = ["adapter_hash", "find_finished", "train_to_file"]


_NOBODY = Listeners()


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
        return outcome_of(output, output, history, losses, steps, metadata.get("trilora.ended", "steps"))
    except (AttributeError, KeyError, TypeError, ValueError):  # InputError is a ValueError
        return None


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
    that diverges, loses another process of its crew, runs out of its device's memory or meets any other error;
    `on_stopped` hears where the file is. In a crew this is for the first process, the others accompany it
    (companion.py). `held_out` is what `monitor.split` held out of the run's pictures, `previewer` draws with the run's
    model. Beside the adapter lies the log of the run, and whatever else `run.config.monitor` asks for. Raises
    InputError when the file cannot be written or something is missing that the options need, before anything is
    trained.
    """
    check_name(output)
    check_writable(output.parent)
    check_room(output.parent, _bytes_of(run, dtype))
    _check_watch(run, held_out, previewer)
    remove_leftovers(output)
    state = state_path(output)
    history = _resumed(run, state) if resume and state.is_file() else History()
    monitor = None if held_out is None else Monitor(run, held_out)  # asks the base, so before the adapter is attached
    with RunLog(output, run.step, listeners.on_problem) as log:
        log.write("start", run.step, run_facts(run, output, held_out))
        told = (on_stopped, listeners.on_problem)
        keep = Keeper(run, output, dict(metadata), dtype, time.time(), *told, history, log)
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
                    way.keep_state()
                    on_step(step)
                if run.step == run.config.steps or way.exhausted:
                    way.reach(last=True)
            path, why = keep.ended(exhausted=way.exhausted)
        except interrupts:
            keep.stopped("interrupt")
            raise
        except Lost:
            keep.stopped("lost")
            raise
        except OUT_OF_MEMORY as error:
            make_room(run, error)  # first: writing needs some of it
            if not run.whole:
                run.undo()
            keep.stopped("memory")
            raise
        except TrainingDiverged as error:
            log.write("step", error.step.step, _facts(error.step))
            path = keep.stopped("diverged")
            raise TrainingDiverged(f"{error}. Saved: {path}" if path else str(error), error.step) from error
        except Exception as error:  # a picture gone from the cache, a driver's error: the work is worth as much then
            keep.rescue(error)
            raise
        return keep.outcome(path, why)


def _resumed(run: Run, state: Path) -> History:
    """Bring a run to where its state is; what it knew of the time before."""
    beside = load_state(state, run)
    if run.step > run.config.steps:
        raise InputError(
            f"{state} has done {run.step} steps, more than the {run.config.steps} that are wanted; set steps to"
            f" {run.step} or more, or train without resume to start anew"
        )
    try:
        return History.load(beside)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the state {state} is damaged ({error!r}); train without resume to start anew") from error


def _bytes_of(run: Run, dtype: torch.dtype) -> int:
    """What the adapter and one state of a run take on the disk."""
    parameters = run.trainable.trainable()
    own = sum(parameter.nbytes for parameter in parameters)
    optimizer = expected_state(run.trainable, run.config.optimizer)
    kept = run.copies + 1 + bool(run.config.ema)  # and the parameters, and their mean
    return sum(parameter.numel() for parameter in parameters) * dtype.itemsize + kept * own + optimizer


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
            with whole():
                step = next(steps, None)
                if step is None:
                    return
                log.write("step", step.step, _facts(step))
            yield step


def _facts(step: Step) -> dict[str, Any]:
    names = ("loss", "learning_rate", "grad_norm", "seconds")
    return {name: getattr(step, name) for name in names} | ({"dropped": step.dropped} if step.dropped else {})
