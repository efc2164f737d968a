"""The shipped workflows in the host's own front end: no unknown node, and the graph that the tests queue."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.host.discovery import PACK
from tests.host.server import Server
from tests.host.workflow import load_workflow

NAMES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_whole_and_queues_the_same_graph(page: Any, server: Server, name: str) -> None:
    saved = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("graph => window.app.loadGraphData(graph)", saved)
    page.wait_for_function(f"window.app.graph._nodes.length === {len(saved['nodes'])}", timeout=60_000)
    unknown = page.evaluate(
        "() => window.app.graph._nodes.map(n => n.type).filter(t => !(t in window.LiteGraph.registered_node_types))"
    )
    assert unknown == []
    assert page.get_by_text("Invalid workflow").count() == 0, "an alert of the front end"
    wanted = load_workflow(name, server.client.object_info())
    assert _queued(page) == wanted
    too_small = page.evaluate(
        """() => window.app.graph._nodes
            .filter(n => [0, 1].some(side => n.size[side] + 1 < n.computeSize()[side]))
            .map(n => `${n.type}: ${n.size} < ${n.computeSize()}`)"""
    )
    assert too_small == []
    again = page.evaluate(
        "async () => { const saved = window.app.graph.serialize(); "
        "await window.app.loadGraphData(JSON.parse(JSON.stringify(saved))); return saved; }"
    )
    assert len(again["nodes"]) == len(saved["nodes"]) and len(again["groups"]) == len(saved["groups"])
    assert _queued(page) == wanted, "saved once more and opened, it queues something else"


def _queued(page: Any) -> dict[str, Any]:
    """What the front end would send to the server."""
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    return {
        node: {"class_type": content["class_type"], "inputs": content["inputs"]} for node, content in queued.items()
    }
