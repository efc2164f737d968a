"""One run from start to file: resume, periodic state, and what was trained is kept whatever ends it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch

from .atomic import check_writable
from .checkpoint import load_state, remove_state, save_state, state_path
from .errors import InputError
from .fileformat import Adapter, read_adapter, read_metadata, write_adapter
from .metadata import training_metadata
from .recompute import checkpointed
from .train import Run, Step, TrainingDiverged, train

__all__ = ["Outcome", "adapter_hash", "find_finished", "stopped_path", "train_to_file"]


@dataclass(frozen=True)
class Outcome:
    """What a run left: the file, the adapter as read back from it, the loss of every step."""

    path: Path
    adapter: Adapter
    losses: list[float]
    steps_done: int
    finished: bool


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
    """The outcome of a finished run with this fingerprint that already lies at `output`, or None."""
    if not output.is_file():
        return None
    metadata = read_metadata(output)
    if metadata.get("trilora.fingerprint") != fingerprint or metadata.get("trilora.finished") != "true":
        return None
    steps = int(metadata["ss_steps"])
    losses = [float(value) for value in metadata.get("trilora.losses", "").split()]
    return Outcome(output, read_adapter(output), losses, steps, True)


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
) -> Outcome:
    """Train `run` to its end and write the adapter to `output`.

    `on_step` hears of every step and may raise one of `interrupts`: what was trained so far is then written under the
    name of `stopped_path`, with a state to resume from beside it, and the exception goes on. The same holds for a run
    that diverges; `on_stopped` hears where the file is. Raises InputError when the file cannot be written, before
    anything is trained.
    """
    check_writable(output.parent)
    state, denoiser = state_path(output), run.denoiser
    if resume and state.is_file():
        load_state(state, run)
    started = time.time()
    keep = _Keeper(run, output, dict(metadata), dtype, started, on_stopped)
    try:
        with ExitStack() as stack:
            stack.enter_context(run.trainable.attach(denoiser.targets(run.config.adapter.layers)))
            if run.config.gradient_checkpointing:
                stack.enter_context(checkpointed(denoiser.blocks(), in_place_safe=denoiser.in_place_safe))
            for step in stack.enter_context(closing(train(run))):
                if run.config.save_every and step.step % run.config.save_every == 0 and step.step < step.steps:
                    save_state(state, run)
                on_step(step)
    except interrupts:
        keep.stopped(state)
        raise
    except TrainingDiverged as error:
        path = keep.stopped(None)
        raise TrainingDiverged(f"{error}. Saved: {path}" if path else str(error)) from error
    if run.step < run.config.steps:
        return keep.outcome(keep.stopped(state), finished=False)
    keep.write(output, finished=True)
    remove_state(state)
    return keep.outcome(output, finished=True)


@dataclass
class _Keeper:
    """Writes what a run has learned, under the name that its end deserves."""

    run: Run
    output: Path
    metadata: dict[str, str]
    dtype: torch.dtype
    started: float
    on_stopped: Callable[[Path], None]

    def stopped(self, state: Path | None) -> Path | None:
        """Save the adapter, and a state where one is wanted, of a run that ends early; None if nothing was learned."""
        if self.run.step == 0:
            return None
        if state is not None:
            save_state(state, self.run)
        path = stopped_path(self.output, self.run.step)
        self.write(path, finished=False)
        self.on_stopped(path)
        return path

    def write(self, path: Path, *, finished: bool) -> None:
        """Write the adapter with the metadata of this run."""
        extra = training_metadata(self.run, started=self.started, finished=finished, name=path.stem)
        adapter = Adapter(self.run.trainable.canonical(), extra | self.metadata)
        write_adapter(path, adapter, dtype=self.dtype)

    def outcome(self, path: Path | None, *, finished: bool) -> Outcome:
        """The result as a reader of the file would get it."""
        if path is None:
            raise InputError("the run was stopped before its first step; nothing was trained and no file was written")
        return Outcome(path, read_adapter(path), list(self.run.losses), self.run.step, finished)
