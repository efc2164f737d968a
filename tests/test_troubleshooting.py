"""The page for troubles quotes messages that the code has, and leaves out none of those that people meet most."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HOLE = "\0"  # what an f-string puts in
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
# beginnings that a newcomer is likely to meet
OFTEN = (
    "there is no folder of pictures yet",
    "has no caption",
    "cannot be read",
    "out of memory on",
    "in a row without a usable gradient",
    "this model is a",
    "do not fit this model",
    "needs the package",
    "belongs to a run with other options",
    "is a pickle",
    "is not a plain LoRA",
    "is damaged or cut off",
    "is not in models/loras",
    "the adapter is for",
    "adapters of different models cannot be merged",
    "this needs",
)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return HOLE


@cache
def messages() -> tuple[str, ...]:
    """Every text in the code but docstrings, with holes where values go."""
    found = []
    for folder in ("trilora_core", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            found += [
                _text(node)
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in prose
            ]
    return tuple(found)


def occurs(quoted: str) -> bool:
    """Whether one message has the pieces between the marks … of a quotation, in order, with holes for the marks."""
    pieces = quoted.split("…")
    pattern = f".*?{HOLE}.*?".join(map(re.escape, pieces))
    likely = (message for message in messages() if all(piece in message for piece in pieces))
    return any(re.search(pattern, message, re.DOTALL) for message in likely)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_code(quoted: str) -> None:
    assert occurs(quoted), f"no text in trilora_core/ or nodes/ reads: {quoted}"


def test_what_is_not_in_the_code_is_not_found() -> None:
    assert occurs("optimizer … needs the package …")
    assert not occurs("optimizer needs the package")
    assert not occurs("the package … needs optimizer …")


@pytest.mark.parametrize("often", OFTEN)
def test_what_people_meet_is_there(often: str) -> None:
    assert any(often in quoted for quoted in QUOTED)


def test_each_is_quoted_once_and_sections_are_linked() -> None:
    assert len(set(QUOTED)) == len(QUOTED) > 50
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    links = re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE)
    assert links == [(title, re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")) for title in titles]
