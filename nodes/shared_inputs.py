"""Widgets that several nodes have, so that they have the same limits and the same words everywhere."""

from __future__ import annotations

from comfy_api.latest import io

__all__ = ["guidance", "negative_input", "sampling_steps", "strength_of"]


def strength_of(name: str, tooltip: str, *, optional: bool = False) -> io.Input:
    """How much of an adapter is added: 1 as trained, between -20 and 20 as ComfyUI's own loaders have it."""
    return io.Float.Input(name, default=1.0, min=-20.0, max=20.0, step=0.05, optional=optional, tooltip=tooltip)


def sampling_steps(tooltip: str, *, optional: bool = False) -> io.Input:
    """The steps of a sampler."""
    return io.Int.Input("steps", default=20, min=1, max=1000, optional=optional, tooltip=tooltip)


def guidance(*, optional: bool = False) -> io.Input:
    """The cfg of a sampler."""
    return io.Float.Input(
        "cfg",
        default=7.0,
        min=0.0,
        max=100.0,
        step=0.1,
        optional=optional,
        tooltip="How strictly pictures follow their prompt: 7 for SD1.5 and SDXL, 4.5 for SD3, 1 for Flux.",
    )


def negative_input() -> io.Input:
    """The negative prompt of all pictures."""
    return io.String.Input("negative", default="", optional=True, tooltip="What should not be in the pictures.")
