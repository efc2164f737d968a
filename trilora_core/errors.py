"""The one error for bad input: what came, what was wanted, what to do."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that a person can act on."""
