"""The pictures of the help pages: every node of the pack, as the front end of a real ComfyUI draws it.

    .venv/bin/python -m tests.browser.pictures [NODE …]

Run it from the root of the clone whenever nodes change: it starts the newest ComfyUI that the tests find, and writes
web/docs/<NodeId>.webp for every node of the pack, or for those named.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.adapters import make_adapter
from tests.host.discovery import HOW_TO_ENABLE, PACK, find_hosts
from tests.host.server import run_server
from trilora_core.fileformat import write_adapter

from .conftest import READY

DOCS = PACK / "web" / "docs"
WIDTH = 480  # pixels of a picture
LARGEST = 40_000  # bytes of a picture
NODE_WIDTH = 360  # of a node on the canvas
MARGIN, TITLE = 10, 30
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
# only the canvas and the widgets of the node, whatever else the page has
ONLY_THE_NODE = "body * {visibility: hidden} #graph-canvas, .dom-widget, .dom-widget * {visibility: visible}"
DRAW = """([type, width, margin, title]) => {
    const graph = window.app.graph;
    for (const old of [...graph._nodes]) graph.remove(old);  // clear() would give its id, and values, to the next node
    const node = window.LiteGraph.createNode(type);
    graph.add(node);
    node.pos = [0, 0];
    const least = node.computeSize();
    node.setSize([Math.max(width, least[0]), Math.max(least[1], node.size[1])]);
    window.app.canvas.deselectAll?.();
    window.app.canvas.show_info = false;
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset = [margin, margin + title];
}"""
SIZE = "() => Array.from(window.app.graph._nodes[0].size)"


def main(chosen: list[str]) -> int:
    """Draw the nodes that are named, all by default; 1 when there is no host or no Chromium to draw them in."""
    hosts, chromium = find_hosts(), os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if not hosts or chromium is None:
        print(HOW_TO_ENABLE if chromium else "no Chromium was found; install chromium or set CHROMIUM_PATH")
        return 1
    with tempfile.TemporaryDirectory() as base, run_server(hosts[0], Path(base)) as server:
        _example_adapter(server.loras / "trilora" / "my_style.safetensors")
        info = server.client.object_info()
        nodes = sorted(name for name, node in info.items() if node["category"].startswith("TriLoRA"))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=QUIET)
            tab = browser.new_page(viewport={"width": 900, "height": 1800}, device_scale_factor=2, locale="en-US")
            _open(tab, server.client.url, nodes)
            for name in chosen or nodes:
                size = _write(DOCS / f"{name}.webp", _shot(tab, name))
                print(f"{name}: {size / 1000:.0f} kB")
            browser.close()
    return 0


def _example_adapter(path: Path) -> None:
    """One small file, so that the lists of adapters are not empty."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_adapter(path, make_adapter([block + part for part in "qkv"], size=320, ss_output_name="my_style"))


def _open(tab: Any, url: str, nodes: list[str]) -> None:
    tab.goto(url, timeout=120_000)
    tab.wait_for_function(READY, timeout=120_000)
    tab.wait_for_function(
        "names => names.every(name => name in window.LiteGraph.registered_node_types)", arg=nodes, timeout=120_000
    )
    for badge in ("NodeSource", "NodeId", "NodeLifeCycle"):
        name = f"Comfy.NodeBadge.{badge}BadgeMode"
        tab.evaluate("name => window.app.extensionManager.setting.set(name, 'None')", name)
    tab.add_style_tag(content=ONLY_THE_NODE)


def _shot(tab: Any, name: str) -> Image.Image:
    """The node alone, its title bar and a margin around it."""
    tab.evaluate(DRAW, [name, NODE_WIDTH, MARGIN, TITLE])
    for _ in range(5):  # widgets of the page take their places at the next drawing, some after an answer of the server
        tab.evaluate("() => window.app.canvas.setDirty(true, true)")
        tab.wait_for_timeout(300)
    width, height = tab.evaluate(SIZE)
    clip = {"x": 0, "y": 0, "width": width + 2 * MARGIN, "height": height + TITLE + 2 * MARGIN}
    return Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB")


def _write(path: Path, picture: Image.Image) -> int:
    """The picture at its width, in as many bytes as are allowed; returns their number."""
    small = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    for quality in range(85, 20, -5):
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= LARGEST:
            break
    path.write_bytes(buffer.getvalue())
    return buffer.tell()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
