"""The help pages have one form, and a picture each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LARGEST = 40_000  # bytes of a picture
HEAD = "| input | what it does | values | when to change it |"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_form_of_all(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "Inputs" and headings[-1] == "Tips and limits", headings
    assert HEAD in text and text.count(HEAD) == 1
    introduction = text[text.index("\n") : text.index("![")]
    assert len(introduction.split()) >= 15, "say in a few sentences what the node does"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_node(page: Path) -> None:
    """A relative path: the front end puts the pack's own folder before it, GitHub that of the page."""
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [path for _, path in pictures] == [f"{page.stem}.webp"]
    picture = DOCS / f"{page.stem}.webp"
    assert picture.is_file(), f"draw it: .venv/bin/python -m tests.browser.pictures {page.stem}"
    data = picture.read_bytes()
    assert data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) <= LARGEST


def test_no_picture_is_left_over() -> None:
    assert {path.stem for path in DOCS.glob("*.webp")} == {page.stem for page in PAGES}
