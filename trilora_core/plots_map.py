"""The map of a model: each block a box, laid out as the model is, coloured by its share of an adapter's energy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .anatomy import KIND_NAMES, Anatomy, LayerFacts, Place
from .canvas import INK, Canvas, Frame

__all__ = ["KIND_COLOURS", "KIND_LABELS", "draw_map", "kind_entries", "shade"]

KIND_COLOURS = {
    "self": "#1f4e9c",
    "cross": "#c2571a",
    "joint": "#1f4e9c",
    "ff": "#2f8f6b",
    "proj": "#a08a1f",
    "conv": "#8a4fa3",
    "text": "#c23b6b",
    "other": "#7b8794",
}
KIND_LABELS = {
    "self": "self-attention",
    "cross": "cross-attention",
    "joint": "joint attention",
    "ff": "feed-forward",
    "proj": "ways in and out",
    "conv": "convolutions",
    "text": "text encoder",
    "other": "other layers",
}
_LIGHT, _DARK = (234, 240, 248), (21, 60, 130)
_UNET = frozenset({"down", "mid", "up"})
_ROW = 12  # blocks of a transformer side by side
_LEAST = (6.0, 4.0)  # size of a map in boxes, at least: few boxes stay small

Box = tuple[float, float, float, str]  # left, top, width, label; boxes are 1 high and 1.35 apart


def draw_map(place: Frame, adapter: Anatomy) -> None:
    """Every block of the model with its share of the energy, and below it a strip of its kinds of layers."""
    groups: dict[Place, list[LayerFacts]] = {}
    for layer in adapter.layers:
        groups.setdefault(_box_of(layer.place), []).append(layer)
    boxes = _unet_boxes(adapter) if any(key.part in _UNET for key in groups) else _row_boxes(groups)
    boxes |= _text_boxes(groups, boxes)
    whole = adapter.energy or 1.0
    shares = {key: sum(layer.energy for layer in layers) / whole for key, layers in groups.items()}
    top = max(shares.values()) or 1.0
    right = max(_LEAST[0], *(left + width for left, _, width, _ in boxes.values()))
    low = max(_LEAST[1], *(y + 1.0 for _, y, _, _ in boxes.values()))
    across, down = place.width / right, min(place.height / low, place.width / right)
    for key, (x, y, width, label) in boxes.items():
        spot = Frame(place.canvas, place.left + x * across, place.top + y * down, width * across, down)
        if key in shares:
            _draw_box(spot, label, shares[key], top, groups[key])
        else:  # a block of the model without a layer of the adapter
            spot.canvas.box(spot.left, spot.top, spot.width, spot.height, "#f3f4f6", "#dde1e6")
            middle = (spot.left + spot.width / 2, spot.top + spot.height / 2)
            spot.canvas.text(*middle, label, _size(spot), "#a7b0ba", "mm")
    if any(key.part in _UNET for key in boxes):
        _draw_skips(place.canvas, place, boxes, across, down)


def kind_entries(found: Sequence[Anatomy]) -> list[tuple[str, str]]:
    """(colour, name) of the kinds of layers; of one adapter with the share of its energy."""
    kinds = [kind for kind in KIND_NAMES if any(layer.kind == kind for adapter in found for layer in adapter.layers)]
    shares = found[0].shares(lambda layer: layer.kind)
    alone = len(found) == 1
    return [(KIND_COLOURS[kind], KIND_LABELS[kind] + (f" {shares[kind]:.0%}" if alone else "")) for kind in kinds]


def shade(strength: float) -> str:
    """From near white (0) to dark blue (1), as #rrggbb."""
    root = math.sqrt(max(0.0, min(1.0, strength)))
    return "#" + "".join(f"{round(a + (b - a) * root):02x}" for a, b in zip(_LIGHT, _DARK, strict=True))


def _box_of(place: Place) -> Place:
    """Text encoders are one box each; everything else has its own."""
    return Place("text", place.block) if place.part == "text" else place


