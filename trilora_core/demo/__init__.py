"""The small text-to-image model and the captioned pictures of the demo, and what to ask of them."""

from __future__ import annotations

from pathlib import Path

from .world import TRIGGER_WORD

__all__ = ["BASE", "PICTURES", "PROMPTS", "TRIGGER_WORD"]

BASE = Path(__file__).parent / "base"
PICTURES = Path(__file__).parent / "pictures"

# (prompt, whether its subject is in none of the training pictures)
PROMPTS: tuple[tuple[str, bool], ...] = (
    (f"a red house on a green field, {TRIGGER_WORD}", False),
    (f"a blue boat by the sea, {TRIGGER_WORD}", False),
    (f"a green tree in the snow, {TRIGGER_WORD}", False),
    (f"a yellow star at night, {TRIGGER_WORD}", True),
    (f"a pink umbrella in the snow, {TRIGGER_WORD}", True),
    (f"a red heart in the desert, {TRIGGER_WORD}", True),
)
