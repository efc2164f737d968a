"""What a node tells the person who waits, and what it hears from them: progress, text, interrupt."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils

from ...trilora_core.data import Dataset

__all__ = [
    "Progress",
    "announce",
    "announce_data",
    "check_interrupt",
    "interrupt_type",
    "listened_to",
    "reporter",
    "send",
    "server_instance",
    "summary",
]

LINES = 8  # of text on a node; more would push the graph apart
SECONDS = 0.25  # between two events; more often would only load the browser

log = logging.getLogger("trilora")


class Progress:
    """The progress bar of a node and the text below it.

    `node_id` is the node's own id in the graph (a string, "3:1" inside a subgraph), or None outside a graph: then
    nothing is shown.
    """

    def __init__(self, node_id: str | None, total: int) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def update(self, step: int, text: str = "", total: int | None = None) -> None:
        """Show that `step` of the total is done; the host raises its interrupt here if the user asked to stop."""
        if text:
            self.text(text)
        self._bar.update_absolute(step, total)

    def text(self, text: str) -> None:
        """Show a text on the node, in place of the one before."""
        server = None if self._node_id is None else server_instance()
        if server is not None:
            # front ends up to that of 0.14 put it into the page as HTML: no name or caption of a stranger opens a tag
            server.send_progress_text(text.replace("<", "‹"), self._node_id)


def reporter(node_id: str | None, what: str) -> Callable[[int, int], None]:
    """Give a callback (done, total) that moves the bar of a node and raises the host's interrupt."""
    progress = Progress(node_id, 1)
    shown = -SECONDS

    def report(done: int, total: int) -> None:
        nonlocal shown
        check_interrupt()
        now = time.monotonic()
        if done >= total or now - shown >= SECONDS:
            shown = now
            progress.update(done, f"{what} {done} of {total}", total)

    return report


def announce(node_id: str | None, summary: str, problems: Sequence[str] = ()) -> None:
    """Leave a line of text on the node, with what the user should know below it; that goes to the log too."""
    for problem in problems:
        log.warning("TriLoRA: %s", problem)
    lines = [summary, *problems]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"and {len(lines) - LINES + 1} more: see ComfyUI's log"]
    Progress(node_id, 1).text("\n".join(lines))


def announce_data(node_id: str | None, data: Dataset, more: str = "") -> None:
    """Leave on the node what a data set holds, `more`, and what was left out of it."""
    left_out = [f"left out: {problem}" for problem in data.skipped]
    announce(node_id, summary(data) + more, [*left_out, *data.notes])


def summary(data: Dataset) -> str:
    """Count what a data set holds: "120 pictures, 3 buckets, 118 captions, 12 masks"."""
    items = data.items
    subsets = {(item.subset, item.repeats) for item in items}
    counts = [
        (len(items), "picture"),
        (len({item.shape for item in items}), "bucket"),
        (sum(item.written for item in items), "caption"),
        (sum(bool(item.masks) for item in items), "mask"),
        (len(subsets) if len(subsets) > 1 else 0, "subset"),
    ]
    return ", ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count or what == "caption")


def check_interrupt() -> None:
    """Raise the host's interrupt if the user asked to stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def interrupt_type() -> type[BaseException]:
    """Give the class of the host's interrupt: an Exception in older hosts, only a BaseException in newer ones."""
    return comfy.model_management.InterruptProcessingException


def server_instance() -> Any | None:
    """The host's web server; None where the host runs without one."""
    # not imported: a host that has a server has loaded it
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def listened_to() -> bool:
    """Whether any front end is connected."""
    server = server_instance()
    return server is not None and bool(server.sockets)


def send(event: str, data: dict[str, Any]) -> None:
    """Send an event to every front end."""
    server = server_instance()
    if server is not None:
        server.send_sync(event, data)
