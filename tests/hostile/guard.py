"""What a reader of strangers' files may do at most: one clear line, in time, within memory, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trilora_core.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS = 10.0  # of one input: many times what the slowest takes
MEMORY = 1 << 30  # bytes of address space above what is there before; a good file here has some 100 KB
LONGEST = 3000  # letters of a message
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Fault(Exception):
    """A reader did what no file may make it do."""


class _Late(BaseException):
    """Raised by the clock; no reader catches it."""


class _Watch:
    """An audit hook, which Python never takes out again, that counts only while it is on."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        self._thread = 0
        self._inside = ""
        sys.addaudithook(self._hook)

    def start(self, inside: Path | None) -> None:
        self.seen.clear()
        self._inside = "" if inside is None else os.path.realpath(inside)
        self._thread, self.on = threading.get_ident(), True

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or threading.get_ident() != self._thread:
            return
        if event in _RUNS:
            self.seen.append(f"{event} {arguments[:1]!r:.200}")
        elif (event == "open" and arguments[2] is not None and arguments[2] & _WRITES) or event in _CHANGES:
            self._changed(event, arguments[0])

    def _changed(self, event: str, path: Any) -> None:
        if isinstance(path, (str, bytes)) and os.fsdecode(path) != os.devnull:
            place = os.path.realpath(os.fsdecode(path))
            if not self._inside or not (place + os.sep).startswith(self._inside + os.sep):
                self.seen.append(f"{event} {place}")


_watch: _Watch | None = None


def outcome(
    read: Callable[[], Any], *, inside: Path | None = None, seconds: float = SECONDS, memory: int = MEMORY
) -> str:
    """Call a reader: "read", or "refused" in one clear line; Fault for whatever else it does.

    `inside` is the only folder that it may change anything in.
    """
    global _watch  # noqa: PLW0603 - one hook for the process
    _watch = _watch or _Watch()
    try:
        with _clock(seconds), _bounded(memory), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _watch.start(inside)
            try:
                read()
            finally:
                _watch.on = False
    except InputError as error:
        _check_message(str(error))
        result = "refused"
    except _Late as error:
        raise Fault(f"took more than {seconds:g} s: {_where(error)}") from error
    except (Exception, RecursionError, MemoryError) as error:
        raise Fault(f"{type(error).__name__}: {str(error)[:300]} at {_where(error)}") from error
    else:
        result = "read"
    if _watch.seen:
        raise Fault(f"did {_watch.seen[:3]}")
    return result


def _check_message(message: str) -> None:
    if not message.strip() or len(message) > LONGEST or _CONTROL.search(message):
        raise Fault(f"no clear line ({len(message)} letters): {message[:300]!a}")


def _where(error: BaseException) -> str:
    """The last places of our own code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "trilora_core" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-3:]))


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_signal: int, _frame: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    old = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *old)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _bounded(memory: int) -> Iterator[None]:
    """No more address space than this beyond what the process has: what takes more gets a MemoryError."""
    if resource is None or not Path("/proc/self/statm").exists():
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + memory if hard == resource.RLIM_INFINITY else min(used + memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
