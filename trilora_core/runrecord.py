"""What the log of a run says, read back: of finished runs, of such that go on, and of such that were killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError
from .jsontext import read_json
from .monitor import Measure, best_measure

__all__ = ["LoggedStep", "Look", "RunRecord", "read_log"]

Line = dict[str, Any]
_MOST_STEPS = 10_000_000  # ten times what a node allows: a curve has a place for every step


@dataclass(frozen=True)
class LoggedStep:
    """One optimizer step; a loss that was not finite is NaN, `dropped` says why the step was left out."""

    step: int
    loss: float
    learning_rate: float
    seconds: float
    dropped: str = ""


@dataclass(frozen=True)
class Look:
    """One look at the singular values: the mean effective rank, the norm of all, and the values of each layer."""

    step: int
    effective_rank: float
    norm: float
    layers: dict[str, list[float]]


@dataclass
class RunRecord:
    """A run as its log has it; of what is there twice, the later line counts."""

    path: Path
    start: Line = field(default_factory=dict)  # facts of the last start
    starts: list[int] = field(default_factory=list)  # steps at which it was started or resumed
    steps: list[LoggedStep] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    previews: list[int] = field(default_factory=list)  # steps that were drawn
    files: list[Line] = field(default_factory=list)  # "step", "path", "what"
    end: Line = field(default_factory=dict)  # of the last start; empty while a run goes on, and after a kill
    skipped: int = 0  # lines that are cut off or none of ours

    @property
    def planned(self) -> int:
        """Steps that the run was to make; 0 where the log does not say."""
        steps = self.start.get("steps")
        return steps if isinstance(steps, int) and 0 <= steps <= _MOST_STEPS else 0

    def told(self, *names: str) -> Line:
        """A table within the facts of the start, by its place; {} where there is none."""
        value: Any = self.start
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    @property
    def done(self) -> int:
        """The last step that the log tells of."""
        ended: int = self.end.get("step", 0)
        return max([ended, *(step.step for step in self.steps[-1:]), *self.starts[-1:]])

    @property
    def best(self) -> Measure | None:
        """The measure of the lowest validation loss."""
        return best_measure(self.measures)

    @property
    def ended(self) -> str:
        """How it ended, in the log's words; "" for a run that goes on or was killed."""
        return str(self.end.get("ended", ""))

    @property
    def finished(self) -> bool:
        """Whether it did what was asked for."""
        return self.ended in ("steps", "validation")

    def losses(self) -> list[float]:
        """The loss of every step from the first one on; NaN where the log has none."""
        known = {step.step: step.loss for step in self.steps}
        return [known.get(number, math.nan) for number in range(1, max(known, default=0) + 1)]


def read_log(path: Path) -> RunRecord:
    """Read a log of `runlog.RunLog`; lines that are cut off or unknown are counted and left out.

    Raises InputError when the file cannot be read or holds nothing of a run.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"the log {path} cannot be read: {error.strerror or error}; check the name") from error
    record, known = RunRecord(path), 0
    for line in text.split("\n"):
        value = _parsed(line)
        if value is None or not _taken(record, value):
            record.skipped += bool(line.strip())
        else:
            known += 1
    if not known:
        raise InputError(f"{path} holds no line of a run's log; give the NAME.log.jsonl that lies beside an adapter")
    for name in ("steps", "measures", "looks"):
        entries = {entry.step: entry for entry in getattr(record, name)}
        setattr(record, name, [entries[step] for step in sorted(entries)])
    return record


def _parsed(line: str) -> Line | None:
    try:
        value = read_json(line)
    except ValueError:  # cut off where the process was killed
        return None
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return None
    step = value.get("step")
    return value if isinstance(step, int) and 0 <= step <= _MOST_STEPS else None


def _taken(record: RunRecord, line: Line) -> bool:
    """Whether the line is of a kind that is known, and complete."""
    take = _EVENTS.get(line["event"])
    if take is None:
        return False
    try:
        take(record, line)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # not what we wrote
        return False
    return True


def _start(record: RunRecord, line: Line) -> None:
    record.start, record.end = line, {}
    record.starts.append(line["step"])


def _step(record: RunRecord, line: Line) -> None:
    loss, rate, seconds = (_number(line.get(name)) for name in ("loss", "learning_rate", "seconds"))
    record.steps.append(LoggedStep(line["step"], loss, rate, seconds, str(line.get("dropped", ""))))


def _measure(record: RunRecord, line: Line) -> None:
    record.measures.append(Measure(line["step"], _number(line["validation"]), _number(line["drift"])))


def _look(record: RunRecord, line: Line) -> None:
    if "problem" in line:
        return
    layers = {str(stem): _numbers(layer["values"]) for stem, layer in line["layers"].items()}
    record.looks.append(Look(line["step"], _number(line["effective_rank"]), _number(line["norm"]), layers))


def _preview(record: RunRecord, line: Line) -> None:
    if "files" in line:
        record.previews.append(line["step"])


def _file(record: RunRecord, line: Line) -> None:
    record.files.append({"step": line["step"], "path": str(line["path"]), "what": str(line["what"])})


def _end(record: RunRecord, line: Line) -> None:
    record.end = line


_EVENTS: dict[str, Callable[[RunRecord, Line], None]] = {
    "start": _start,
    "step": _step,
    "measure": _measure,
    "spectrum": _look,
    "preview": _preview,
    "file": _file,
    "end": _end,
}


def _number(value: Any) -> float:
    """The log writes null for what is not finite."""
    return math.nan if value is None else float(value)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [_number(value) for value in values]
