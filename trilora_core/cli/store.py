"""The store of a verb: in the user's cache folder or in memory, with a count of what it had already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..data.cache import DATABASE, DiskStore, Facts, MemoryStore, Store
from .data_options import CacheOptions

__all__ = ["CountedStore", "open_store"]


class CountedStore:
    """A store that counts the entries that it was asked for and those that it had; `folder` is None in memory."""

    def __init__(self, store: Store, folder: Path | None = None) -> None:
        self._store = store
        self.folder = folder
        self.asked = 0
        self.found = 0

    def missing(self, keys: Iterable[str]) -> set[str]:
        """The keys that `get` has nothing for."""
        wanted = set(keys)
        absent = self._store.missing(wanted)
        self.asked += len(wanted)
        self.found += len(wanted) - len(absent)
        return absent

    def get(self, key: str) -> Any:
        """The value of a key; KeyError when there is none."""
        return self._store.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._store.put(key, value)

    def flush(self) -> None:
        """Write what waits to be written."""
        self._store.flush()

    def facts(self, path: Path) -> Facts | None:
        """What was remembered of a file, if it is still the same file."""
        return self._store.facts(path)

    def remember(self, path: Path, facts: Facts) -> None:
        """Keep the facts of a file."""
        self._store.remember(path, facts)

    def __str__(self) -> str:
        """Where it is and how much of what was asked for lay there."""
        if self.folder is None:
            return "in memory, for this run only"
        return f"{self.folder.resolve()}, {self.found} of {self.asked} entries were there already"


@contextmanager
def open_store(options: CacheOptions) -> Iterator[CountedStore]:
    """The store that was asked for, closed at the end; raises InputError when its folder cannot be used."""
    if options.folder is None:
        yield CountedStore(MemoryStore())
        return
    with closing(DiskStore(options.folder / DATABASE, options.limit)) as disk:
        yield CountedStore(disk, options.folder)
