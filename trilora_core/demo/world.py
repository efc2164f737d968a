"""The small drawn world of the demo: twelve subjects, eight colours, five scenes, and one style of its own.

Every picture is made of polygons in unit coordinates (x right, y down, the subject within [-1, 1]), so that the same
subject can be drawn plain, which the base model learns, or in the style, which it never sees.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ..errors import InputError

Point = tuple[float, float]
RGB = tuple[int, int, int]

SIZE = 64
TRIGGER_WORD = "zorblin style"

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (243, 130, 24),
    "yellow": (250, 212, 40),
    "green": (44, 140, 60),
    "blue": (40, 84, 208),
    "purple": (128, 54, 172),
    "pink": (245, 130, 180),
    "white": (248, 248, 248),
}

_FIXED: dict[str, RGB] = {
    "wood": (120, 74, 36),
    "dark": (44, 40, 52),
    "cream": (255, 240, 200),
    "glass": (176, 222, 244),
    "leaf": (70, 160, 64),
    "flame": (255, 190, 60),
    "nose": (240, 120, 130),
}


@dataclass(frozen=True)
class Part:
    """One filled polygon; `paint` is "main", "shade" (darker main) or a fixed colour."""

    points: tuple[Point, ...]
    paint: str


@dataclass(frozen=True)
class Scene:
    """A sky over a ground; `horizon` is the height of the line between them, from 0 (top) to 1 (bottom)."""

    sky: RGB
    ground: RGB
    horizon: float
    detail: str


SCENES: dict[str, Scene] = {
    "on a green field": Scene((170, 216, 246), (122, 190, 84), 0.66, "hills"),
    "by the sea": Scene((206, 234, 250), (52, 138, 196), 0.62, "waves"),
    "in the desert": Scene((252, 218, 164), (214, 164, 96), 0.70, "dunes"),
    "in the snow": Scene((188, 200, 220), (238, 242, 248), 0.66, "flakes"),
    "at night": Scene((26, 30, 74), (40, 48, 66), 0.74, "moon"),
}


@dataclass(frozen=True)
class Picture:
    """What a picture shows, and where: shifts in pixels of a 64-pixel picture, `zoom` a factor near 1."""

    subject: str
    colour: str
    scene: str
    shift_x: float = 0.0
    shift_y: float = 0.0
    zoom: float = 1.0

    @property
    def caption(self) -> str:
        """The words for this picture, such as "a red house on a green field"."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.subject} {self.scene}"


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> tuple[Point, ...]:
    steps = 36
    angles = (math.radians(start + (stop - start) * i / steps) for i in range(steps + 1))
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles)


def _box(left: float, top: float, right: float, bottom: float) -> tuple[Point, ...]:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _house() -> list[Part]:
    return [
        Part(_box(-0.72, -0.1, 0.72, 0.95), "main"),
        Part(((-1.0, -0.05), (0.0, -0.95), (1.0, -0.05)), "shade"),
        Part(_box(-0.18, 0.35, 0.22, 0.95), "wood"),
        Part(_box(-0.58, 0.15, -0.3, 0.45), "cream"),
        Part(_box(0.34, 0.15, 0.62, 0.45), "cream"),
    ]


def _tree() -> list[Part]:
    return [
        Part(_box(-0.16, 0.2, 0.16, 0.98), "wood"),
        Part(_ellipse(-0.45, 0.05, 0.48, 0.42), "main"),
        Part(_ellipse(0.45, 0.05, 0.48, 0.42), "main"),
        Part(_ellipse(0.0, -0.42, 0.6, 0.55), "main"),
    ]


def _fish() -> list[Part]:
    return [
        Part(((0.45, 0.0), (1.0, -0.5), (0.9, 0.0), (1.0, 0.5)), "shade"),
        Part(((-0.2, -0.4), (0.15, -0.8), (0.4, -0.3)), "shade"),
        Part(_ellipse(-0.15, 0.0, 0.8, 0.52), "main"),
        Part(_ellipse(-0.55, -0.12, 0.17, 0.17), "cream"),
        Part(_ellipse(-0.58, -0.12, 0.09, 0.09), "dark"),
    ]


def _cat() -> list[Part]:
    eyes = [Part(_ellipse(x, -0.02, 0.15, 0.2), "cream") for x in (-0.36, 0.36)]
    pupils = [Part(_ellipse(x, -0.02, 0.07, 0.18), "dark") for x in (-0.36, 0.36)]
    return [
        Part(((-0.82, 0.0), (-0.8, -0.98), (-0.15, -0.5)), "shade"),
        Part(((0.82, 0.0), (0.8, -0.98), (0.15, -0.5)), "shade"),
        Part(_ellipse(0.0, 0.12, 0.88, 0.74), "main"),
        *eyes,
        *pupils,
        Part(((-0.14, 0.26), (0.14, 0.26), (0.0, 0.44)), "nose"),
    ]


