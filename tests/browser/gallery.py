"""The picture of a training for the README: `.venv/bin/python -m tests.browser.gallery`, from the root of the clone.

The shipped workflow train_style in the newest ComfyUI that the tests find, after a run on the tests' own small model.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.host.discovery import HOW_TO_ENABLE, PACK, find_hosts
from tests.host.server import CHECKPOINT, PICTURES, Server, run_server

from .conftest import QUIET, SETTINGS, ready
from .pictures import ONLY_THE_NODE
from .test_train_panel import SIDE, SMALL

OUTPUT = PACK / "docs" / "training.webp"
VIEW = {"width": 900, "height": 1000}
MARGIN, TITLE = 10, 30
TRAIN = {"name": "my_style", "steps": 200, "rank": 8, "learning_rate": 0.003}
WATCH = "() => { const node = window.app.graph._nodes.find(node => node.type === 'TriLoRAMonitorOptions');" + (
    " const set = (name, value) => { node.widgets.find(widget => widget.name === name).value = value; };"
    " set('preview_every', 0); set('preview_prompts', ''); set('spectrum_every', 5); set('validate_every', 10); }"
)
# the node alone, at the corner of the page; its size
SHOW = """([margin, title]) => {
  const {canvas, graph} = window.app;
  const node = graph._nodes.find(each => each.type === 'TrainTriLoRA');
  for (const other of [...graph._nodes]) if (other !== node) graph.remove(other);
  graph._groups.length = 0;
  canvas.show_info = false;
  canvas.ds.scale = 1;
  canvas.ds.offset = [margin - node.pos[0], margin + title - node.pos[1]];
  canvas.deselectAll?.();
  canvas.setDirty(true, true);
  return Array.from(node.size);
}"""


def main() -> int:
    """Draw it; 1 when there is no host or no Chromium to draw it in."""
    hosts, chromium = find_hosts(), os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if not hosts or chromium is None:
        print(HOW_TO_ENABLE if chromium else "no Chromium was found; install chromium or set CHROMIUM_PATH")
        return 1
    with tempfile.TemporaryDirectory() as base, run_server(hosts[0], Path(base)) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=QUIET)
        server.client.post("/settings", SETTINGS)
        tab = browser.new_page(viewport=VIEW, device_scale_factor=1.5, locale="en-US")
        tab.goto(server.client.url, timeout=120_000)
        ready(tab)
        picture = _run(tab, server)
        browser.close()
    picture.save(OUTPUT, "WEBP", quality=80, method=6)
    print(f"{OUTPUT.relative_to(PACK)}: {OUTPUT.stat().st_size / 1000:.0f} kB")
    return 0


def _run(tab: Any, server: Server) -> Image.Image:
    """The node after its run, its loss beside its spectrum."""
    saved = json.loads((PACK / "workflows" / "train_style.json").read_text(encoding="utf-8"))
    chosen = {"CheckpointLoaderSimple": CHECKPOINT, "TriLoRADataset": PICTURES}
    for node in saved["nodes"]:
        if node["type"] in chosen:
            node["widgets_values"][0] = chosen[node["type"]]
    tab.evaluate("graph => window.app.loadGraphData(graph)", saved)
    tab.evaluate(SMALL, [CHECKPOINT, PICTURES, SIDE, TRAIN])
    tab.evaluate(WATCH)
    with tab.expect_response("**/api/prompt") as answer:
        tab.evaluate("window.app.queuePrompt(0)")
    server.client.wait(answer.value.json()["prompt_id"], timeout=600)
    tab.add_style_tag(content=ONLY_THE_NODE)
    shots = []
    for name in ("Loss", "Spectrum"):
        width, height = tab.evaluate(SHOW, [MARGIN, TITLE])
        tab.wait_for_timeout(1000)
        tab.get_by_role("tab", name=name).dispatch_event("click")
        tab.wait_for_timeout(1000)
        clip = {"x": 0, "y": 0, "width": width + 2 * MARGIN, "height": height + TITLE + 2 * MARGIN}
        shots.append(Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB"))
    sheet = Image.new("RGB", (sum(shot.width for shot in shots), max(shot.height for shot in shots)))
    for index, shot in enumerate(shots):
        sheet.paste(shot, (index * shots[0].width, 0))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
