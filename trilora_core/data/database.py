"""The SQLite file under the cache: opening it, its tables, what happens when it is broken, full or locked."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

__all__ = ["give_back_space", "is_broken", "open_database", "refusal", "reopen_database", "transaction"]

APPLICATION = 0x54724C52  # "TrLR": tells our file from another program's
VERSION = 1
LOCK_SECONDS = 60.0
WAL_TRIES = 20  # two processes that open a new file at once get in each other's way for a moment

# Blobs apart from the rest: the small tables stay a few pages that are quick to search and to rewrite.
_SCHEMA = (
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, "
    "used INTEGER NOT NULL)",
    "CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE pictures (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, digest BLOB NOT NULL, width INTEGER NOT NULL, "
    "height INTEGER NOT NULL, alpha INTEGER NOT NULL, problem TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT)",
)

_log = logging.getLogger(__name__)


def open_database(path: Path) -> sqlite3.Connection:
    """Open or make the file; one that is no database, or not ours, is moved aside with a warning.

    Raises InputError when the folder or the file cannot be written, or stays locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if not is_broken(error):
                raise
            _move_aside(path, error)
            return _connect(path)
    except (OSError, sqlite3.Error) as error:
        raise refusal(path, error) from error


def reopen_database(path: Path) -> sqlite3.Connection:
    """Open the file anew after it was found broken, or a new one unless another process has already begun that."""
    db = open_database(path)
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_broken(error):
            db.close()
            raise refusal(path, error) from error
        verdict = str(error)
    if verdict == "ok":
        return db
    db.close()
    try:
        _move_aside(path, verdict)
    except OSError as error:
        raise refusal(path, error) from error
    return open_database(path)


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the content of the file is at fault: Python raises the bare class only for that."""
    return type(error) is sqlite3.DatabaseError


def refusal(path: Path, error: Exception) -> InputError:
    """The message for a cache that cannot be used."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if "locked" in why:
        why = f"another program has kept it locked for {LOCK_SECONDS:g} seconds"
    elif "full" in why:
        why = "the disk is full"
    return InputError(f"cannot use the cache {path}: {why}; choose another cache folder, or keep the cache in memory")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def give_back_space(db: sqlite3.Connection) -> None:
    """Cut the pages that were freed off the file."""
    db.executescript("PRAGMA incremental_vacuum")  # execute() would free one page and stop
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _refuse_foreign(db)
        db.execute("PRAGMA page_size = 16384")  # suits blobs of 10 KB to 1 MB; counts for a new file only, as the next
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if _write_ahead(db):
            db.execute("PRAGMA synchronous = NORMAL")  # safe with a write-ahead log only; else the default, FULL
        _ensure_schema(db)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _write_ahead(db: sqlite3.Connection) -> bool:
    """Ask for a write-ahead log, which network folders may not have; whether it is there."""
    for attempt in range(WAL_TRIES):
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            return bool(mode == "wal")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                break
            time.sleep(0.01 * (attempt + 1))
    db.execute("PRAGMA journal_mode = DELETE").fetchone()
    return False


def _ensure_schema(db: sqlite3.Connection) -> None:
    if _version(db) == (APPLICATION, VERSION):
        return
    with transaction(db):
        if _version(db) == (APPLICATION, VERSION):  # another process was faster
            return
        for name in _tables(db):
            if not name.startswith("sqlite_"):
                db.execute(f'DROP TABLE "{name}"')
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")
    give_back_space(db)


def _refuse_foreign(db: sqlite3.Connection) -> None:
    if _tables(db) and _version(db)[0] != APPLICATION:  # in this order: another process may just begin the file
        raise sqlite3.DatabaseError("the file belongs to another program")


def _tables(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def _version(db: sqlite3.Connection) -> tuple[int, int]:
    return db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]


def _move_aside(path: Path, why: object) -> None:
    _log.warning("the cache %s cannot be read (%s); it is moved to %s.broken and begun anew", path, why, path.name)
    for ending in ("", "-wal", "-shm", "-journal"):  # a log left behind would be played into the new file
        part = path.with_name(path.name + ending)
        if part.exists():
            part.replace(path.with_name(f"{path.name}.broken{ending}"))
