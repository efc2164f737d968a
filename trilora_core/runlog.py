"""The log of a run: one JSON object on each line of a file beside the adapter, and TensorBoard's where it is installed.

Every line has an "event" and the "step" that it belongs to:

    start    options, data, base model, versions, device; once for each time that the run is started or resumed
    step     loss, learning_rate, grad_norm, seconds; dropped where the step was left out
    measure  validation, drift
    spectrum effective_rank (mean of the layers), norm (of all); "layers": by file stem their singular values,
             effective rank and norm; or a problem
    preview  files, or a problem
    file     an adapter that was written: path, and what it is ("result", "best" or "step")
    end      ended: steps, validation, stop, interrupt, lost, memory, diverged or error; and the file that holds the
             result

Numbers that are not finite are null.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL
import safetensors
import torch

from . import __version__
from .atomic import refusal, write_atomic
from .config_json import to_json
from .data.dataset import Dataset
from .errors import InputError
from .jsontext import finite, read_json
from .train import Run

__all__ = ["RunLog", "log_path", "run_facts", "tensorboard_folder"]

_SECONDS = 10.0  # of lines that a crash may lose


def log_path(output: Path) -> Path:
    """Where the log of the run that writes `output` lies: `name.safetensors` -> `name.log.jsonl`."""
    return output.with_name(f"{output.stem}.log.jsonl")


def tensorboard_folder(output: Path) -> Path:
    """Where TensorBoard finds the curves of that run: `name_tensorboard`."""
    return output.with_name(f"{output.stem}_tensorboard")


class RunLog:
    """Appends lines for a run that starts after `step` steps; use it as a context manager.

    A run that starts at 0 starts a new log; one that is resumed goes on with the old one, without its lines beyond
    `step`. Lines are written together, every ten seconds and at `flush`, so that a step costs nothing. Raises
    InputError when the file cannot be made. Lines that cannot be added later, on a disk that has become full say, wait
    for the next time, and `on_problem` hears of it once: a run is worth more than its log.
    """

    def __init__(self, output: Path, step: int, on_problem: Callable[[str], None] = lambda text: None) -> None:
        self._on_problem = on_problem
        self._told = False
        self._path = log_path(output)
        self._waiting: list[str] = []
        self._flushed = time.monotonic()
        self._last = ("", step)  # event and step of the last line
        old = _lines_until(self._path, step) if step else []
        write_atomic(self._path, lambda path: _fill(path, "".join(old)))
        self._board: Any = None
        with self._drawing():
            self._board = _summary_writer(tensorboard_folder(output), step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        event, step = self._last
        if error is not None and event != "end":
            self.write("end", step, {"ended": "error", "problem": f"{type(error).__name__}: {error}"})
        self.flush()
        with self._drawing():
            if self._board is not None:
                self._board.close()

    def write(self, event: str, step: int, facts: Mapping[str, Any]) -> None:
        """Add a line."""
        self._last = (event, step)
        line = {"event": event, "step": step, **facts}
        self._waiting.append(json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n")
        if self._board is not None and event in ("step", "measure", "spectrum"):
            self._draw(step, facts)
        if time.monotonic() - self._flushed >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring all lines to the file, or keep them until the next time."""
        self._flushed = time.monotonic()
        with self._drawing():
            if self._board is not None:
                self._board.flush()
        if not self._waiting:
            return
        try:
            _append(self._path, "".join(self._waiting))
        except OSError as error:
            if not self._told:
                self._told = True
                self._on_problem(str(refusal(f"the log {self._path}", error)))
        else:
            self._waiting.clear()

    def _draw(self, step: int, facts: Mapping[str, Any]) -> None:
        with self._drawing():
            for name, value in facts.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._board.add_scalar(name, value, step)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """What TensorBoard's files cannot take, on a full disk say, is told once and ends them; the run goes on."""
        try:
            yield
        except OSError as error:
            self._board = None
            self._on_problem(f"TensorBoard's curves end here: {error.strerror or error}; the log goes on")


def run_facts(run: Run, output: Path, held_out: Dataset | None) -> dict[str, Any]:
    """What a run is: options, data, base model, adapter, versions and device."""
    parameters = run.trainable.trainable()
    device = parameters[0].device
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "output": str(output),
        "steps": run.config.steps,
        "config": json.loads(to_json(run.config)),
        "data": {
            "pictures": len(run.dataset),
            "looks_per_epoch": run.dataset.epoch_size,
            "held_out": 0 if held_out is None else len(held_out),
            "prior": 0 if run.prior is None else len(run.prior),
            "hash": run.dataset.content_hash,
        },
        "base": {
            "name": run.denoiser.base_name,
            "architecture": run.denoiser.architecture,
            "fingerprint": run.denoiser.base_fingerprint,
            "prediction_type": run.denoiser.prediction_type,
        },
        "adapter": {"layers": len(run.trainable.branches), "parameters": sum(p.numel() for p in parameters)},
        "fingerprint": run.fingerprint(),
        "processes": run.crew.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {
            "trilora": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
            "pillow": PIL.__version__,
        },
    }


def _lines_until(path: Path, step: int) -> list[str]:
    """The whole lines of an old log that belong to the first `step` steps; none where there is no log."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read the log {path}: {error.strerror or error}; move it away") from error
    return [f"{line}\n" for line in lines if _belongs(line, step)]


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _append(path: Path, text: str) -> None:
    """Add text to a file, all of it or nothing."""
    with path.open("ab", buffering=0) as file:  # a buffer would write its rest once more when it is closed
        before, left = file.tell(), memoryview(text.encode("utf-8", "replace"))  # a name may hold half a character
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def _belongs(line: str, step: int) -> bool:
    try:
        value = read_json(line)
    except ValueError:  # cut off where the process was killed
        return False
    return isinstance(value, dict) and isinstance(value.get("step"), int) and 0 <= value["step"] <= step


def _summary_writer(folder: Path, step: int) -> Any:
    """TensorBoard's writer, which hides what an earlier run left beyond `step`; None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # there, but not usable with this torch
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else 0)
