"""The node that makes a strength and a rank follow the sampling."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trilora_core.fileformat import Adapter
from ..trilora_core.schedule import CONSTANT, CURVES, Keyframe, RankStep, bands, read_ranks
from ..trilora_core.schedule import keyframes as scheduled
from ..trilora_core.shaping import highest_rank
from .host.events import announce
from .host.hooks import hook_group, keyframes_of
from .shared_inputs import strength_of
from .sockets import CATEGORY, AdapterSocket

__all__ = ["TriLoRAHook"]

SHOWN = 6  # keyframes in the line on the node


class TriLoRAHook(io.ComfyNode):
    """Adapter to the host's hooks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRAHook",
            display_name="TriLoRA Hook (schedule)",
            category=CATEGORY,
            description="An adapter whose strength, or rank, changes while the picture is sampled. Connect hooks to "
            "ComfyUI's own Cond Set Props or Cond Pair Set Props (for both prompts), not to the model.",
            inputs=_inputs(),
            outputs=[io.Hooks.Output(display_name="hooks", tooltip="To ComfyUI's hook nodes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        trilora: Adapter,
        strength: float,
        strength_end: float = 1.0,
        curve: str = CONSTANT,
        keyframe_count: int = 8,
        ranks: str = "",
        strength_clip: float = 1.0,
        keyframes: Any = None,
    ) -> io.NodeOutput:
        """Cut the adapter into bands, give each its keyframes, and say what was planned."""
        highest = highest_rank(trilora)
        steps = read_ranks(ranks, highest)
        base, frames = _planned(strength, strength_end, curve, keyframe_count, keyframes)
        group = hook_group(trilora, bands(frames, steps, highest), base, strength_clip)
        announce(cls.hidden.unique_id, _summary(base, frames, steps))
        return io.NodeOutput(group)


def _planned(strength: float, end: float, curve: str, count: int, connected: Any) -> tuple[float, tuple[Keyframe, ...]]:
    """A strength for the whole and the keyframes that multiply it: the host's where they are connected."""
    frames = scheduled(strength, end, curve, count)
    if connected is not None:
        return strength, keyframes_of(connected)
    return (strength, (Keyframe(0.0, 1.0),)) if curve == CONSTANT else (1.0, frames)


def _summary(strength: float, frames: tuple[Keyframe, ...], steps: tuple[RankStep, ...]) -> str:
    shown = frames if len(frames) <= SHOWN else (*frames[: SHOWN - 1], frames[-1])
    parts = [f"{strength * frame.strength:.3g} from {frame.start:.0%}" for frame in shown]
    if len(frames) > SHOWN:
        parts.insert(-1, "…")
    lines = ["strength " + ", ".join(parts)]
    if steps:
        lines.append("rank " + ", ".join(f"{step.rank} from {step.start:.0%}" for step in steps))
    return "\n".join(lines)


def _inputs() -> list[io.Input]:
    return [
        AdapterSocket.Input("trilora", tooltip="From Load, Train or Merge TriLoRA."),
        strength_of(
            "strength",
            "The strength at the start of the sampling, as in Apply TriLoRA; with the curve constant the "
            "strength throughout. Keyframes that are connected multiply it.",
        ),
        strength_of(
            "strength_end",
            "The strength at the end. Not used while the curve is constant or keyframes are connected.",
            optional=True,
        ),
        io.Combo.Input(
            "curve",
            options=list(CURVES),
            default=CONSTANT,
            optional=True,
            tooltip="How the strength goes from start to end. constant: not at all. linear: evenly. ease in: slowly "
            "first. ease out: slowly at the end. Not used while keyframes are connected.",
        ),
        io.Int.Input(
            "keyframe_count",
            default=8,
            min=2,
            max=100,
            optional=True,
            tooltip="In how many equal parts of the sampling range the strength changes. At each change ComfyUI "
            "patches the weights anew, so more of them take longer.",
        ),
        io.String.Input(
            "ranks",
            default="",
            optional=True,
            tooltip="Rank by step: 4@0, 16@0.5 uses the 4 strongest directions of each layer from the start and 16 "
            "from half of the sampling range on (coarse first, fine later). all: every one. Empty: all throughout.",
        ),
        strength_of(
            "strength_clip",
            "For adapters that change the text encoder, with ComfyUI's Set CLIP Hooks: the strength of the "
            "moment times this. 0: leave the text encoder alone.",
            optional=True,
        ),
        io.HookKeyframes.Input(
            "keyframes",
            optional=True,
            tooltip="ComfyUI's own keyframes in place of strength_end, curve and keyframe_count.",
        ),
    ]
