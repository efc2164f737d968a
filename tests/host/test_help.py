"""Every socket explains itself, in a tooltip and on the node's help page, which tells the truth about its values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .discovery import PACK
from .server import Server

DOCS = PACK / "web" / "docs"
UNBOUNDED = 10_000  # a limit above it only keeps the machine from harm: the page says "or more"
# combos whose options are files and folders of whoever reads the page, or long lists of the host
NOT_LISTED = {
    ("TriLoRADataset", "folder"),
    ("TriLoRADatasetOptions", "masks"),
    ("LoadTriLoRA", "lora_name"),
    ("TriLoRAGrid", "sampler_name"),
    ("TriLoRAGrid", "scheduler"),
}

Inputs = dict[str, tuple[Any, bool]]  # specification, optional


@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in server.client.object_info().items() if node["category"].startswith("TriLoRA")}


def inputs_of(node: dict[str, Any]) -> Inputs:
    groups = ((group, node["input"].get(group, {})) for group in ("required", "optional"))
    return {name: (spec, group == "optional") for group, specs in groups for name, spec in specs.items()}


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = re.search(rf"^## {heading}\n\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    lines = section[1].splitlines()[2:] if section else []
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def number(value: float) -> str:
    return f"{value:.8f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def wanted(node: str, name: str, spec: Any, optional: bool) -> list[str]:
    """What the cell of values must hold, whatever else it says: the range and the default, or the socket's type."""
    kind, facts = spec[0], spec[1] if len(spec) > 1 else {}
    if (node, name) in NOT_LISTED:
        return []
    if kind in ("INT", "FLOAT"):
        least, most = number(facts["min"]), number(facts["max"])
        span = f"{least} or more" if facts["max"] >= UNBOUNDED else f"{least} to {most}"
        return [span, f"default {number(facts['default'])}"]
    if kind == "BOOLEAN":
        return ["on or off", f"default {'on' if facts['default'] else 'off'}"]
    if kind == "COMBO" or isinstance(kind, list):
        options = facts["options"] if kind == "COMBO" else kind
        return [*(f"`{option}`" for option in options), f"default `{facts['default']}`"]
    if kind == "STRING":
        first, *more = (facts.get("default") or "").splitlines() or [""]
        return ["text", f"default `{first}`" if first else "default empty", *(f"`{line}`" for line in more)]
    return [kind, *(["optional"] if optional else [])]


def test_every_socket_has_a_tooltip(nodes: dict[str, dict[str, Any]]) -> None:
    for node, schema in nodes.items():
        assert schema["description"], f"{node} has no description"
        for name, (spec, _) in inputs_of(schema).items():
            assert len(spec) > 1 and spec[1].get("tooltip"), f"{node}.{name} has no tooltip"
        tips = schema.get("output_tooltips") or []
        assert len(tips) == len(schema["output_name"]) and all(tips), f"{node} has outputs without a tooltip"


def test_every_node_has_a_page_of_its_inputs_and_outputs(nodes: dict[str, dict[str, Any]]) -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == set(nodes)
    problems = []
    for node, schema in nodes.items():
        page = DOCS / f"{node}.md"
        inputs = [name for row in rows(page, "Inputs") for name in named(row[0])]
        if inputs != list(inputs_of(schema)):
            problems.append(f"{page.name} has the inputs {inputs}, the node {list(inputs_of(schema))}")
        outputs = [name for row in rows(page, "Outputs") for name in named(row[0])]
        if outputs != schema["output_name"]:
            problems.append(f"{page.name} has the outputs {outputs}, the node {schema['output_name']}")
    assert not problems, "\n".join(problems)


def test_pages_tell_the_values_of_the_schema(nodes: dict[str, dict[str, Any]]) -> None:
    problems = []
    for node, schema in nodes.items():
        inputs = inputs_of(schema)
        for row in rows(DOCS / f"{node}.md", "Inputs"):
            assert len(row) == 4 and row[1], f"{node}.md: {row[0]} wants 4 cells, the second of them filled"
            for name in named(row[0]):
                spec, optional = inputs[name]
                lacking = [part for part in wanted(node, name, spec, optional) if part not in row[2]]
                problems += [f"{node}.md: the values of {name} lack: {part}" for part in lacking]
    assert not problems, "\n".join(problems)
