"""The translations against the nodes that the host offers: nothing missing, nothing left over, terms kept."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from .discovery import PACK
from .server import Server

LANGUAGES = ("ja", "zh")


@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in server.client.object_info().items() if node["category"].startswith("TriLoRA")}


@pytest.fixture(scope="module", params=LANGUAGES)
def translation(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads((PACK / "locales" / request.param / "nodeDefs.json").read_text(encoding="utf-8"))


def inputs_of(node: dict[str, Any]) -> dict[str, Any]:
    return node["input"].get("required", {}) | node["input"].get("optional", {})


def options_of(spec: Any) -> list[str]:
    options = spec[1].get("options", []) if spec[0] == "COMBO" else spec[0] if isinstance(spec[0], list) else []
    return [option for option in options if isinstance(option, str)]


def keys_of(nodes: dict[str, dict[str, Any]]) -> set[str]:
    """The keys that the front end asks for."""
    keys = set()
    for node, schema in nodes.items():
        keys |= {f"{node}.display_name", f"{node}.description"}
        sockets = [*(f"inputs.{name}" for name in inputs_of(schema))]
        sockets += [f"outputs.{index}" for index in range(len(schema["output_name"]))]
        keys |= {f"{node}.{socket}.{text}" for socket in sockets for text in ("name", "tooltip")}
    return keys


def keys_in(value: Any, key: str = "") -> set[str]:
    if isinstance(value, str):
        return {key}
    return {found for name, inner in value.items() for found in keys_in(inner, f"{key}.{name}" if key else name)}


def test_every_text_is_translated_and_none_is_left_over(nodes: dict[str, Any], translation: dict[str, Any]) -> None:
    wanted, found = keys_of(nodes), keys_in(translation)
    missing, extra = "\n".join(sorted(wanted - found)), "\n".join(sorted(found - wanted))
    assert wanted == found, f"locales/*/nodeDefs.json lack:\n{missing}\nand have for nothing:\n{extra}"


def test_options_are_named_as_they_are(nodes: dict[str, Any], translation: dict[str, Any]) -> None:
    """Values of a combo stay English on the node, so a tooltip that explains them must name them so."""
    problems = []
    for node, schema in nodes.items():
        for name, spec in inputs_of(schema).items():
            told = translation[node]["inputs"][name]["tooltip"]
            explained = [option for option in options_of(spec) if f"{option}:" in spec[1]["tooltip"]]
            problems += [f"{node}.{name}: {option}" for option in explained if option not in told]
    assert not problems, problems


def test_numbers_are_the_same(nodes: dict[str, Any], translation: dict[str, Any]) -> None:
    """What is usual, and where a limit lies, is no matter of language: numbers with a point are all there."""
    problems = []
    for node, schema in nodes.items():
        for name, spec in inputs_of(schema).items():
            numbers = set(re.findall(r"\d+\.\d+", spec[1]["tooltip"]))
            told = translation[node]["inputs"][name]["tooltip"]
            problems += [f"{node}.{name}: {value}" for value in sorted(numbers) if value not in told]
    assert not problems, problems


def test_the_host_serves_them(server: Server, translation: dict[str, Any]) -> None:
    served = server.client.get("/i18n")
    assert translation in [served[language]["nodeDefs"] for language in LANGUAGES]
