"""The translations of the nodes: complete in each language, and of a form that every front end reads.

Whether they fit the nodes is tested against a host in tests/host/test_locales.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[1]
LOCALES = PACK / "locales"
LANGUAGES = sorted(folder.name for folder in LOCALES.iterdir())
SCRIPT = {"zh": re.compile(r"[\u4e00-\u9fff]"), "ja": re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")}
# names that are written so in Chinese and Japanese too
AS_THEY_ARE = re.compile(r"(CLIP|VAE|CFG|EMA|LoRA|TriLoRA|Latent|Alpha|Hook|Min-SNR gamma)( [ABCD])?")


# t("…") of web/lib/language.js, or "…" + "…"
CALL = re.compile(r'(?<![\w.])t\(\s*((?:"(?:[^"\\]|\\.)*"[\s+]*)*)')
PLACE = re.compile(r"\{\w+\}")


def shown_texts() -> set[str]:
    """Every English text that the panel and the cards ask for."""
    found = set()
    for path in sorted((PACK / "web").rglob("*.js")):
        code = path.read_text(encoding="utf-8").replace("export function t(text", "")
        for call in CALL.finditer(code):
            assert call[1], f"{path.name}: t() of no plain text: {code[call.start() :][:60]}"
            found.add("".join(map(json.loads, re.findall(r'"(?:[^"\\]|\\.)*"', call[1]))))
    return found


def page_texts(language: str) -> dict[str, str]:
    return json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))["trilora"]


def texts(language: str) -> dict[str, str]:
    """All texts of a language by their dotted key."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield key, value
        else:
            for name, inner in value.items():
                yield from walk(inner, f"{key}.{name}" if key else name)

    return dict(walk(json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")), ""))


def test_chinese_and_japanese_are_there() -> None:
    assert LANGUAGES == ["ja", "zh"]


def test_languages_have_the_same_keys() -> None:
    first, second = (set(texts(language)) for language in LANGUAGES)
    assert first == second, f"only in one of {LANGUAGES}: {sorted(first ^ second)}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_translated(language: str) -> None:
    left = {key: text for key, text in texts(language).items() if not SCRIPT[language].search(text)}
    assert all(AS_THEY_ARE.fullmatch(text) for text in left.values()), left


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_what_the_front_end_would_read_as_a_formula(language: str) -> None:
    """vue-i18n reads braces, @ and | in a text; some places of the front end escape them, others show them raw."""
    assert {key: text for key, text in texts(language).items() if set(text) & set("{}@|")} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_panel_and_the_cards_is_translated(language: str) -> None:
    wanted, found = shown_texts(), page_texts(language)
    assert len(wanted) > 90 and wanted == set(found), sorted(wanted ^ set(found))
    for english, text in found.items():
        assert sorted(PLACE.findall(english)) == sorted(PLACE.findall(text)), english
        assert SCRIPT[language].search(text) or not re.search("[a-z]{2}", PLACE.sub("", english)), english
