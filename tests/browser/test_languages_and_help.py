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

from .conftest import ready

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


# What the websocket does with a message of the server.
TELL = """node => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('trilora.run', {detail: {
    run: 'r', node, workflow: null, name: 'x', state: 'training', text: '', step: 7, steps: 1000, eta: 100,
    seconds_per_step: 0.1, memory: null, can_preview: true, ended: null, problem: '', file: '',
    points: [1, 2, 3, 4, 5, 6, 7].map(step => [step, 1 / step, 1e-4]), measures: [], spectra: [], previews: []}}))"""


@pytest.fixture(scope="module", params=list(BROWSER_LANGUAGES))
def page(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """The front end in a language, ready, with its name as `language`."""
    if CHROMIUM is None:
        pytest.skip("NOT TESTED IN A BROWSER: no Chromium was found; install chromium or set CHROMIUM_PATH")
    # else the templates open at the very first visit and cover the canvas
    server.client.post("/settings/Comfy.TutorialCompleted", True)
    server.client.post("/settings/Comfy.VueNodes.Enabled", False)  # another file's tests may have left them on
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(locale=BROWSER_LANGUAGES[request.param], viewport={"width": 1400, "height": 900})
        tab.set_default_timeout(90_000)
        tab.language = request.param
        tab.goto(server.client.url, timeout=120_000)
        ready(tab)
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
    page.wait_for_function(f"window.app.graph._nodes.length === {len(saved['nodes'])}", timeout=90_000)
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


def test_panel_and_cards_speak_the_language(page: Any) -> None:
    words = json.loads((PACK / "locales" / page.language / "main.json").read_text(encoding="utf-8"))["trilora"]
    page.evaluate(ALONE, "ApplyTriLoRA")
    page.locator(".trilora-card").get_by_text(words["Spectrum: after a run"]).wait_for(timeout=90_000)
    page.evaluate(ALONE, "TrainTriLoRA")
    panel = page.locator(".tl-panel")
    panel.get_by_text(words["No run yet: queue the graph."]).wait_for(timeout=90_000)
    page.evaluate(TELL, page.evaluate("String(window.app.graph._nodes[0].id)"))
    told = words["Training: step {step} of {steps}"].format(step=7, steps="1,000")
    panel.get_by_text(told).wait_for(timeout=90_000)
    assert words["{time} left"].format(time="1 min 40 s") in panel.inner_text()
    for name in ("Stop and keep", "Save now", "Preview now"):
        assert page.get_by_role("button", name=words[name]).count() == 1
    label = words["Training loss, smoothed: from {from} at step {first} to {to} at step {last}"]
    assert panel.locator(".tl-canvas").first.get_attribute("aria-label").startswith(label.split("{")[0])


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
    button.click(timeout=90_000)
    picture = page.locator(".node-help-content img").first
    picture.wait_for(state="attached", timeout=90_000)
    page.wait_for_function("document.querySelector('.node-help-content img').naturalWidth > 0", timeout=90_000)
    assert picture.get_attribute("src").endswith("/docs/TrainTriLoRA.webp")
    assert page.locator(".node-help-content table").count() >= 2
