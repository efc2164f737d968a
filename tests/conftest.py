"""Settings of the unit tier: where `trilora_core` comes from, and how many threads torch may take."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[1]


def _load_core() -> None:
    """Import `trilora_core` without the pack root on sys.path, where `nodes/` would shadow a host's nodes.py."""
    folder = PACK / "trilora_core"
    spec = importlib.util.spec_from_file_location(
        "trilora_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trilora_core"] = module
    spec.loader.exec_module(module)


_load_core()


def pytest_configure(config: pytest.Config) -> None:
    """Name the tiers as markers, so that `-m "not host"` leaves them out."""
    config.addinivalue_line("markers", "host: needs a ComfyUI (found as tests/host/discovery.py says)")
    config.addinivalue_line("markers", "browser: needs a ComfyUI and Chromium")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny tensors gain nothing from threads, and one thread makes sums repeat bit by bit."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
