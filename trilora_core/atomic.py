"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from .checks import is_unicode
from .errors import InputError

__all__ = ["check_name", "check_room", "check_spelling", "check_writable", "refusal", "write_atomic", "write_text"]

_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
_LONGEST = 200  # bytes of a file's name: systems allow 255, and steps, counters and endings are put behind it


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to the disk, then rename it over `path`.

    An old file stays as it was until the new one is complete. Raises InputError when the folder cannot be written to
    or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; an adapter is an ordinary one
        temporary.replace(path)
        with suppress(OSError):  # the file is there; some network disks cannot flush a folder
            _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise refusal(str(path), error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all, with the same line ends on every system."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="\n")

    write_atomic(path, write)


def refusal(what: str, error: OSError | SafetensorError) -> InputError:
    """The message for something that cannot be written: why, and what to do about it."""
    number = error.errno if isinstance(error, OSError) else _system_error(error)
    why = os.strerror(number) if number else (isinstance(error, OSError) and error.strerror) or error
    cure = "make room there, or choose another folder" if number in _FULL else "choose a folder that you can write to"
    return InputError(f"cannot write {what}: {why}; {cure}")


def check_room(folder: Path, wanted: int) -> None:
    """Prove before hours of work that the disk has these bytes left; raises InputError when not."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise InputError(
            f"the disk of {folder} has {free / 2**20:.1f} MiB left; what this run writes takes"
            f" {wanted / 2**20:.1f} MiB: make room there, or choose another folder"
        )


def check_writable(folder: Path, *, leave: bool = True) -> None:
    """Prove before hours of work that a file can be made in the folder; raises InputError when not.

    The folder is made where there is none; `leave=False` takes away again what was made.
    """
    made: list[Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"cannot write to {folder}: it is a file; choose a folder")
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write to the folder {folder}: {why}; choose one that you can write to") from error
    finally:
        for place in () if leave else made:
            with suppress(OSError):  # never made, or somebody else's file is in it by now
                place.rmdir()


def check_name(path: Path) -> None:
    """Prove before hours of work that every file beside this one can have its name; raises InputError when not."""
    length = len(os.fsencode(path.name))
    if length > _LONGEST:
        raise InputError(f"the name {path.name} has {length} bytes; wanted at most {_LONGEST}: choose a shorter one")


def check_spelling(path: Path) -> None:
    """Prove before hours of work that reports can hold this path; raises InputError when it is not UTF-8."""
    if not is_unicode(str(path)):
        raise InputError(f"the path {path} is not UTF-8, so reports cannot hold it; give it another name")


def _system_error(error: SafetensorError) -> int | None:
    """The system's number of an error that safetensors has only in words."""
    found = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))  # since 0.6, and before it
    return int(found[1] or found[2]) if found else None


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle for a folder to flush
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
