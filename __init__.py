"""TriLoRA for ComfyUI: train, save, load, apply and merge TriLoRA adapters in the graph."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Hand the host the extension; the import waits until the host asks, so that tools can import the root alone."""
    from .nodes import TriLoRAExtension

    return TriLoRAExtension()
