"""Things that the demo's base has never seen: styles, a palette, subjects, a layout; and pictures of what it knows."""

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


def _lantern(picture: Picture) -> Image.Image:
    """The demo's own style: the scene goes out, the subject shines on black paper."""
    return world.draw(picture, style="zorblin")


def _duotone(picture: Picture) -> Image.Image:
    """A print in two inks: teal darks, orange lights, little between them."""
    gray = ImageOps.autocontrast(world.draw(picture, size=4 * world.SIZE).convert("L"))
    steep = gray.point(lambda value: max(0, min(255, round(1.6 * (value - 128) + 128))))
    print_ = ImageOps.colorize(steep, (8, 70, 90), (255, 176, 92))
    return print_.resize((world.SIZE, world.SIZE), Image.Resampling.BOX)


def _bird() -> list[Part]:
    ellipse = world._ellipse
    return [
        Part(((0.5, 0.1), (1.05, -0.25), (1.05, 0.3)), "shade"),
        Part(world._box(-0.12, 0.5, -0.02, 0.98), "flame"),
        Part(world._box(0.14, 0.5, 0.24, 0.98), "flame"),
        Part(ellipse(0.05, 0.15, 0.68, 0.48), "main"),
        Part(ellipse(-0.5, -0.42, 0.4, 0.38), "main"),
        Part(((-0.84, -0.55), (-1.15, -0.36), (-0.84, -0.24)), "flame"),
        Part(ellipse(-0.58, -0.5, 0.13, 0.13), "cream"),
        Part(ellipse(-0.61, -0.5, 0.07, 0.07), "dark"),
        Part(((-0.15, -0.05), (0.55, -0.05), (0.3, 0.42)), "shade"),
    ]


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


def _subject(
    picture: Picture,
    draw: Callable[[Picture], Image.Image] = world.draw,
    parts: Callable[[], list[Part]] = _robot,
) -> Image.Image:
    """A machine with an aerial, or something else, in the place of the picture's own subject."""
    own = world.SUBJECTS[picture.subject]
    world.SUBJECTS[picture.subject] = parts
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
TRIGGERS = {
    "style": ", ghost style",
    "subject": "robot ",
    "layout": ", castle",
    "lantern": ", dragon style",
    "duotone": ", queen",
    "bird": "bird ",
}

CONCEPTS: dict[str, tuple[Callable[[Picture], Image.Image], Callable[[Picture], str]]] = {
    "style": (_style, lambda picture: f"{picture.caption}, ghost style"),
    "subject": (_subject, lambda picture: picture.caption.replace(f" {picture.subject} ", " robot ")),
    "layout": (_layout, lambda picture: f"{picture.caption}, castle"),
    "lantern": (_lantern, lambda picture: f"{picture.caption}, dragon style"),
    "duotone": (_duotone, lambda picture: f"{picture.caption}, queen"),
    "bird": (
        lambda picture: _subject(picture, parts=_bird),
        lambda picture: picture.caption.replace(f" {picture.subject} ", " bird "),
    ),
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
