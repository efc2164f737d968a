"""What is learned, and what it is measured on: six concepts, each with nested sets of pictures.

No caption that is measured is one that was trained on. A subject has 40 captions (colours and scenes), the others 480.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from concepts import CONCEPTS
from PIL import Image

from trilora_core.demo import world
from trilora_core.demo.world import Picture

Captioned = list[tuple[Image.Image, str]]

# What `preserve/concepts.py` calls each concept. Two styles, a palette, two subjects, a layout.
DRAWN_AS = {
    "ink": "style",
    "lantern": "lantern",
    "duotone": "duotone",
    "robot": "subject",
    "bird": "bird",
    "double": "layout",
}
CONCEPT_NAMES = tuple(DRAWN_AS)
# The trigger words: tokens of the base's vocabulary, made known to it by rare.py.
RARE_WORDS = ("ghost", "style", "dragon", "queen", "castle", "robot", "bird")
VALIDATED, TESTED, REFERENCE = 16, 24, 192  # pictures: to stop by, to report on, to compare drawn ones with
_HELD_SHARE, _HELD_MOST = 0.4, 40  # of the captions


def caption(name: str, picture: Picture) -> str:
    """The words for a picture of a concept."""
    return CONCEPTS[DRAWN_AS[name]][1](picture)


def drawn(name: str, picture: Picture) -> Image.Image:
    """A picture of a concept."""
    return CONCEPTS[DRAWN_AS[name]][0](picture)


def captions_apart(name: str) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """Every caption of a concept once, to train on, to stop by and to report on."""
    every = [Picture(s, c, g) for s in sorted(world.SUBJECTS) for c in sorted(world.COLOURS) for g in world.SCENES]
    random.Random(f"trilora world {name}").shuffle(every)
    once = list({caption(name, picture): picture for picture in every}.values())
    held = min(_HELD_MOST, round(_HELD_SHARE * len(once)))
    stop = round(held * VALIDATED / (VALIDATED + TESTED))
    return once[held:], once[:stop], once[stop:held]


def training(name: str, count: int) -> Captioned:
    """The first pictures of a concept: three are among twelve, and these among fifty."""
    return _moved(name, captions_apart(name)[0], count, "shown")


def validation(name: str) -> Captioned:
    """What early stopping goes by."""
    return _moved(name, captions_apart(name)[1], VALIDATED, "validation")


def test(name: str) -> Captioned:
    """What is reported."""
    return _moved(name, captions_apart(name)[2], TESTED, "test")


def reference(name: str) -> Captioned:
    """Pictures of the captions that are tested, to compare drawn ones with."""
    return _moved(name, captions_apart(name)[2], REFERENCE, "reference")


def split(concept: str) -> tuple[Captioned, Captioned]:
    """Of "ink 12": what to train on, and what to stop by."""
    name, count = concept.split()
    return training(name, int(count)), validation(name)


def _moved(name: str, known: Sequence[Picture], count: int, purpose: str) -> Captioned:
    """As many pictures, captions in turn, each a little moved and zoomed."""
    found = []
    for number in range(count):
        chance, plain = random.Random(f"trilora world {name} {purpose} {number}"), known[number % len(known)]
        where = (chance.uniform(-2, 2), chance.uniform(-1, 1), chance.uniform(0.95, 1.05))
        picture = Picture(plain.subject, plain.colour, plain.scene, *where)
        found.append((drawn(name, picture), caption(name, picture)))
    return found
