"""The nodes in Chinese and Japanese in the host's own front end, and a help page with its picture."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.discovery import PACK
from tests.host.server import Server
from tests.host.workflow import load_workflow

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
# The front end takes the browser's language unless Comfy.Locale is set: nothing has to be stored on the server.
BROWSER_LANGUAGES = {"ja": "ja-JP", "zh": "zh-CN"}
SHOWN = """names => Object.fromEntries(names.map(name => {
    const node = window.LiteGraph.createNode(name);
    const widgets = new Map((node.widgets ?? []).map(widget => [widget.name, widget.label]));
    return [name, {
        title: node.title,
        inputs: Object.fromEntries(node.inputs.map(i => [i.name, widgets.get(i.name) ?? i.localized_name])),
        outputs: node.outputs.map(output => [output.name, output.localized_name]),
    }];
}))"""
ALONE = """type => {
    const graph = window.app.graph;
    graph.clear();
    const node = window.LiteGraph.createNode(type);
    graph.add(node);
    node.pos = [300, 200];
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset = [0, 0];
    window.app.canvas.setDirty(true, true);
    const corner = window.app.canvas.canvas.getBoundingClientRect();
    return [corner.left + 400, corner.top + 185];  // on its title bar
}"""


@pytest.fixture(scope="module", params=list(BROWSER_LANGUAGES))
def page(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """The front end in a language, ready, with its name as `language`."""
    if CHROMIUM is None:
        pytest.skip("NOT TESTED IN A BROWSER: no Chromium was found; install chromium or set CHROMIUM_PATH")
    # else the templates open at the very first visit and cover the canvas
    server.client.post("/settings/Comfy.TutorialCompleted", True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(locale=BROWSER_LANGUAGES[request.param], viewport={"width": 1400, "height": 900})
        tab.language = request.param
        tab.goto(server.client.url, timeout=120_000)
        tab.wait_for_function("window.app && window.app.graph && window.LiteGraph", timeout=120_000)
        tab.wait_for_function("'TrainTriLoRA' in window.LiteGraph.registered_node_types", timeout=120_000)
        yield tab
        browser.close()


def test_nodes_are_shown_in_the_language(page: Any) -> None:
    path = PACK / "locales" / page.language / "nodeDefs.json"
    translation = json.loads(path.read_text(encoding="utf-8"))
    shown = page.evaluate(SHOWN, list(translation))
    for name, texts in translation.items():
        assert shown[name]["title"] == texts["display_name"]
        assert shown[name]["inputs"] == {key: socket["name"] for key, socket in texts["inputs"].items()}, name
        assert [told for _, told in shown[name]["outputs"]] == [
            socket["name"] for socket in texts.get("outputs", {}).values()
        ], name


def test_a_workflow_saved_in_the_language_is_the_same(page: Any, server: Server) -> None:
    """Ids and names stay those of the schema, so that a workflow made in one language runs in every other."""
    saved = json.loads((PACK / "workflows" / "train_style.json").read_text(encoding="utf-8"))
    page.evaluate("graph => window.app.loadGraphData(graph)", saved)
    page.wait_for_function(f"window.app.graph._nodes.length === {len(saved['nodes'])}", timeout=60_000)
    again = page.evaluate("() => window.app.graph.serialize()")
    page.evaluate("graph => window.app.loadGraphData(graph)", again)
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    found = {node: {key: content[key] for key in ("class_type", "inputs")} for node, content in queued.items()}
    assert found == load_workflow("train_style", server.client.object_info())
    kept = {node["id"]: node for node in saved["nodes"]}
    for node in again["nodes"]:
        if node["type"].endswith("TriLoRA") or node["type"].startswith("TriLoRA"):
            old = kept[node["id"]]
            assert node["widgets_values"] == old["widgets_values"]
            assert [socket["name"] for socket in node["outputs"]] == [socket["name"] for socket in old["outputs"]]


def test_a_help_page_shows_its_picture(page: Any) -> None:
    x, y = page.evaluate(ALONE, "TrainTriLoRA")
    button = page.locator("[data-testid=info-button]").first
    for _ in range(20):  # a slow machine takes a while until the node lies where it can be clicked
        page.wait_for_timeout(1000)
        if button.count():
            break
        page.mouse.move(x, y)
        page.mouse.down()
        page.wait_for_timeout(200)
        page.mouse.up()
    button.click(timeout=30_000)
    picture = page.locator(".node-help-content img").first
    picture.wait_for(state="attached", timeout=30_000)
    page.wait_for_function("document.querySelector('.node-help-content img').naturalWidth > 0", timeout=30_000)
    assert picture.get_attribute("src").endswith("/docs/TrainTriLoRA.webp")
    assert page.locator(".node-help-content table").count() >= 2
