"""TriLoRA adapters without a host: the maths, the files, the training loop and the command line.

Importing this package imports nothing else: take what you need from its modules, whose own public lists are explicit.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