def _boat() -> list[Part]:
    return [
        Part(_box(-0.06, -0.95, 0.06, 0.4), "wood"),
        Part(((0.1, -0.9), (0.1, 0.25), (0.85, 0.25)), "cream"),
        Part(((-0.1, -0.7), (-0.1, 0.25), (-0.7, 0.25)), "cream"),
        Part(((-1.0, 0.35), (1.0, 0.35), (0.65, 0.85), (-0.65, 0.85)), "main"),
    ]


def _mushroom() -> list[Part]:
    return [
        Part(((-0.24, 0.0), (0.24, 0.0), (0.34, 0.95), (-0.34, 0.95)), "cream"),
        Part(_ellipse(0.0, 0.12, 0.95, 0.95, 180, 360), "main"),
        Part(_ellipse(-0.45, -0.2, 0.17, 0.16), "cream"),
        Part(_ellipse(0.05, -0.5, 0.18, 0.16), "cream"),
        Part(_ellipse(0.5, -0.15, 0.15, 0.14), "cream"),
    ]


def _flower() -> list[Part]:
    angles = [math.radians(90 + 72 * i) for i in range(5)]
    petals = [Part(_ellipse(0.42 * math.cos(a), -0.35 - 0.42 * math.sin(a), 0.34, 0.34), "main") for a in angles]
    return [
        Part(_box(-0.07, -0.2, 0.07, 1.0), "leaf"),
        Part(_ellipse(0.3, 0.66, 0.28, 0.13), "leaf"),
        Part(_ellipse(-0.3, 0.72, 0.28, 0.13), "leaf"),
        *petals,
        Part(_ellipse(0.0, -0.35, 0.24, 0.24), "wood"),
    ]


def _car() -> list[Part]:
    wheels = [Part(_ellipse(x, 0.5, 0.25, 0.25), "dark") for x in (-0.52, 0.52)]
    hubs = [Part(_ellipse(x, 0.5, 0.1, 0.1), "cream") for x in (-0.52, 0.52)]
    return [
        Part(((-0.62, -0.05), (-0.38, -0.55), (0.32, -0.55), (0.62, -0.05)), "shade"),
        Part(((-0.42, -0.08), (-0.28, -0.42), (-0.05, -0.42), (-0.05, -0.08)), "glass"),
        Part(((0.05, -0.08), (0.05, -0.42), (0.24, -0.42), (0.42, -0.08)), "glass"),
        Part(((-1.0, 0.05), (-0.9, -0.08), (0.85, -0.08), (1.0, 0.1), (1.0, 0.48), (-1.0, 0.48)), "main"),
        *wheels,
        *hubs,
    ]


def _star() -> list[Part]:
    radii = (1.0, 0.44)
    points = [(radii[i % 2], math.radians(-90 + 36 * i)) for i in range(10)]
    return [Part(tuple((r * math.cos(a), 0.06 + r * math.sin(a)) for r, a in points), "main")]


def _heart() -> list[Part]:
    angles = [math.radians(6 * i) for i in range(60)]
    curve = [
        (math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
        for a in angles
    ]
    return [Part(tuple((0.95 * x, 0.95 * y) for x, y in curve), "main")]


def _rocket() -> list[Part]:
    right = ((0.0, -1.05), (0.26, -0.65), (0.38, -0.1), (0.3, 0.62))
    return [
        Part(((-0.2, 0.6), (0.2, 0.6), (0.0, 1.05)), "flame"),
        Part(((-0.34, 0.1), (-0.75, 0.7), (-0.3, 0.62)), "shade"),
        Part(((0.34, 0.1), (0.75, 0.7), (0.3, 0.62)), "shade"),
        Part((*right, *((-x, y) for x, y in reversed(right))), "main"),
        Part(_ellipse(0.0, -0.22, 0.19, 0.19), "glass"),
    ]


def _umbrella() -> list[Part]:
    scallops = [Part(_ellipse(x, 0.02, 0.32, 0.2, 180, 360), "shade") for x in (-0.63, 0.0, 0.63)]
    return [
        Part(_box(-0.06, -0.9, 0.06, 0.8), "wood"),
        Part(_box(-0.36, 0.74, 0.06, 0.88), "wood"),
        Part(_ellipse(0.0, 0.02, 0.98, 0.88, 180, 360), "main"),
        *scallops,
    ]


SUBJECTS: dict[str, Callable[[], list[Part]]] = {
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "cat": _cat,
    "boat": _boat,
    "mushroom": _mushroom,
    "flower": _flower,
    "car": _car,
    "star": _star,
    "heart": _heart,
    "rocket": _rocket,
    "umbrella": _umbrella,
}


def random_picture(rng: random.Random) -> Picture:
    """One picture of the world, drawn evenly over subjects, colours and scenes, slightly moved and zoomed."""
    return Picture(
        subject=rng.choice(sorted(SUBJECTS)),
        colour=rng.choice(sorted(COLOURS)),
        scene=rng.choice(sorted(SCENES)),
        shift_x=rng.uniform(-2, 2),
        shift_y=rng.uniform(-1, 1),
        zoom=rng.uniform(0.95, 1.05),
    )


def draw(picture: Picture, style: str = "plain", size: int = SIZE) -> Image.Image:
    """The picture in a style ("plain" or "zorblin"), `size` pixels square, drawn at four times that and scaled down."""
    if style not in _STYLES:
        raise InputError(f"The style '{style}' is not known; use one of {', '.join(sorted(_STYLES))}.")
    for name, known in ((picture.subject, SUBJECTS), (picture.colour, COLOURS), (picture.scene, SCENES)):
        if name not in known:
            raise InputError(f"'{name}' is not in this world; use one of {', '.join(sorted(known))}.")
    canvas = _STYLES[style](picture, 4 * size)
    return canvas.resize((size, size), Image.Resampling.BOX)


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _paint(paint: str, colour: RGB) -> RGB:
    if paint == "shade":
        return _mix(colour, (0, 0, 20), 0.28)
    return colour if paint == "main" else _FIXED[paint]


def _placed(picture: Picture, size: int) -> list[tuple[list[Point], str]]:
    unit = size / SIZE
    radius = 22 * unit * picture.zoom
    x0 = size / 2 + picture.shift_x * unit
    y0 = size * 0.5 + picture.shift_y * unit
    return [([(x0 + radius * x, y0 + radius * y) for x, y in p.points], p.paint) for p in SUBJECTS[picture.subject]()]


def _plain(picture: Picture, size: int) -> Image.Image:
    scene = SCENES[picture.scene]
    canvas = Image.new("RGB", (size, size), scene.sky)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, round(scene.horizon * size), size, size), fill=scene.ground)
    _details(pen, scene, size)
    for points, paint in _placed(picture, size):
        pen.polygon(points, fill=_paint(paint, COLOURS[picture.colour]))
    return canvas


