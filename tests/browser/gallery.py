"""The pictures of the README: `.venv/bin/python -m tests.browser.gallery`, from the root of the clone.

docs/training.webp: the shipped workflow train_style in the newest ComfyUI that the tests find, after a run on the
tests' own small model. Its pictures are noise, and no ComfyUI loads the demo's model: so the tab of previews shows
those of a run of the demo's model that the command line trains here. docs/cards.webp: the nodes with cards after a
run, in both modes and both themes.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.host.discovery import HOW_TO_ENABLE, PACK, find_hosts
from tests.host.server import CHECKPOINT, PICTURES, Server, run_server
from trilora_core.cover import with_cover
from trilora_core.fileformat import Adapter, write_adapter
from trilora_core.previews import preview_path, previews_folder

from .conftest import QUIET, SETTINGS, ready
from .pictures import ONLY_THE_NODE
from .test_adapter_cards import STYLE, SUBJECT, adapter, graph
from .test_train_panel import SET, SIDE, SMALL, told

DOCS = PACK / "docs"
VIEW = {"width": 1260, "height": 1000}
MARGIN, TITLE = 10, 30
CARDS_CLIP = {"x": 70, "y": 110, "width": 960, "height": 540}
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


# the nodes with cards beside each other, without links
CARDS = """(margin) => {
  const {canvas, graph} = window.app;
  let right = 0;
  for (const node of [...graph._nodes]) {
    if (!["LoadTriLoRA", "ApplyTriLoRA", "MergeTriLoRA"].includes(node.type) || node.id == 3) node.pos = [4000, 4000];
    else {
      node.pos = [right, 0];
      node.setSize([300, node.computeSize()[1]]);
      right += 300 + margin;
    }
  }
  canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
  canvas.show_info = false;
  canvas.ds.scale = 1;
  canvas.ds.offset = [70 + margin, 110 + 40];  // clear of the toolbars
  canvas.deselectAll?.();
  canvas.setDirty(true, true);
}"""
DEMO = PACK / "trilora_core" / "demo"
EVERY = 40  # steps between two rounds of previews
PROMPTS = ("a red house on a green field, zorblin style", "a yellow star at night, zorblin style")


def main(chosen: list[str]) -> int:
    """Draw those named (training, cards), both by default; 1 when there is no host or no Chromium to draw them in."""
    hosts, chromium = find_hosts(), os.environ.get("CHROMIUM_PATH") or shutil.which("chromium")
    if not hosts or chromium is None:
        print(HOW_TO_ENABLE if chromium else "no Chromium was found; install chromium or set CHROMIUM_PATH")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        previews = _previews(Path(folder) / "demo")
        base = Path(folder) / "base"
        base.mkdir()
        with run_server(hosts[0], base) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=QUIET)
            _adapters(server, previews)
            server.client.post("/settings", SETTINGS | {"Comfy.NodeBadge.NodeSourceBadgeMode": "None"})
            tab = browser.new_page(viewport=VIEW, device_scale_factor=1.5, locale="en-US")
            tab.goto(server.client.url, timeout=120_000)
            ready(tab)
            for name, draw in {"training": partial(_run, previews=previews), "cards": _cards}.items():
                if name in (chosen or [name]):
                    _save(draw(tab, server), DOCS / f"{name}.webp")
            browser.close()
    return 0


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, "WEBP", quality=80, method=6)
    print(f"{path.relative_to(PACK)}: {path.stat().st_size / 1000:.0f} kB")


def _previews(folder: Path) -> dict[int, list[Path]]:
    """The pictures of a run of the demo's model, by step."""
    done = Path(os.environ.get("TRILORA_GALLERY_RUN", folder))  # a folder that an earlier call left
    if done == folder:
        words = ["--trigger-word", "zorblin style", "--rank", "16", "--steps", "200", "--lr", "2e-3"]
        watch = [
            "--batch-size",
            "8",
            "--preview-every",
            str(EVERY),
            "--preview-cfg",
            "2",
            "--preview-prompts",
            *PROMPTS,
        ]
        places = [
            "--model",
            str(DEMO / "base"),
            "--data",
            str(DEMO / "pictures"),
            "--output",
            str(folder / "z.safetensors"),
        ]
        subprocess.run([sys.executable, "-m", "trilora_core", "train", *places, *words, *watch], check=True, cwd=PACK)
    rounds = range(0, 201, EVERY)
    return {
        step: [preview_path(previews_folder(done / "z.safetensors"), step, index) for index in range(2)]
        for step in rounds
    }


