"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["expanded"]


def expanded(path: str | Path) -> Path:
    """The path with a user's own folder in place of ~; where there is no such user, as it is, to be missed as a file.

    (pathlib's own way raises RuntimeError there.)
    """
    return Path(os.path.expanduser(path))
