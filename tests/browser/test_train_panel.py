"""The live panel of Train TriLoRA in the host's own front end: a real run in both modes, and what no run shows fast."""

from __future__ import annotations

import io
import json
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.host.discovery import PACK
from tests.host.server import CHECKPOINT, PICTURES, Server

from .conftest import needs_nodes_2, ready

SIDE = 64  # of pictures, in pixels
MODES = {"classic": False, "nodes-2": True}
NODE = "window.app.canvas.graph._nodes.find(node => node.type === 'TrainTriLoRA')"  # in the graph that is shown
WIDGETS = f"{NODE}.serialize().widgets_values"
# The shipped workflow at a size that a test can afford, with a preview, a measure and a spectrum every few steps.
SMALL = """([checkpoint, folder, side, train]) => {
  const graph = window.app.graph;
  const all = type => graph._nodes.filter(node => node.type === type);
  const set = (node, values) => Object.entries(values).forEach(([name, value]) => {
    node.widgets.find(widget => widget.name === name).value = value;
  });
  set(all('CheckpointLoaderSimple')[0], {ckpt_name: checkpoint});
  set(all('TriLoRADataset')[0], {folder, resolution: side});
  set(all('EmptyLatentImage')[0], {width: side, height: side});
  all('KSampler').forEach(node => set(node, {steps: 1}));
  const node = all('TrainTriLoRA')[0];
  set(node, train);
  const watch = LiteGraph.createNode('TriLoRAMonitorOptions');
  graph.add(watch);
  watch.pos = [370, -420];
  set(watch, {validation_share: 0.25, validate_every: 10, spectrum_every: 2, preview_prompts: 'a striped thing',
              preview_every: 4, preview_steps: 1});
  watch.connect(0, node, node.inputs.findIndex(input => input.name === 'options'));
}"""
# The node and its panel at full size in the middle of the page.
IN_VIEW = f"""() => {{
  const node = {NODE};
  window.app.canvas.ds.scale = 1;
  window.app.canvas.ds.offset = [400 - node.pos[0], 110 - node.pos[1]];
  window.app.canvas.setDirty(true, true);
}}"""


# Puts Train TriLoRA into a subgraph, opens that, and gives the node's id as the host has it.
INTO_SUBGRAPH = """() => {
  const {graph, canvas} = window.app;
  const {node} = graph.convertToSubgraph(new Set([graph._nodes.find(each => each.type === 'TrainTriLoRA')]));
  const inner = node.subgraph._nodes.find(each => each.type === 'TrainTriLoRA');
  canvas.setGraph(node.subgraph);
  return `${node.id}:${inner.id}`;
}"""
# Shows the graph that holds Train TriLoRA, be it inside a subgraph.
SHOW_TRAIN = """() => {
  const {graph, canvas} = window.app;
  const inner = graph._nodes.find(node => node.subgraph)?.subgraph;
  if (inner && canvas.graph !== inner) canvas.setGraph(inner);
}"""
COMMAND = "name => window.app.extensionManager.command.execute(name)"


# Sets widgets of the only node of a type in the graph that is shown.
SET = """([type, values]) => {
  const node = window.app.canvas.graph._nodes.find(each => each.type === type);
  Object.entries(values).forEach(([name, value]) => {
    node.widgets.find(widget => widget.name === name).value = value;
  });
}"""
# Optimizer options before those of SMALL: learning rates a thousand times as high.
TOO_FAST = """() => {
  const graph = window.app.graph;
  const options = LiteGraph.createNode('TriLoRAOptimizerOptions');
  graph.add(options);
  options.pos = [0, -900];
  for (const widget of options.widgets) if (/^(up|sigma|down)_rate$/.test(widget.name)) widget.value = 1000;
  const watch = graph._nodes.find(node => node.type === 'TriLoRAMonitorOptions');
  options.connect(0, watch, watch.inputs.findIndex(input => input.name === 'options'));
}"""


