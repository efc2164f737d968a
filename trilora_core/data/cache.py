"""What was encoded once, kept in memory or on disk, and what is known of the picture files."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..home import expanded
from . import database
from .codec import decode, encode
from .watch import Watch, name_of

__all__ = ["DATABASE", "DiskStore", "Facts", "MemoryStore", "Store", "default_cache_folder"]

DATABASE = "data.sqlite"  # in the cache folder
COMMIT_SECONDS = 1.0
COMMIT_BYTES = 64 * 2**20  # waiting to be written: bounds the memory
KEYS_AT_ONCE = 900  # older SQLite takes at most 999 parameters

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What is known of a picture file as long as the file stays as it is."""

    digest: bytes  # SHA-256 of the file's bytes
    width: int  # upright, after EXIF; 0 if unreadable
    height: int
    alpha: bool
    problem: str = ""  # why it cannot be read


class Store(Protocol):
    """Where encoded pictures and captions are kept, by keys that name their content."""

    def missing(self, keys: Iterable[str]) -> set[str]: ...
    def get(self, key: str) -> Any: ...  # KeyError when it is not there
    def put(self, key: str, value: Any) -> None: ...
    def flush(self) -> None: ...
    def facts(self, path: Path) -> Facts | None: ...  # None: not known, or the file changed
    def remember(self, path: Path, facts: Facts) -> None: ...


class MemoryStore:
    """Objects as they are, for as long as this store lives."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._facts: dict[bytes, tuple[str, Facts]] = {}
        self._watch = Watch()

    def missing(self, keys: Iterable[str]) -> set[str]:
        """The keys that `get` has nothing for."""
        return set(keys) - self._values.keys()

    def get(self, key: str) -> Any:
        """The object that was put; KeyError when there is none."""
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        """Keep an object."""
        self._values[key] = value

    def flush(self) -> None:
        """Nothing waits to be written."""

    def facts(self, path: Path) -> Facts | None:
        """What was remembered of a file, if it is still the same file."""
        name = name_of(path)
        stamp = self._watch.before(path)
        known = self._facts.get(name)
        return known[1] if known and known[0] == stamp else None

    def remember(self, path: Path, facts: Facts) -> None:
        """Keep the facts of a file, unless it changed since `facts(path)` was asked."""
        stamp = self._watch.after(path)
        if stamp:
            self._facts[name_of(path)] = (stamp, facts)


class DiskStore:
    """One SQLite file of plain structures of tensors (see codec.encode), for several threads and processes.

    What is put waits up to a second for its transaction: call `flush` after the last. Other objects stay in memory,
    for this store only. At `flush`, when all entries together exceed `limit` bytes, those that this store did not use
    (missing, get, put) are deleted, longest unused first. Every method raises InputError when the file cannot be used.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = Path(path), limit
        self._lock = threading.RLock()
        self._kept: dict[str, Any] = {}  # no plain structures
        self._pending: dict[str, bytes] = {}
        self._pending_bytes = 0
        self._pending_facts: dict[bytes, tuple[str, Facts]] = {}
        self._used: set[str] = set()
        self._unmarked: set[str] = set()  # those of _used that the file does not know about
        self._watch = Watch()
        self._committed = time.monotonic()
        self._db = database.open_database(self._path)
        self._run = self._attempt(_begin_run)

    def missing(self, keys: Iterable[str]) -> set[str]:
        """The keys that `get` has nothing for; the others count as used."""
        with self._lock:
            absent = set(keys) - self._kept.keys() - self._pending.keys()
            present = self._attempt(lambda db: _present(db, absent))
            self._mark(present)
            return absent - present

    def get(self, key: str) -> Any:
        """The value of a key: a new copy with tensors on the CPU; KeyError when there is none that can be read."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            blob = self._pending.get(key) or self._attempt(lambda db: _read(db, key))
            if blob is not None:
                self._mark({key})
        if blob is None:
            raise KeyError(key)
        try:
            return decode(blob)
        except ValueError as error:
            self._drop(key)
            raise KeyError(key) from error

    def put(self, key: str, value: Any) -> None:
        """Keep a value: in the file if it is a plain structure, else in memory."""
        try:
            blob = encode(value)
        except TypeError:
            with self._lock:
                self._kept[key] = value
            return
        with self._lock:
            self._kept.pop(key, None)
            self._pending_bytes += len(blob) - len(self._pending.get(key, b""))
            self._pending[key] = blob
            self._used.add(key)
            self._commit_if_due()

    def flush(self) -> None:
        """Write what waits, then make room if the limit is exceeded."""
        with self._lock:
            self._commit()
            self._attempt(self._evict)

    def close(self) -> None:
        """Flush, and let go of the file."""
        with self._lock:
            try:
                self.flush()
            finally:
                self._db.close()

    def facts(self, path: Path) -> Facts | None:
        """What was remembered of a file, if size, times and inode are still the same."""
        stamp = self._watch.before(path)
        if stamp is None:
            return None
        name = name_of(path)
        with self._lock:
            known = self._pending_facts.get(name) or self._attempt(lambda db: _read_facts(db, name))
        return known[1] if known and known[0] == stamp else None

    def remember(self, path: Path, facts: Facts) -> None:
        """Keep the facts of a file, unless it changed since `facts(path)` was asked or in the two seconds before."""
        stamp = self._watch.after(path)
        if stamp is None:
            return
        with self._lock:
            self._pending_facts[name_of(path)] = (stamp, facts)
            self._commit_if_due()

    def _mark(self, keys: set[str]) -> None:
        fresh = keys - self._used
        self._used |= fresh
        self._unmarked |= fresh

    def _drop(self, key: str) -> None:
        with self._lock:
            self._used.discard(key)
            self._attempt(lambda db: _delete(db, key))

    def _commit_if_due(self) -> None:
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if self._pending or self._pending_facts or self._unmarked:
            self._attempt(self._write)
            self._pending, self._pending_facts, self._unmarked, self._pending_bytes = {}, {}, set(), 0
        self._committed = time.monotonic()

    def _write(self, db: sqlite3.Connection) -> None:
        entries = [(key, len(blob), self._run) for key, blob in self._pending.items()]
        rows = [(name, stamp, *astuple(facts)) for name, (stamp, facts) in self._pending_facts.items()]
        with database.transaction(db):
            # Not REPLACE, which would give the entry a new id and leave its blob behind.
            db.executemany(
                "INSERT INTO entries (key, size, used) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET size = excluded.size, used = max(used, excluded.used)",
                entries,
            )
            db.executemany(
                "INSERT OR REPLACE INTO blobs SELECT id, ? FROM entries WHERE key = ?",
                ((blob, key) for key, blob in self._pending.items()),
            )
            db.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            for part in _parts(self._unmarked):
                marks = ",".join("?" * len(part))
                db.execute(f"UPDATE entries SET used = max(used, ?) WHERE key IN ({marks})", (self._run, *part))

    def _evict(self, db: sqlite3.Connection) -> None:
        (total,) = db.execute("SELECT coalesce(sum(size), 0) FROM entries").fetchone()
        gone: list[tuple[int]] = []
        for entry, size in db.execute("SELECT id, size FROM entries WHERE used < ? ORDER BY used, id", (self._run,)):
            if total <= self._limit:
                break
            gone.append((entry,))
            total -= size
        if gone:
            with database.transaction(db):
                db.executemany("DELETE FROM entries WHERE id = ?", gone)
                db.executemany("DELETE FROM blobs WHERE id = ?", gone)
            database.give_back_space(db)

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`; once more on a new file when this one turns out to be broken."""
        with self._lock:
            try:
                try:
                    return work(self._db)
                except sqlite3.DatabaseError as error:
                    if not database.is_broken(error):
                        raise
                    self._db.close()
                    self._db = database.reopen_database(self._path)
                    self._run = _begin_run(self._db)
                    return work(self._db)
            except sqlite3.Error as error:
                raise database.refusal(self._path, error) from error


