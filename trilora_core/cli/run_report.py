"""How a run went, from its log: for a person, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..runrecord import RunRecord

__all__ = ["run_report", "run_table"]

_RECENT = 50  # steps of the last mean loss
_ENDS = {
    "steps": "all steps were done",
    "validation": "validation was no better for as long as it was to wait",
    "stop": "someone asked to stop and keep",
    "interrupt": "interrupted; resume goes on",
    "lost": "another process ended before its time; resume goes on",
    "memory": "the device's memory ran out; resume goes on",
    "diverged": "training diverged",
}


def run_report(record: RunRecord) -> dict[str, Any]:
    """Everything as plain data; null for what is not finite or was not watched."""
    told = {name: record.start.get(name) for name in ("base", "data", "adapter", "config", "device", "versions")}
    dropped = sum(bool(step.dropped) for step in record.steps)
    return {
        "log": str(record.path),
        "started": record.start.get("time"),
        "starts": record.starts,
        **told,
        "steps": {"planned": record.planned, "done": record.done, "dropped": dropped},
        "seconds": _finite(_seconds(record)),
        **_curves(record),
        "previews": record.previews,
        "files": record.files,
        "ended": record.ended or None,
        "finished": record.finished,
        "problem": record.end.get("problem"),
        "skipped_lines": record.skipped,
    }


def _curves(record: RunRecord) -> dict[str, Any]:
    best, last = record.best, record.looks[-1] if record.looks else None
    finite = [step.loss for step in record.steps if math.isfinite(step.loss)]
    layers = {} if last is None else {stem: [_finite(v) for v in values] for stem, values in last.layers.items()}
    return {
        "loss": {"first": _finite(_mean(finite[:_RECENT])), "last": _finite(_mean(finite[-_RECENT:]))},
        "best": best and {"step": best.step, "validation": best.validation, "drift": _finite(best.drift)},
        "measures": [[m.step, _finite(m.validation), _finite(m.drift)] for m in record.measures],
        "spectrum": [[look.step, _finite(look.effective_rank), _finite(look.norm)] for look in record.looks],
        "singular_values": layers,
    }


def run_table(record: RunRecord) -> str:
    """The same for a person, in a few lines."""
    facts = [*_what(record), *_how(record), *_watched(record), *_left(record)]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in facts)


def _what(record: RunRecord) -> list[tuple[str, str]]:
    start = record.start
    base, data = record.told("base"), record.told("data")
    facts = [("log", str(record.path)), ("started", f"{start.get('time', 'unknown')}{_again(record.starts)}")]
    if base:
        facts.append(("base model", f"{base.get('name')} ({base.get('architecture')}) on {start.get('device')}"))
    if data:
        held = f", {data['held_out']} more held out" if data.get("held_out") else ""
        facts.append(("pictures", f"{data.get('pictures')}{held}"))
    adapter, optimizer = record.told("config", "adapter"), record.told("config", "optimizer")
    if adapter:
        layers = record.told("adapter").get("layers")
        facts.append(("adapter", f"{adapter.get('method')}, rank {adapter.get('rank')}, {layers} layers"))
    if optimizer:
        rate = f"{optimizer.get('name')}, learning rate {optimizer.get('learning_rate')}, {optimizer.get('schedule')}"
        facts.append(("learning", rate))
    return facts


def _again(starts: Sequence[int]) -> str:
    later = [str(step) for step in starts if step]
    return f", resumed at step {', '.join(later)}" if later else ""


def _how(record: RunRecord) -> list[tuple[str, str]]:
    dropped = sum(bool(step.dropped) for step in record.steps)
    more = f", {dropped} of them left out" if dropped else ""
    planned = f" of {record.planned}" if record.planned else ""
    seconds = _seconds(record)
    pace = f", {seconds / len(record.steps):.3g} s each" if record.steps and math.isfinite(seconds) else ""
    facts = [("steps", f"{record.done}{planned}{more}{pace}"), ("ended", _end(record))]
    finite = [step.loss for step in record.steps if math.isfinite(step.loss)]
    if finite:
        count = min(_RECENT, len(finite))
        first, last = _mean(finite[:count]), _mean(finite[-count:])
        facts.append(("loss", f"{first:.4f} at first, {last:.4f} at last (means of {count} steps)"))
    return facts


def _end(record: RunRecord) -> str:
    if not record.end:
        return f"not yet, or killed: the log stops at step {record.done}"
    if record.ended == "error":
        return f"with an error: {record.end.get('problem', 'unknown')}"
    return _ENDS.get(record.ended, record.ended)


def _watched(record: RunRecord) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    best = record.best
    if best is not None:
        last = record.measures[-1]
        now = "the last measure" if last.step == best.step else f"{last.validation:.4f} at step {last.step}"
        facts.append(("validation", f"best {best.validation:.4f} at step {best.step} (drift {best.drift:.3g}); {now}"))
    if record.looks:
        look = record.looks[-1]
        rank = f"effective rank {look.effective_rank:.3g}, norm {look.norm:.3g}"
        facts.append(("spectrum", f"{rank} at step {look.step}; {len(record.looks)} looks"))
    return facts


def _left(record: RunRecord) -> list[tuple[str, str]]:
    latest = {line["path"]: line for line in record.files}
    facts = [("file", f"{path} ({line['what']}, step {line['step']})") for path, line in latest.items()]
    if record.previews:
        facts.append(("previews", f"of {len(record.previews)} steps, the last one {record.previews[-1]}"))
    if record.skipped:
        facts.append(("unread", f"{record.skipped} lines that are cut off or unknown"))
    return facts


def _seconds(record: RunRecord) -> float:
    return math.fsum(step.seconds for step in record.steps) if record.steps else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