def choose_mode(page: Any, vue: bool) -> None:
    page.evaluate("vue => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)


def open_workflow(page: Any, graph: dict[str, Any]) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.wait_for_function(f"window.app.graph._nodes.length === {len(graph['nodes'])}", timeout=90_000)


def shipped() -> dict[str, Any]:
    return json.loads((PACK / "workflows" / "train_style.json").read_text(encoding="utf-8"))


def serialised(page: Any) -> dict[str, Any]:
    return page.evaluate("JSON.parse(JSON.stringify(window.app.graph.serialize()))")


def to_another_tab_and_back(page: Any) -> None:
    """A new workflow beside the one that is open, where no panel is left, and back."""
    count = page.evaluate("window.app.graph._nodes.length")
    page.evaluate(COMMAND, "Comfy.NewBlankWorkflow")
    page.wait_for_function("window.app.graph._nodes.length === 0", timeout=90_000)
    page.locator(".tl-panel").wait_for(state="detached", timeout=90_000)
    page.evaluate(COMMAND, "Workspace.PreviousOpenedWorkflow")
    page.wait_for_function(f"window.app.graph._nodes.length === {count}", timeout=90_000)


def in_view(page: Any) -> None:
    page.evaluate(SHOW_TRAIN)
    page.evaluate(IN_VIEW)


def configured(page: Any, **train: Any) -> None:
    """The shipped workflow, small, with these values of Train TriLoRA, in view."""
    open_workflow(page, shipped())
    page.evaluate(SMALL, [CHECKPOINT, PICTURES, SIDE, {"rank": 4, **train}])
    in_view(page)


def lone_node(page: Any, width: int = 300) -> None:
    """A workflow of one Train TriLoRA, whose id is 1."""
    node = {"id": 1, "type": "TrainTriLoRA", "pos": [120, 90], "size": [width, 300], "flags": {}, "order": 0, "mode": 0}
    view = {"ds": {"scale": 1, "offset": [0, 0]}}
    rest = {
        "last_node_id": 1,
        "last_link_id": 0,
        "links": [],
        "groups": [],
        "config": {},
        "extra": view,
        "version": 0.4,
    }
    open_workflow(page, {"nodes": [node], **rest})
    page.evaluate("window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [0, 0]")
    page.locator(".tl-panel").wait_for()


def told(page: Any, run: dict[str, Any]) -> None:
    """What the websocket does with a message of the server."""
    page.evaluate(
        "detail => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('trilora.run', {detail}))", event_of(**run)
    )


def event_of(**facts: Any) -> dict[str, Any]:
    """An event of the contract; `facts` in place of what an event has without any news."""
    nothing: dict[str, Any] = {"points": [], "measures": [], "spectra": [], "previews": []}
    run = {"run": "r1", "node": "1", "workflow": None, "name": "x", "state": "training", "text": "", "step": 0}
    rest = {"steps": 100, "seconds_per_step": None, "eta": None, "memory": None, "can_preview": False}
    end = {"ended": None, "problem": "", "file": ""}
    return {**run, **rest, **end, **nothing, **facts}


def curve(first: int, last: int) -> list[list[float]]:
    noise = random.Random(first)
    return [[step, 0.1 + math.exp(-step / 4000) * 0.2 + noise.random() * 0.1, 1e-4] for step in range(first, last + 1)]


def text_of(page: Any) -> str:
    return page.locator(".tl-panel").first.inner_text()


def wait_text(page: Any, part: str, seconds: float = 120) -> str:
    """The panel's text as soon as it holds `part`."""
    end = time.monotonic() + seconds
    while part not in (text := text_of(page)):
        assert time.monotonic() < end, f"no {part!r} in {seconds} s; the panel says: {text}"
        time.sleep(0.1)
    return text


def step_of(page: Any) -> int:
    return int(page.locator(".tl-progress").get_attribute("aria-valuenow") or 0)  # none where a panel is new


def wait_step(page: Any, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while (now := step_of(page)) < step:
        assert time.monotonic() < end, f"step {now}, not {step}, after {seconds} s: {text_of(page)}"
        time.sleep(0.1)


def picture_of(page: Any) -> np.ndarray:
    shot = page.locator(".tl-canvas").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=int)


def at_step(page: Any, key: str) -> str:
    """What the chart says at its cursor after a key."""
    page.locator(".tl-canvas").first.press(key)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it is drawn
    return page.locator(".tl-canvas").first.get_attribute("aria-label")


def close_dialog(page: Any) -> None:
    """The host's own report of an error, which older front ends lay over the graph."""
    closing = page.locator(".p-dialog-close-button, .p-dialog-header-close")
    if closing.count():
        closing.first.click()
    page.locator(".p-dialog-mask").wait_for(state="detached", timeout=90_000)


def ours(page: Any) -> list[str]:
    return [line for line in page.complaints if "/extensions/trilora/" in line or "/trilora/" in line]


def images_of(server: Server, prompt: str, node: str) -> np.ndarray:
    return server.client.images(server.client.wait(prompt), node)[0]


def queue(page: Any) -> str:
    """Queue the graph as the button does; the id of the prompt."""
    with page.expect_response("**/api/prompt") as answer:
        page.evaluate("window.app.queuePrompt(0)")
    return answer.value.json()["prompt_id"]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_shows_itself_through_tabs_and_a_reload_and_stops_with_what_it_learned(
    page: Any, server: Server, mode: str
) -> None:
    """In Nodes 2.0 inside a subgraph, whose nodes have ids such as 15:7."""
    needs_nodes_2(server, MODES[mode])
    choose_mode(page, MODES[mode])
    open_workflow(page, shipped())
    saved = next(node for node in shipped()["nodes"] if node["type"] == "TrainTriLoRA")["widgets_values"]
    assert page.evaluate(WIDGETS) == saved
    name = f"panel_{mode.replace('-', '')}"
    configured(page, name=name, steps=5000, learning_rate=0.02)  # a busy machine must not see its end
    node = page.evaluate(INTO_SUBGRAPH) if MODES[mode] else page.evaluate(f"String({NODE}.id)")
    in_view(page)
    prompt, text = queue(page), ""
    try:
        page.locator(".tl-state").wait_for(timeout=120_000)
        wait_step(page, 3)
        assert server.client.get("/trilora/runs")[-1]["node"] == node
        before = picture_of(page)
        assert len(np.unique(before.reshape(-1, 3), axis=0)) > 20, "an empty chart"
        wait_step(page, step_of(page) + 3)
        end = time.monotonic() + 90
        while np.array_equal(picture_of(page), before):
            assert time.monotonic() < end, "the chart stands still"
        text = wait_text(page, "validation")
        assert "of 5,000" in text and "s/step" in text and "left" in text and "Previews" in text

        reached = step_of(page)
        to_another_tab_and_back(page)
        in_view(page)
        wait_step(page, reached + 1)
        assert at_step(page, "Home").startswith("Step 1: loss"), "the curve before is gone with the tab"

        graph = serialised(page)
        reached = step_of(page)
        page.reload(timeout=120_000)
        ready(page)
        open_workflow(page, graph)
        in_view(page)
        wait_text(page, "Training")
        assert at_step(page, "Home").startswith("Step 1: loss"), "the curve before the reload is gone"
        assert int(at_step(page, "End").split()[1].rstrip(":")) >= reached
        page.get_by_role("tab", name="Spectrum").click()
        page.locator(".tl-canvas[aria-label*='effective rank']:visible").wait_for(timeout=90_000)
        page.get_by_role("tab", name="Previews").click()
        loaded = "[...document.querySelectorAll('.tl-thumb img')].some(image => image.naturalWidth > 0)"
        page.wait_for_function(loaded, timeout=90_000)

        page.get_by_role("button", name="Save now").click()
        wait_text(page, "saved as")
        page.get_by_role("button", name="Stop and keep").click()
        text = wait_text(page, "Stopped at step")
    finally:
        if "Stopped" not in text:
            server.client.interrupt()
    assert "and kept" in text and f"trilora/{name}" in text
    assert (images_of(server, prompt, "11") != images_of(server, prompt, "13")).any(), "it went on without the adapter"
    assert len(page.evaluate(WIDGETS)) == len(saved)
    assert not ours(page), ours(page)


def test_a_run_that_is_read_from_the_disk_shows_its_curve(page: Any, server: Server) -> None:
    choose_mode(page, False)
    configured(page, name="panel_cached", steps=3, learning_rate=0.002)
    assert server.client.wait(queue(page)).status == "success"
    wait_text(page, "Finished: 3 steps")
    first = at_step(page, "Home")
    page.evaluate(SET, ["TriLoRAMonitorOptions", {"preview_seed": 7}])  # another run to the host, the same to us
    assert server.client.wait(queue(page)).status == "success"
    wait_text(page, "Not trained again")
    assert at_step(page, "Home") == first
    assert "trilora/panel_cached.safetensors" in text_of(page)
    assert page.locator(".tl-buttons").is_hidden()
    assert not ours(page), ours(page)


def test_a_run_that_breaks_off_or_is_cancelled_keeps_its_curve_and_says_why(page: Any, server: Server) -> None:
    """A learning rate of 1000, at which the loss is NaN within a few steps."""
    choose_mode(page, False)
    configured(page, name="panel_broken", steps=100, learning_rate=1.0)
    page.evaluate(TOO_FAST)
    page.evaluate(SET, ["TriLoRAMonitorOptions", {"preview_every": 0, "validation_share": 0}])
    assert server.client.wait(queue(page)).status == "error"
    text = wait_text(page, "Broke off at step")
    close_dialog(page)
    assert "the loss was nan" in text and "Lower learning_rate, or have the model compute in bf16 or fp32." in text
    kept = Path(re.search(r"Saved as (trilora/panel_broken_stopped_at_\d+\.safetensors)\.", text)[1])
    assert (server.loras / kept).is_file() and str(server.base) not in text
    assert page.locator(".tl-end").get_attribute("aria-live") == "polite" and page.locator(".tl-buttons").is_hidden()
    assert at_step(page, "Home").startswith("Step 1: loss") and "left out" in at_step(page, "End")
    page.keyboard.press("Escape")
    for theme in ("light", "dark"):
        page.evaluate("theme => window.app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
        page.locator(f".tl-panel[data-theme={theme}]").wait_for(timeout=90_000)

    page.evaluate(SET, ["TrainTriLoRA", {"name": "panel_cut", "learning_rate": 0.001}])
    page.evaluate(SET, ["TriLoRAOptimizerOptions", {"up_rate": 1, "sigma_rate": 1, "down_rate": 1}])
    prompt = queue(page)
    page.locator(".tl-state").wait_for(timeout=90_000)  # hidden since the run before ended
    wait_step(page, 2)
    page.evaluate("window.comfyAPI.api.api.interrupt()")
    assert server.client.wait(prompt).status == "interrupted"
    text = wait_text(page, "Cancelled at step")
    kept = Path(re.search(r"What was trained is in (trilora/panel_cut_stopped_at_\d+\.safetensors)\.", text)[1])
    assert (server.loras / kept).is_file()
    assert at_step(page, "Home").startswith("Step 1: loss") and int(at_step(page, "End").split()[1][:-1]) >= 2
    assert not ours(page), ours(page)


def test_a_loss_that_does_not_move_is_drawn(page: Any) -> None:
    lone_node(page)
    off = 0.1 + 0.2  # the mean of equal numbers is often off by the last bit, and such a range has no round numbers
    told(page, {"run": "level", "step": 3, "points": [[1, 0.3, 1e-4], [2, off, 1e-4], [3, 0.3, 1e-4]]})
    wait_text(page, "step 3 of 100")
    assert at_step(page, "End").startswith("Step 3: loss 0.3")
    told(page, {"run": "level", "state": "ended", "ended": "finished"})  # or later tests would ask for it
    assert not ours(page), ours(page)


def test_buttons_act_only_while_they_can_and_show_a_refusal(page: Any) -> None:
    lone_node(page)
    named = {name: page.get_by_role("button", name=name) for name in ("Stop and keep", "Save now", "Preview now")}
    told(page, {"state": "preparing", "text": "encoding captions"})
    wait_text(page, "encoding captions")
    assert all(button.is_disabled() for button in named.values())
    told(page, {"step": 2, "points": curve(1, 2)})
    wait_text(page, "step 2 of 100")
    assert named["Stop and keep"].is_enabled() and named["Save now"].is_enabled()
    assert named["Preview now"].is_disabled() and "preview_prompts" in named["Preview now"].get_attribute("title")
    named["Save now"].click()  # the server knows no such run, and says so
    wait_text(page, "no run 'r1' goes on")
    told(page, {"state": "ended", "ended": "finished"})
    page.complaints.clear()  # the browser notes every answer of 404


def test_after_a_lost_connection_a_panel_keeps_to_its_newest_run(page: Any) -> None:
    """The server answers for an earlier run of the node last: that it is lost, then that it had ended meanwhile."""
    lone_node(page)
    told(page, {"run": "earlier", "step": 3, "points": curve(1, 3)})
    told(page, {"run": "later", "step": 2, "points": curve(1, 2)})
    wait_text(page, "step 2 of 100")
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route("**/trilora/runs/earlier", hold)
    page.route("**/trilora/runs/later", lambda route: route.fulfill(status=404))
    for ended in ({"status": 404}, {"json": event_of(run="earlier", state="ended", ended="finished", step=3)}):
        page.evaluate("window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
        wait_text(page, "The server was restarted")
        with page.expect_response("**/trilora/runs/earlier"):
            held.pop().fulfill(**ended)
        page.wait_for_timeout(300)  # until the page has read it
        assert "The server was restarted" in text_of(page) and at_step(page, "End").startswith("Step 2:")
        told(page, {"run": "earlier", "step": 3})  # as if both went on
        told(page, {"run": "later", "step": 2})
        wait_text(page, "step 2 of 100")
    for run in ("earlier", "later"):
        told(page, {"run": run, "state": "ended", "ended": "finished"})
        page.unroute(f"**/trilora/runs/{run}")
    page.complaints.clear()


def test_nodes_show_their_own_runs_in_subgraphs_and_tabs(page: Any) -> None:
    choose_mode(page, False)
    lone_node(page)
    mine, other = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    page.evaluate("id => { window.app.graph.id = id; }", mine)
    told(page, {"run": "of another tab", "workflow": other, "step": 7, "points": curve(1, 7)})
    told(page, {"run": "of another node", "node": "2", "workflow": mine, "step": 8, "points": curve(1, 8)})
    page.wait_for_timeout(200)
    assert "No run yet" in text_of(page)
    told(page, {"run": "mine", "workflow": mine, "step": 9, "points": curve(1, 9)})
    wait_text(page, "step 9 of 100")
    found = page.evaluate(INTO_SUBGRAPH)
    told(page, {"run": "inner", "node": found, "workflow": mine, "step": 10, "points": curve(1, 10)})
    end = time.monotonic() + 10
    read = (
        "() => [...window.app.canvas.graph._nodes].find(n => n.type === 'TrainTriLoRA')"
        ".widgets.find(w => w.name === 'training').element.textContent"
    )
    while "step 10 of 100" not in page.evaluate(read):
        assert time.monotonic() < end, page.evaluate(read)
        time.sleep(0.1)
    page.evaluate("window.app.canvas.setGraph(window.app.graph)")


def test_previews_beyond_those_that_are_kept_are_shown(page: Any) -> None:
    """The page keeps the last 400 rounds, so that their number stays the same from then on."""
    choose_mode(page, False)
    lone_node(page)
    page.route("**/trilora/runs/many/previews/*", lambda route: route.fulfill(body=_png(), content_type="image/png"))
    page.route("**/trilora/preview", lambda route: route.fulfill(json={}))
    rounds = [{"step": number, "pictures": [number]} for number in range(1, 403)]
    told(page, {"run": "many", "step": 400, "steps": 500, "can_preview": True, "previews": rounds[:400]})
    page.get_by_role("tab", name="Previews").click()
    shown = page.locator(".tl-strip figcaption")
    page.wait_for_function("document.querySelectorAll('.tl-strip figcaption').length === 400", timeout=90_000)
    page.get_by_role("button", name="Preview now").click()
    wait_text(page, "Drawing after this step.")
    last = page.locator(".tl-thumb").last
    last.focus()
    more = {"can_preview": True, "previews": rounds[400:401], "text": "drawing previews\nsaved as a.safetensors"}
    told(page, {"run": "many", "step": 401, "steps": 500, **more})
    wait_text(page, "step 401 of 500")
    assert "drawing previews · saved as a.safetensors" in text_of(page)
    assert [shown.first.inner_text(), shown.last.inner_text(), shown.count()] == ["2", "401", 400]
    assert "Drawing after this step." not in text_of(page), "an answer to what is done"
    assert page.evaluate("document.activeElement.parentElement.dataset.key") == "400-400", "the focus is lost"
    told(page, {"run": "many", "state": "ended", "ended": "steps", "step": 402, "previews": rounds[401:]})
    wait_text(page, "Finished")
    assert [shown.first.inner_text(), shown.last.inner_text(), shown.count()] == ["3", "402", 400]
    page.unroute("**/trilora/preview")
    assert not ours(page), ours(page)


@pytest.mark.parametrize("mode", MODES)
def test_twenty_thousand_steps_stay_smooth_and_previews_compare(page: Any, server: Server, mode: str) -> None:
    needs_nodes_2(server, MODES[mode])
    choose_mode(page, MODES[mode])
    lone_node(page, width=220)
    page.route("**/trilora/runs/long/previews/*", lambda route: route.fulfill(body=_png(), content_type="image/png"))
    looks = [
        {"step": step, "effective_rank": 3.0, "norm": 0.1, "values": [1.0, 0.5, 0.2]} for step in range(0, 20_000, 50)
    ]
    for first in range(1, 20_001, 500):
        news = {
            "points": curve(first, first + 499),
            "spectra": [look for look in looks if first <= look["step"] < first + 500],
        }
        previews = [{"step": first, "pictures": [first]}] if first % 2500 == 1 else []
        told(page, {"run": "long", "step": first + 499, "steps": 20_000, **news, "previews": previews})
    wait_text(page, "step 20,000 of 20,000")
    assert at_step(page, "Home").startswith("Step 1:") and at_step(page, "End").startswith("Step 20000:")
    assert page.evaluate(FRAME) < 40, "milliseconds of a frame"
    box = page.locator(".tl-canvas").first.bounding_box()
    assert box["width"] > 150 and box["height"] >= 60, "unreadable at a node of 220 pixels"
    page.get_by_role("tab", name="Previews").click()
    thumbs = page.locator(".tl-thumb")
    thumbs.nth(0).click(modifiers=["Shift"])
    thumbs.nth(2).click(modifiers=["Shift"])
    assert page.locator(".tl-sides figcaption").all_inner_texts() == ["A: step 1", "B: step 5,001"]
    page.keyboard.press("ArrowRight")
    assert page.locator(".tl-sides figcaption").nth(1).inner_text() == "B: step 7,501"
    page.keyboard.press("Escape")
    assert page.locator(".tl-overlay").count() == 0
    thumbs.nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator(".tl-sides img").count() == 1
    page.keyboard.press("Escape")
    assert not ours(page), ours(page)


# The median time of drawing one frame of the newest panel, in milliseconds, as its handler of frames does it.
FRAME = """async () => {
  const wait = window.requestAnimationFrame.bind(window);
  const times = [];
  window.requestAnimationFrame = work => wait(at => {
    const [began, ours] = [performance.now(), work.toString().includes('isSeen')];
    work(at);
    if (ours) times.push(performance.now() - began);
  });
  const canvas = document.querySelector('.tl-canvas');
  for (let round = 0; round < 9; round += 1) {
    canvas.dispatchEvent(new PointerEvent('pointermove', {bubbles: true}));
    canvas.closest('.tl-panel').dispatchEvent(new PointerEvent('pointerenter'));
    await new Promise(done => wait(() => wait(done)));
  }
  window.requestAnimationFrame = wait;
  return times.length < 5 ? Infinity : times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
}"""


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 80, 40)).save(file, "PNG")
    return file.getvalue()