def default_cache_folder() -> Path:
    """The folder of TRILORA_CACHE, else `trilora` in the place that the platform keeps for caches of a user."""
    chosen = os.environ.get("TRILORA_CACHE", "").strip()
    if chosen:
        return expanded(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trilora"


def _begin_run(db: sqlite3.Connection) -> int:
    with database.transaction(db):
        db.execute("DELETE FROM runs")
        return int(db.execute("INSERT INTO runs DEFAULT VALUES").lastrowid or 0)


def _present(db: sqlite3.Connection, keys: set[str]) -> set[str]:
    present: set[str] = set()
    for part in _parts(keys):
        marks = ",".join("?" * len(part))
        present.update(row[0] for row in db.execute(f"SELECT key FROM entries WHERE key IN ({marks})", part))
    return present


def _read(db: sqlite3.Connection, key: str) -> bytes | None:
    row = db.execute("SELECT data FROM entries JOIN blobs USING (id) WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def _delete(db: sqlite3.Connection, key: str) -> None:
    with database.transaction(db):
        db.execute("DELETE FROM blobs WHERE id = (SELECT id FROM entries WHERE key = ?)", (key,))
        db.execute("DELETE FROM entries WHERE key = ?", (key,))


def _read_facts(db: sqlite3.Connection, name: bytes) -> tuple[str, Facts] | None:
    row = db.execute("SELECT * FROM pictures WHERE path = ?", (name,)).fetchone()
    if row is None:
        return None
    _, stamp, digest, width, height, alpha, problem = row
    return stamp, Facts(digest, width, height, bool(alpha), problem)


def _parts(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while part := list(islice(rest, KEYS_AT_ONCE)):
        yield part