def _run(tab: Any, server: Server, previews: dict[int, list[Path]]) -> Image.Image:
    """The node after its run: its loss, its spectrum, and the previews of the demo's model."""
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
    style = tab.add_style_tag(content=ONLY_THE_NODE)
    shots = []
    for name in ("Loss", "Spectrum", "Previews"):
        width, height = tab.evaluate(SHOW, [MARGIN, TITLE])
        if name == "Previews":
            _show_previews(tab, server, previews)
        tab.wait_for_timeout(1000)
        tab.get_by_role("tab", name=name).dispatch_event("click")
        tab.wait_for_timeout(1000)
        clip = {"x": 0, "y": 0, "width": width + 2 * MARGIN, "height": height + TITLE + 2 * MARGIN}
        shots.append(Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB"))
    style.evaluate("element => element.remove()")
    return _beside(shots)


def _show_previews(tab: Any, server: Server, previews: dict[int, list[Path]]) -> None:
    """Hand the pictures to the panel as the server would."""
    pictures = [path for paths in previews.values() for path in paths]
    tab.route("**/previews/*", lambda route: route.fulfill(path=pictures[int(route.request.url.rpartition("/")[2])]))
    run = server.client.get(f"/trilora/runs/{server.client.get('/trilora/runs')[-1]['run']}")
    shown = [{"step": step, "pictures": [2 * at, 2 * at + 1]} for at, step in enumerate(previews)]
    told(tab, run | {"points": [], "measures": [], "spectra": [], "previews": shown})


def _adapters(server: Server, previews: dict[int, list[Path]]) -> None:
    """A style with a cover, and a subject a third of whose layers are the style's, so that the two meet somewhere."""
    about = {"ss_sd_model_name": "my_model", "trilora__architecture": "sd15"}
    style = adapter(0, modelspec__trigger_phrase="zorblin style", **about)
    subject = adapter(1, modelspec__trigger_phrase="sks cat", **about)
    draw = random.Random(5)
    layers = {stem: style.layers[stem] if draw.random() < 1 / 3 else layer for stem, layer in subject.layers.items()}
    with Image.open(previews[200][0]) as picture:
        write_adapter(server.loras / STYLE, with_cover(style, picture.convert("RGB")))
    write_adapter(server.loras / SUBJECT, Adapter(layers, subject.metadata))


def _cards(tab: Any, server: Server) -> Image.Image:
    """Load, Apply and Merge after a run: classic above Nodes 2.0, dark beside light."""
    saved = graph("cards")
    saved["nodes"][1]["widgets_values"] = [STYLE]
    shots = []
    for vue in (False, True):
        for theme in ("dark", "light"):
            for name, value in {"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": theme}.items():
                tab.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
            tab.evaluate("graph => window.app.loadGraphData(graph)", saved)
            if not shots:
                with tab.expect_response("**/api/prompt") as answer:
                    tab.evaluate("window.app.queuePrompt(0)")
                server.client.wait(answer.value.json()["prompt_id"], timeout=600)
            tab.wait_for_timeout(1500)
            tab.evaluate(SET, ["ApplyTriLoRA", {"keep_rank": 3}])
            tab.evaluate(CARDS, 16)
            tab.wait_for_timeout(2500)
            shots.append(Image.open(io.BytesIO(tab.screenshot(clip=CARDS_CLIP))).convert("RGB"))
    return _above([_beside(shots[:2]), _beside(shots[2:])])


def _beside(shots: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(shot.width for shot in shots), max(shot.height for shot in shots)))
    for index, shot in enumerate(shots):
        sheet.paste(shot, (sum(each.width for each in shots[:index]), 0))
    return sheet


def _above(shots: list[Image.Image]) -> Image.Image:
    return _beside([shot.transpose(Image.Transpose.ROTATE_90) for shot in shots]).transpose(Image.Transpose.ROTATE_270)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