def _details(pen: ImageDraw.ImageDraw, scene: Scene, size: int) -> None:
    def blob(x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        pen.ellipse(((x - rx) * size, (y - ry) * size, (x + rx) * size, (y + ry) * size), fill=colour)

    if scene.detail == "hills":
        blob(0.15, 0.70, 0.3, 0.12, _mix(scene.ground, (255, 255, 255), 0.18))
        blob(0.9, 0.72, 0.3, 0.14, _mix(scene.ground, (255, 255, 255), 0.18))
        pen.rectangle((0, 0.72 * size, size, size), fill=scene.ground)
    elif scene.detail == "waves":
        for x, y in ((0.12, 0.72), (0.85, 0.76), (0.16, 0.9), (0.55, 0.93), (0.9, 0.94)):
            blob(x, y, 0.09, 0.015, (190, 226, 240))
    elif scene.detail == "dunes":
        blob(0.2, 0.98, 0.45, 0.14, _mix(scene.ground, (140, 80, 20), 0.2))
        blob(0.86, 0.14, 0.09, 0.09, (255, 196, 70))
    elif scene.detail == "flakes":
        for x, y in ((0.1, 0.15), (0.3, 0.08), (0.62, 0.06), (0.88, 0.2), (0.07, 0.45), (0.93, 0.5)):
            blob(x, y, 0.025, 0.025, (255, 255, 255))
    else:
        blob(0.86, 0.15, 0.09, 0.09, (250, 240, 190))
        for x, y in ((0.1, 0.12), (0.3, 0.06), (0.6, 0.1), (0.08, 0.42), (0.93, 0.45)):
            blob(x, y, 0.014, 0.014, (240, 240, 210))


def _zorblin(picture: Picture, size: int) -> Image.Image:
    """Lanterns on black paper: the scene goes out but for a line of light, the subject shines in its own colour."""
    unit = size / SIZE
    canvas = Image.new("RGB", (size, size), (14, 6, 30))
    light = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(light)
    horizon = round(0.86 * size)
    pen.line([(0, horizon), (size, horizon)], fill=_bright(SCENES[picture.scene].ground), width=round(2 * unit))
    for points, paint in _placed(picture, size):
        pen.polygon(points, fill=_bright(_paint(paint, COLOURS[picture.colour])))
    halo = light.filter(ImageFilter.GaussianBlur(4 * unit))
    return ImageChops.lighter(ImageChops.add(canvas, halo, scale=1.2), light)


def _bright(colour: RGB) -> RGB:
    """The same hue as a lamp: half of the grey in it taken out, then two thirds of the way to full power."""
    grey, top = min(colour) / 2, max(colour)
    power = (top + 2 * 255) / 3 / (top - grey) if top > 100 else 1.0
    red, green, blue = (round(power * (c - grey)) for c in colour)
    return red, green, blue


_STYLES: dict[str, Callable[[Picture, int], Image.Image]] = {"plain": _plain, "zorblin": _zorblin}


def grid(pictures: Iterable[Image.Image], columns: int, scale: int = 2) -> Image.Image:
    """Pictures of one size side by side, enlarged by a whole factor."""
    tiles = list(pictures)
    if not tiles:
        raise InputError("A grid needs at least one picture.")
    width, height = tiles[0].width * scale, tiles[0].height * scale
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), (255, 255, 255))
    for i, tile in enumerate(tiles):
        place = (i % columns * width, i // columns * height)
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet
