"""Where the data set nodes keep what they have encoded: one cache for the process, or the memory of one data set."""

from __future__ import annotations

import functools
from pathlib import Path

import folder_paths

from ...trilora_core.data import DiskStore, MemoryStore, Store
from ...trilora_core.data.cache import DATABASE
from ...trilora_core.errors import InputError

__all__ = ["data_store"]

LIMIT = 32 * 2**30  # bytes: a million pictures of 512 pixels; entries that nothing has used for longest go first


def data_store(cache: str) -> Store:
    """The host's cache on the disk for "disk", an empty store for "memory".

    Raises InputError when the host's user directory cannot be written.
    """
    if cache == "memory":
        return MemoryStore()
    path = Path(folder_paths.get_user_directory()) / "trilora" / DATABASE
    try:
        return _opened(path)
    except InputError as error:
        raise InputError(f"{error} (set cache to memory; data set nodes have it in TriLoRA Dataset Options)") from error


@functools.cache
def _opened(path: Path) -> DiskStore:
    return DiskStore(path, LIMIT)
