"""The front end of a host in headless Chromium, shared by the tests of a module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.server import Server

CHROMIUM = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
# the page opens a workflow of its own at the start: what is loaded before that is gone with it
READY = "window.LiteGraph && window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow"
# Nothing lies over the graph, and what another module has chosen is forgotten.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.ColorPalette": "dark",
}
# the page asks for its node definitions after it has drawn itself
DEFINED = "'TrainTriLoRA' in window.LiteGraph.registered_node_types"


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    """The front end of one host, ready; `page.complaints` is the list of what the console said of errors."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("NOT TESTED IN A BROWSER: no Chromium was found; install chromium or set CHROMIUM_PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(viewport={"width": 1500, "height": 1000})
        tab.set_default_timeout(90_000)  # a busy machine
        tab.complaints = []
        tab.on("pageerror", lambda error: tab.complaints.append(f"{error}\n{error.stack or ''}"))
        tab.on("console", lambda said: tab.complaints.append(_told(said)) if said.type == "error" else None)
        server.client.post("/settings", SETTINGS)
        tab.goto(server.client.url, timeout=120_000)
        ready(tab)
        yield tab
        browser.close()


def _told(said: Any) -> str:
    return f"{said.text} ({said.location.get('url', '')})"


def ready(page: Any) -> None:
    """Wait until the front end and its node definitions are there."""
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_function(DEFINED, timeout=120_000)


NODES_2 = (0, 14)  # the oldest ComfyUI tested whose Nodes 2.0 shows elements of a page in nodes


def needs_nodes_2(server: Server, vue: bool) -> None:
    """Skip Nodes 2.0 where it was only tried out, and showed no element of any pack."""
    if vue and server.host.version[:2] < NODES_2:
        pytest.skip(f"NOT TESTED: Nodes 2.0 of ComfyUI {server.host.name} shows no elements of a page in nodes")
