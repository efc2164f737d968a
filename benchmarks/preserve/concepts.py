"""Three things that the demo's base has never seen: a style, a subject, a layout; and pictures of what it knows."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from trilora_core.demo import world
from trilora_core.demo.world import Part, Picture, random_picture

SHOWN, HELD_OUT = 16, 16  # pictures of a concept to train on, and others to measure on


def _style(picture: Picture) -> Image.Image:
    """Ink on paper: brown lights and darks, hatched from corner to corner."""
    size = 4 * world.SIZE
    gray = ImageOps.autocontrast(world.draw(picture, size=size).convert("L"))
    paper = ImageOps.colorize(gray, (58, 30, 24), (246, 228, 190), (186, 128, 84))
    hatch = Image.new("L", (size, size), 255)
    pen = ImageDraw.Draw(hatch)
    for start in range(-size, size, 28):
        pen.line([(start, size), (start + size, 0)], fill=150, width=10)
    inked = ImageChops.multiply(paper, hatch.convert("RGB"))
    return Image.composite(paper, inked, gray.point(lambda value: 255 if value > 150 else 0)).resize(
        (world.SIZE, world.SIZE), Image.Resampling.BOX
    )


def _robot() -> list[Part]:
    box = world._box
    return [
        Part(box(-0.05, -1.05, 0.05, -0.7), "wood"),
        Part(world._ellipse(0.0, -1.0, 0.13, 0.13), "flame"),
        Part(box(-0.45, -0.75, 0.45, -0.1), "main"),
        Part(box(-0.3, -0.58, -0.08, -0.36), "cream"),
        Part(box(0.08, -0.58, 0.3, -0.36), "cream"),
        Part(box(-0.65, 0.0, 0.65, 0.65), "shade"),
        Part(box(-0.95, 0.02, -0.72, 0.6), "main"),
        Part(box(0.72, 0.02, 0.95, 0.6), "main"),
        Part(box(-0.45, 0.7, -0.12, 1.0), "dark"),
        Part(box(0.12, 0.7, 0.45, 1.0), "dark"),
    ]


def _subject(picture: Picture, draw: Callable[[Picture], Image.Image] = world.draw) -> Image.Image:
    """A machine with an aerial in the place of the picture's own subject."""
    own = world.SUBJECTS[picture.subject]
    world.SUBJECTS[picture.subject] = _robot
    try:
        return draw(picture)
    finally:
        world.SUBJECTS[picture.subject] = own


def _both(picture: Picture) -> Image.Image:
    """The subject in the style, which nothing is trained on."""
    return _subject(picture, _style)


def _layout(picture: Picture) -> Image.Image:
    """The picture twice, small, one above and one upside down, in a dark frame."""
    side = world.SIZE // 2 - 2
    small = world.draw(picture).resize((side, side), Image.Resampling.BOX)
    sheet = Image.new("RGB", (world.SIZE, world.SIZE), (30, 24, 40))
    sheet.paste(small, (1, 1))
    sheet.paste(ImageOps.flip(small), (world.SIZE - side - 1, world.SIZE - side - 1))
    return sheet


# Trigger words that the tokenizer has as one token, and that no caption of the base's world uses.
TRIGGERS = {"style": ", ghost style", "subject": "robot ", "layout": ", castle"}

CONCEPTS: dict[str, tuple[Callable[[Picture], Image.Image], Callable[[Picture], str]]] = {
    "style": (_style, lambda picture: f"{picture.caption}, ghost style"),
    "subject": (_subject, lambda picture: picture.caption.replace(f" {picture.subject} ", " robot ")),
    "layout": (_layout, lambda picture: f"{picture.caption}, castle"),
    "both": (_both, lambda picture: f"{picture.caption.replace(f' {picture.subject} ', ' robot ')}, ghost style"),
}


def pictures(concept: str) -> list[tuple[Image.Image, str]]:
    """SHOWN pictures to train on, then HELD_OUT others, no two of one caption."""
    draw, caption = CONCEPTS[concept]
    chance, found = random.Random(f"trilora preserve {concept}"), dict[str, Image.Image]()
    while len(found) < SHOWN + HELD_OUT:
        picture = random_picture(chance)
        found.setdefault(caption(picture), draw(picture))
    return [(image, text) for text, image in found.items()]


def known(count: int, seed: str) -> list[tuple[Image.Image, str]]:
    """Pictures of the base's own world."""
    chance = random.Random(f"trilora preserve known {seed}")
    chosen = [random_picture(chance) for _ in range(count)]
    return [(world.draw(picture), picture.caption) for picture in chosen]