def _unet_boxes(adapter: Anatomy) -> dict[Place, Box]:
    """Down blocks on the left, up blocks on the right, each at the height of its resolution; the middle below."""
    attending = {layer.place for layer in adapter.layers if layer.kind in ("self", "cross")}
    # SD 1.5 has four levels and attends at the first; SDXL has three and does not
    blocks = {layer.place.block for layer in adapter.layers if layer.place.part in ("down", "up")}
    levels = 4 if max(blocks, default=0) > 2 or any(p.part == "down" and p.block == 0 for p in attending) else 3
    boxes: dict[Place, Box] = {}
    for level in range(levels):
        up = levels - 1 - level
        for sub in range(2):
            boxes[Place("down", level, sub)] = (1.15 * sub, 1.35 * level, 1.0, f"down {level}.{sub}")
        for sub in range(3):
            boxes[Place("up", up, sub)] = (4.6 + 1.15 * sub, 1.35 * level, 1.0, f"up {up}.{sub}")
    boxes[Place("mid", 0)] = (2.6, 1.35 * (levels - 1) + 0.6, 1.5, "mid")
    return boxes


def _row_boxes(groups: dict[Place, list[LayerFacts]]) -> dict[Place, Box]:
    """Transformers: blocks in reading order, each part on rows of its own."""
    boxes: dict[Place, Box] = {}
    row = 0
    for part in dict.fromkeys(place.part for place in groups if place.part != "text"):
        places = sorted(place for place in groups if place.part == part)
        for number, place in enumerate(places):
            label = "other" if part == "other" else f"{part} {place.block}"
            boxes[place] = (1.12 * (number % _ROW), 1.3 * (row + number // _ROW), 1.0, label)
        row += -(-len(places) // _ROW)
    return boxes


def _text_boxes(groups: dict[Place, list[LayerFacts]], others: dict[Place, Box]) -> dict[Place, Box]:
    """Text encoders in the middle of a U-Net, or on a row of their own."""
    encoders = sorted(place.block for place in groups if place.part == "text")
    unet = any(place.part == "mid" for place in others)
    top = 0.0 if unet or not others else max(y for _, y, _, _ in others.values()) + 1.3
    return {
        Place("text", encoder): (
            2.6 if unet else 1.7 * index,
            top + (1.15 * index if unet else 0.0),
            1.5,
            f"text {encoder}" if len(encoders) > 1 else "text",
        )
        for index, encoder in enumerate(encoders)
    }


def _size(spot: Frame) -> float:
    return min(14.0, spot.width / 5.4, spot.height / 3.6)


def _draw_box(spot: Frame, label: str, share: float, top: float, layers: Sequence[LayerFacts]) -> None:
    canvas, strength = spot.canvas, share / top
    canvas.box(spot.left, spot.top, spot.width, spot.height, shade(strength))
    ink = "white" if strength > 0.27 else INK
    middle = spot.left + spot.width / 2
    canvas.text(middle, spot.top + 0.25 * spot.height, label, _size(spot), ink, "mm")
    canvas.text(middle, spot.top + 0.55 * spot.height, f"{100 * share:.1f}%", 1.15 * _size(spot), ink, "mm", True)
    whole = sum(layer.energy for layer in layers) or 1.0
    at, y, height = spot.left + 0.06 * spot.width, spot.top + 0.79 * spot.height, 0.13 * spot.height
    canvas.box(at - 1, y - 1, 0.88 * spot.width + 2, height + 2, "white")
    for kind in KIND_NAMES:
        length = 0.88 * spot.width * sum(layer.energy for layer in layers if layer.kind == kind) / whole
        canvas.box(at, y, length, height, KIND_COLOURS[kind])
        at += length


def _draw_skips(canvas: Canvas, place: Frame, boxes: dict[Place, Box], across: float, down: float) -> None:
    """The connections from each level's down blocks to its up blocks."""
    heights = {y for key, (_, y, _, _) in boxes.items() if key.part == "down"}
    taken = [(y, y + 1.0) for key, (_, y, _, _) in boxes.items() if key.part == "text"]
    for y in heights:
        if not any(low < y + 0.5 < high for low, high in taken):
            ends = [(place.left + x * across, place.top + (y + 0.5) * down) for x in (2.2, 4.55)]
            canvas.line(ends, "#c3ccd7", 1.2, dash=4)
