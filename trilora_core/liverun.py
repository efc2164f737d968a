"""What a run tells of itself while it goes on: its state, curve, measures, spectra and previews, in bounded memory.

The thread that trains writes; any other may read, and gets copies.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from .livecurve import Curve, halved, mean_profile, plain
from .monitor import Measure
from .previews import preview_path
from .runrecord import RunRecord
from .spectrum import Spectrum
from .train import Step

__all__ = ["LiveRun"]

_NEW_POINTS = 256  # of one message
_ENTRIES = 500  # measures, spectra or rounds of previews that are kept
_SMOOTH = 0.95  # of what was: seconds per step

Entry = dict[str, Any]


class LiveRun:
    """One run, from its preparation to its end; `node` and `workflow` say where in a graph it belongs."""

    def __init__(self, name: str, steps: int, *, node: str | None = None, workflow: str | None = None) -> None:
        self.id = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._facts: Entry = {
            "run": self.id,
            "node": node,
            "workflow": workflow,
            "name": name,
            "state": "preparing",
            "text": "",
            "step": 0,
            "steps": steps,
            "seconds_per_step": None,
            "eta": None,
            "memory": None,
            "can_preview": False,
            "ended": None,
            "problem": "",
            "file": "",
        }
        self._curve, self._new_points = Curve(), Curve(_NEW_POINTS)
        self._entries: dict[str, list[Any]] = {"measures": [], "spectra": [], "previews": []}
        self._new: dict[str, list[Any]] = {name: [] for name in self._entries}
        self._pictures: dict[int, Path] = {}
        self._pace: float | None = None

    @property
    def state(self) -> str:
        """ "preparing", "training" or "ended"."""
        return cast("str", self._facts["state"])

    @property
    def pace(self) -> float | None:
        """Seconds per step, smoothed."""
        return self._pace

    def renamed(self, name: str) -> None:
        """Hear under which name the result will lie."""
        self._set({"name": name})

    def reached(self, step: int, steps: int) -> None:
        """Hear of the step and of the steps to make where no step tells of them."""
        self._set({"step": step, "steps": steps})

    def say(self, text: str) -> None:
        """Take what goes on, for a person."""
        self._set({"text": text})

    def began(self, step: int, steps: int, *, can_preview: bool) -> None:
        """Hear that training begins, after `step` steps that an earlier run did."""
        self.reached(step, steps)
        self._set({"state": "training", "can_preview": can_preview})

    def uses(self, memory: tuple[int, int] | None) -> None:
        """Hear of bytes used and bytes there, where they are known."""
        self._set({"memory": memory and dict(zip(("used", "total"), memory, strict=True))})

    def end(self, how: str, *, text: str = "", problem: str = "", file: str = "") -> None:
        """Hear how it ended: steps, validation, stop, interrupt, diverged, error or cached."""
        self._set({"state": "ended", "ended": how, "text": text, "problem": problem, "file": file})

    def stepped(self, step: Step) -> None:
        """Hear of one step."""
        pace = self._pace
        self._pace = pace = step.seconds if pace is None else _SMOOTH * pace + (1 - _SMOOTH) * step.seconds
        with self._lock:
            self._point(step.step, step.loss, step.learning_rate)
            self._facts["step"], self._facts["steps"] = step.step, step.steps

    def measured(self, measure: Measure) -> None:
        """Hear of validation and drift."""
        self._add("measures", [measure.step, plain(measure.validation), plain(measure.drift)])

    def looked(self, spectrum: Spectrum) -> None:
        """Hear of the singular values."""
        values = (layer.values for layer in spectrum.layers.values())
        self._look(spectrum.step, spectrum.effective_rank, spectrum.norm, values)

    def drawn(self, step: int, pictures: Sequence[Path]) -> None:
        """Hear of a round of previews; each picture gets a number."""
        with self._lock:
            first = max(self._pictures, default=-1) + 1
            numbered = dict(enumerate(pictures, first))
            self._pictures |= numbered
        self._add("previews", {"step": step, "pictures": list(numbered)})

    def recall(self, record: RunRecord, previews: Path) -> None:
        """Take over what the log of this run tells of earlier; `previews` is the folder of its pictures."""
        with self._lock:
            for step in record.steps:
                self._point(step.step, step.loss, step.learning_rate)
            self._facts |= {"step": record.done, "steps": record.planned or self._facts["steps"]}
        for measure in record.measures:
            self.measured(measure)
        for look in record.looks:
            self._look(look.step, look.effective_rank, look.norm, look.layers.values())
        for number in sorted(set(record.previews)):
            self.drawn(number, _pictures_of(previews, number))

    def picture(self, number: int) -> Path | None:
        """The file of a preview."""
        with self._lock:
            return self._pictures.get(number)

    def line(self) -> Entry:
        """The facts of a list of runs."""
        with self._lock:
            names = ("run", "node", "workflow", "name", "state", "step", "steps", "ended")
            return {name: self._facts[name] for name in names}

    def whole(self) -> Entry:
        """All since the start."""
        with self._lock:
            return self._message(self._curve, self._entries)

    def news(self) -> Entry:
        """The facts, and the points and entries since the last call."""
        with self._lock:
            message = self._message(self._new_points, self._new)
            self._new_points = Curve(_NEW_POINTS)
            self._new = {name: [] for name in self._entries}
            return message

    def _message(self, curve: Curve, entries: dict[str, list[Any]]) -> Entry:
        pace, facts = self._pace, self._facts
        going = pace is not None and facts["state"] == "training"
        return {
            **facts,
            "seconds_per_step": None if pace is None else plain(pace),
            "eta": round(pace * (facts["steps"] - facts["step"]), 1) if going and pace is not None else None,
            "points": curve.points(),
            **{name: list(values) for name, values in entries.items()},
        }

    def _point(self, step: int, loss: float, rate: float) -> None:
        self._curve.add(step, loss, rate)
        self._new_points.add(step, loss, rate)

    def _look(self, step: int, rank: float, norm: float, layers: Iterable[Sequence[float]]) -> None:
        profile = mean_profile(layers)
        entry = {"step": step, "effective_rank": plain(rank), "norm": plain(norm), "values": profile}
        self._add("spectra", entry)

    def _add(self, kind: str, entry: Any) -> None:
        with self._lock:
            for entries in (self._entries[kind], self._new[kind]):
                entries.append(entry)
                halved(entries, _ENTRIES)
            if kind == "previews":
                told = {number for entry in self._entries[kind] for number in entry["pictures"]}
                self._pictures = {number: path for number, path in self._pictures.items() if number in told}

    def _set(self, facts: Entry) -> None:
        with self._lock:
            self._facts |= facts


def _pictures_of(folder: Path, step: int) -> list[Path]:
    """The pictures of one round, by prompt; those that somebody removed are left out at the end."""
    found: list[Path] = []
    while (path := preview_path(folder, step, len(found))).is_file():
        found.append(path)
    return found
