"""The shipped workflows as files: a thumbnail, a note, titled groups that hold their nodes, nothing over anything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TITLE = 30  # pixels of a node's title bar, above its position
THUMBNAIL = 60_000  # bytes, at most
Box = tuple[float, float, float, float]  # left, top, right, bottom


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def saved(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def node_box(node: dict[str, Any]) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def group_box(group: dict[str, Any]) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def apart(one: Box, other: Box) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def within(inner: Box, outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def test_the_thumbnail_is_small(name: str) -> None:
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size <= THUMBNAIL
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and 600 <= picture.width <= 1000


def test_nothing_is_null_but_links(saved: dict[str, Any]) -> None:
    """The oldest front ends show a long alert for a slot_index of null."""

    def nulls(value: Any) -> set[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = {key for key, each in value.items() if each is None} if isinstance(value, dict) else set()
        return own.union(*map(nulls, inner))

    assert nulls(saved) <= {"link", "links"}


def test_a_note_explains_it_and_the_format_is_the_one_of_all_hosts(saved: dict[str, Any]) -> None:
    (note,) = [node for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    assert text.startswith("## ") and 200 < len(text) < 1000
    assert saved["version"] == 0.4 and "definitions" not in saved


def test_nothing_lies_over_anything(saved: dict[str, Any]) -> None:
    nodes = [(node["type"], node_box(node)) for node in saved["nodes"]]
    groups = [(group["title"], group_box(group)) for group in saved["groups"]]
    assert groups and all(title for title, _ in groups)
    for boxes in (nodes, groups):
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            assert apart(a, b), f"{one} and {other} overlap"
    for kind, box in nodes:
        inside = [within(box, outer) for _, outer in groups]
        assert any(inside) or kind == "MarkdownNote", f"{kind} is in no group"
        assert sum(inside) == sum(not apart(box, outer) for _, outer in groups), f"{kind} sticks out of its group"
