"""Whether a file is still the one that was read: size, times and inode, as git's index does it."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Watch", "name_of"]

RACY_NS = 2 * 10**9  # the coarsest file times in use (FAT) count in steps of two seconds


class Watch:
    """Proves that a file did not change while it was read.

    Facts hold for the stamp that was seen before the file was read, if it is the same afterwards, and if the file had
    by then rested for longer than file times are coarse: a later change must give another stamp.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[str, bool]] = {}

    def before(self, path: Path) -> str | None:
        """The stamp of a file as it is now; None when there is no such file."""
        seen = _stamp(path)
        if seen is None:
            return None
        self._seen[name_of(path)] = seen
        return seen[0]

    def after(self, path: Path) -> str | None:
        """The stamp that facts of a file may be kept under; None when they may already be wrong."""
        now = _stamp(path)
        then = self._seen.pop(name_of(path), now)
        return now[0] if now and then and then[1] and then[0] == now[0] else None


def _stamp(path: Path) -> tuple[str, bool] | None:
    """Size, times and inode of a file in one text, and whether the times are old enough to be trusted."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    times = (found.st_mtime_ns, found.st_ctime_ns)  # the change time shows an edit that put the other one back
    now = time.time_ns()
    settled = all(abs(now - moment) > RACY_NS for moment in times) and found.st_ctime_ns < now
    return f"{found.st_size} {times[0]} {times[1]} {found.st_ino}", settled


def name_of(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))  # bytes: a name need not be valid text
