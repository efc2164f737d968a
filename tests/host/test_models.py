"""ComfyUI's own loader takes the built checkpoints for the models that they stand for, and can run them."""

from __future__ import annotations

from typing import Any

import pytest

from . import models
from .discovery import Host
from .in_process import run_in_host

_CLASSES = {"sd15": "SD15", "sd15_clip": "SD15", "sdxl": "KOALA_700M", "sd3": "SD3", "flux": "Flux"}


@pytest.fixture(scope="module")
def loaded(host: Host) -> dict[str, Any]:
    """What the host made of each checkpoint that its version can read."""
    paths = {name: str(getattr(models, f"{name}_checkpoint")()) for name in _CLASSES}
    if host.version < (0, 14):
        del paths["flux"]
    return run_in_host(host, "load_checkpoints", {"checkpoints": paths})


@pytest.mark.parametrize("name", _CLASSES)
def test_checkpoint(loaded: dict[str, Any], host: Host, name: str) -> None:
    if name not in loaded:
        pytest.skip(f"ComfyUI {host.name} takes every Flux for one of width 3072")
    found = loaded[name]
    assert found["config"] == _CLASSES[name]
    assert found["missing"] == []
    assert found["output"]["finite"] and 0.05 < found["output"]["std"] < 20
    assert found["picture"]["finite"] and 0.05 < found["picture"]["std"] < 0.45
    assert found["encoded"]["finite"] and found["encoded"]["shape"][2:] == [8, 8]
    assert found["clip"] == (name == "sd15_clip")
    assert found.get("prompts_differ", True)
