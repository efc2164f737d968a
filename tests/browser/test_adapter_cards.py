"""The cards of the nodes that load, apply and merge adapters, in the host's own front end, classic and Nodes 2.0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.host.models import sd15_checkpoint
from tests.host.server import CHECKPOINT, Server
from trilora_core.cover import COVERS, with_cover
from trilora_core.fileformat import Adapter, Layer, write_adapter
from trilora_core.keys import guess_architecture
from trilora_core.spectral import canonical
from trilora_core.weights import open_weights

from .conftest import CHROMIUM, QUIET, needs_nodes_2, ready

playwright = pytest.importorskip("playwright.sync_api")

RANK = 6
STYLE, SUBJECT, OTHER, HOSTILE, BARE = (f"cards/{n}.safetensors" for n in ("style", "subject", "xl", "hostile", "bare"))
TOLD = "cards_told_sd15.safetensors"
MARKUP = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
BOMB = "iVBORw0KGgoAAAANSUhEUgAA6mAAAOpgCAIAAAA"  # the head of a PNG of 60,000 by 60,000 pixels


def adapter(seed: int, **metadata: str) -> Adapter:
    """Rank 6 on the attention of the test checkpoint; its singular values fall by half each."""
    generator = torch.Generator().manual_seed(seed)
    with open_weights(sd15_checkpoint()) as weights:
        shapes = {stem: shape for stem, shape in weights.shapes.items() if "_attn" in stem and "_to_" in stem}
    falling = 0.5 ** torch.arange(RANK).unsqueeze(1)
    layers = {}
    for stem, (out, into) in shapes.items():
        up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, into, generator=generator)
        layers[stem] = Layer(canonical(up, down * falling, scale=0.01))
    return Adapter(layers, {name.replace("__", "."): value for name, value in metadata.items()})


@pytest.fixture(scope="module")
def files(server: Server) -> None:
    """Adapters of every kind that a card may meet, and a checkpoint that tells what it is."""
    folder = server.loras
    picture = Image.radial_gradient("L").convert("RGB")
    told = {"ss_sd_model_name": "photon", "trilora__architecture": "sd15", "trilora__base_name": "photon"}
    style = adapter(0, modelspec__trigger_phrase="gouache, ohwx style", trilora__base_fingerprint="another", **told)
    write_adapter(folder / STYLE, with_cover(style, picture))
    write_adapter(folder / SUBJECT, adapter(1, modelspec__trigger_phrase="sks cat", **told))
    write_adapter(folder / OTHER, adapter(2, modelspec__architecture="stable-diffusion-xl-v1-base/lora"))
    markup = {"trilora.base_name": MARKUP, "trilora.base_fingerprint": "another"}
    covers = {COVERS: json.dumps([BOMB + "A" * 400_000]), "modelspec.thumbnail": "data:text/html;base64,PGI+"}
    bad = adapter(3, modelspec__trigger_phrase=f"{MARKUP}, {'x' * 9000}", ss_sd_model_name=MARKUP)
    broken = {"trilora.spectrum": '{"rank_min": "'}
    write_adapter(folder / HOSTILE, Adapter(bad.layers, bad.metadata | covers | markup | broken))
    save_file(load_file(folder / SUBJECT), folder / BARE)
    checkpoint = server.base / "models" / "checkpoints" / TOLD
    save_file({"none": torch.zeros(1)}, checkpoint, {"modelspec.architecture": "stable-diffusion-v1"})


class Tab:
    """One page of the front end, and what it said on its console."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url, self.errors = page, url, []
        page.on("pageerror", self._failed)
        page.on("console", self._heard)
        self.open()

    def _failed(self, error: Any) -> None:
        """Only where the pack takes part: 0.3.64 trips over a setting of its own."""
        if "/extensions/trilora/" in (error.stack or ""):
            self.errors.append(error.stack)

    def _heard(self, message: Any) -> None:
        """The host's own troubles are not ours, nor is its 404 for a file without metadata."""
        ours = "trilora" in f"{message.text}{message.location.get('url', '')}".lower()
        if message.type in ("error", "warning") and ours and "/view_metadata/" not in message.location.get("url", ""):
            self.errors.append(message.text)

    def open(self) -> None:
        """Load the front end and wait until it knows our nodes."""
        self.page.goto(self.url, timeout=120_000)
        ready(self.page)

    def show(self, graph: dict[str, Any], mode: str) -> None:
        """Open a workflow in one of the two modes, with every card marked by the id of its node."""
        vue = mode == "nodes 2.0"
        self.page.evaluate("v => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', v)", vue)
        self.page.evaluate("graph => window.app.loadGraphData(graph)", graph)
        self.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [90, 90]; }")
        self.page.evaluate(
            """() => { for (const node of app.graph._nodes) {
                 const card = (node.widgets ?? []).find((each) => each.name === "trilora_card");
                 if (card) card.element.dataset.node = node.id;
               } app.canvas.setDirty(true, true); }"""
        )
        for node in (2, 3, 4, 5):
            self.card(node).wait_for(state="visible", timeout=90_000)
        assert self.page.evaluate("() => !!document.querySelector('.lg-node-widgets')") == vue

    def card(self, node: int) -> Any:
        return self.page.locator(f".trilora-card[data-node='{node}']")

    def widget(self, node: int, name: str) -> Any:
        return self.page.evaluate(
            "([id, name]) => app.graph.getNodeById(id).widgets.find((each) => each.name === name).value", [node, name]
        )

    def set(self, node: int | str, name: str, value: Any) -> None:
        """What the front end does when a value is typed or chosen."""
        self.page.evaluate(
            """([id, name, value]) => { const node = app.graph.getNodeById(id);
                 const widget = node.widgets.find((each) => each.name === name);
                 widget.value = value; widget.callback?.(value, app.canvas, node); }""",
            [node, name, value],
        )

    def says(self, node: int, text: str) -> None:
        playwright.expect(self.card(node)).to_contain_text(text, timeout=90_000)


@pytest.fixture(scope="module")
def tab(server: Server, files: None) -> Iterator[Tab]:
    """The front end of one host, ready."""
    if CHROMIUM is None:
        pytest.skip("NOT TESTED IN A BROWSER: no Chromium was found; install chromium or set CHROMIUM_PATH")
    server.client.post("/settings", {"Comfy.TutorialCompleted": True})
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        allowed = ["clipboard-read", "clipboard-write"]
        context = browser.new_context(viewport={"width": 1500, "height": 1000}, permissions=allowed)
        context.set_default_timeout(90_000)
        yield Tab(context.new_page(), server.client.url)
        browser.close()


def graph(name: str) -> dict[str, Any]:
    """Checkpoint (1) and Load (2) to Apply (4); both Loads (2, 3) to Merge (5); something behind each that runs."""
    sockets = {
        1: ([], ["MODEL", "CLIP", "VAE"], [CHECKPOINT]),
        2: ([], ["TRILORA"], [SUBJECT]),
        3: ([], ["TRILORA"], [SUBJECT]),
        4: (["model", "trilora", "clip"], ["MODEL", "CLIP"], [0.8, 1, 0, 1, 1, False, "ALL", ""]),
        5: (["trilora_a", "trilora_b"], ["TRILORA"], [1, 1, "sum", RANK, 1, 1, 0, 1]),
        6: (["source"], [], []),
        7: (["source"], [], []),
    }
    kinds = ["CheckpointLoaderSimple", "LoadTriLoRA", "LoadTriLoRA", "ApplyTriLoRA", "MergeTriLoRA"]
    kinds += ["PreviewAny", "PreviewAny"]
    places = [[0, 0], [0, 160], [0, 440], [380, 0], [740, 0], [1080, 0], [1080, 240]]
    links = [[1, 1, 0, 4, 0, "MODEL"], [2, 2, 0, 4, 1, "TRILORA"], [3, 2, 0, 5, 0, "TRILORA"]]
    links += [[4, 3, 0, 5, 1, "TRILORA"], [5, 4, 0, 6, 0, "*"], [6, 5, 0, 7, 0, "*"]]
    nodes = []
    for (number, (inputs, outputs, values)), kind, place in zip(sockets.items(), kinds, places, strict=True):
        into = {link[4]: link[0] for link in links if link[3] == number}
        out = {slot: [link[0] for link in links if link[1:3] == [number, slot]] for slot in range(len(outputs))}
        nodes.append(
            {
                "id": number,
                "type": kind,
                "pos": place,
                "size": [300, 80],
                "inputs": [{"name": n, "type": "*", "link": into.get(slot)} for slot, n in enumerate(inputs)],
                "outputs": [{"name": kind, "type": kind, "links": out[slot]} for slot, kind in enumerate(outputs)],
                "widgets_values": values,
            }
        )
    return {"id": name, "version": 0.4, "last_node_id": 7, "last_link_id": 6, "nodes": nodes, "links": links}


@pytest.mark.parametrize("mode", ["classic", "nodes 2.0"])
def test_cards_tell_what_is_chosen_and_what_ran(tab: Tab, server: Server, mode: str) -> None:
    needs_nodes_2(server, mode != "classic")
    strength = 0.8 if mode == "classic" else 0.7  # the host answers from its cache what it has seen
    tab.show(graph(f"cards-{mode}"), mode)
    before_a_run(tab)
    strength_rests(tab)
    tab.set(4, "strength", strength)
    tab.set(5, "weight_b", 1 if mode == "classic" else 0.5)
    strangers_files_do_no_harm(tab)
    another_kind_of_model_is_named(tab)
    after_a_run(tab)
    nodes = tab.page.evaluate("() => app.graph.serialize().nodes")
    values = {node["id"]: node["widgets_values"] for node in nodes if node["id"] in (2, 4, 5)}
    assert values == {
        2: [STYLE],
        4: [strength, 1, 2, 1, 1, False, "ALL", ""],
        5: [1, tab.widget(5, "weight_b"), "sum", RANK, 1, 1, 0, 1],
    }
    queued = tab.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert not [name for node in queued.values() for name in node["inputs"] if "card" in name]
    assert tab.errors == []


def before_a_run(tab: Tab) -> None:
    """Choosing a file shows its cover, base, rank and words, here and on the node that it is applied by."""
    tab.says(2, "sks cat")
    cover = tab.card(2).locator("img.cover")
    playwright.expect(cover).to_be_hidden()
    height = tab.card(2).bounding_box()["height"]
    tab.set(2, "lora_name", STYLE)
    tab.says(2, "Base: photon (SD 1.5)")
    tab.says(2, f"Rank {RANK}, effective")
    playwright.expect(cover).to_be_visible()
    assert cover.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 256
    assert tab.card(2).bounding_box()["height"] == pytest.approx(height, abs=1)
    tab.says(4, "Spectrum: after a run")
    for node, word in ((2, "ohwx style"), (4, "gouache")):
        tab.card(node).get_by_role("button", name=word).click()
        tab.says(node, f"Copied: {word}")
        assert tab.page.evaluate("() => navigator.clipboard.readText()") == word
    tab.set(2, "lora_name", BARE)
    tab.says(2, "This file tells nothing before it has run.")
    assert tab.card(2).get_by_role("button").count() == 0


def strength_rests(tab: Tab) -> None:
    """Dragging rests at 0 and 1; keys and what is typed do not."""
    slider = tab.card(4).get_by_role("slider")

    def drag(value: float) -> float:
        box = slider.bounding_box()
        thumb = 14 * box["width"] / slider.evaluate("(input) => input.offsetWidth")
        first, last = (
            box["x"] + thumb / 2 + (box["width"] - thumb) * (at + 1) / 3 for at in (tab.widget(4, "strength"), value)
        )
        y = box["y"] + box["height"] / 2
        tab.page.mouse.move(first, y)
        tab.page.mouse.down()
        tab.page.mouse.move((first + last) / 2, y, steps=3)
        tab.page.mouse.move(last, y, steps=3)
        tab.page.mouse.up()
        return tab.widget(4, "strength")

    assert drag(0.96) == 1
    assert drag(1.3) == pytest.approx(1.3, abs=0.03)
    assert drag(-0.04) == 0
    tab.set(4, "strength", 0.97)
    playwright.expect(slider).to_have_value("0.97")
    assert tab.widget(4, "strength") == 0.97
    slider.focus()
    for key, wanted in (("ArrowRight", 1), ("ArrowRight", 1.05), ("Shift+ArrowLeft", 1.04), ("PageDown", 1)):
        tab.page.keyboard.press(key)
        assert tab.widget(4, "strength") == wanted
    assert slider.get_attribute("aria-valuetext") == "1" and "Strength" in slider.get_attribute("aria-label")
    tab.set(4, "strength", 5)
    tab.page.wait_for_function("(input) => input.getAttribute('aria-valuetext') === '5'", arg=slider.element_handle())
    assert tab.widget(4, "strength") == 5  # beyond the slider, which leaves it alone


def strangers_files_do_no_harm(tab: Tab) -> None:
    """Words are text, pictures are measured before they are drawn, nonsense is passed over."""
    tab.set(2, "lora_name", HOSTILE)
    tab.says(2, MARKUP)
    first, long = tab.card(2).get_by_role("button").all()
    assert first.text_content() == MARKUP
    assert len(long.text_content()) == 300
    playwright.expect(tab.card(2).locator("img.cover")).to_be_hidden()
    found = tab.page.locator(".trilora-card").evaluate_all(
        "(cards) => cards.map((card) => card.querySelectorAll('script, img:not(.cover), b').length)"
    )
    assert sum(found) == 0
    assert tab.page.evaluate("() => window.hacked") is None


def another_kind_of_model_is_named(tab: Tab) -> None:
    """Where both files tell what they are for, before anything has run; else nothing is said."""
    tab.set(2, "lora_name", OTHER)
    tab.says(2, "Base: stable-diffusion-xl-v1-base/lora (SDXL)")
    playwright.expect(tab.card(4).locator(".warning")).to_be_hidden()
    tab.set(1, "ckpt_name", TOLD)
    for node in (2, 4):
        tab.says(node, "This adapter is for SDXL, the model is SD 1.5: it cannot be used.")
    tab.set(2, "lora_name", STYLE)
    tab.says(2, "photon")
    playwright.expect(tab.card(2).locator(".warning")).to_be_hidden()
    tab.set(1, "ckpt_name", CHECKPOINT)


def after_a_run(tab: Tab) -> None:
    """The spectrum with its kept part, the other base in words, the chart of the merge."""
    tab.page.evaluate("() => app.queuePrompt(0)")
    tab.says(4, f"Keeps all {RANK} directions")
    parts = tab.card(4).locator(".trilora-bars .part")
    assert parts.count() == RANK
    tab.set(4, "keep_rank", 2)
    tab.says(4, f"Keeps 2 of {RANK} directions")
    assert parts.count() == 2
    tab.set(4, "keep_energy", 0.5)  # the first holds about three quarters
    tab.says(4, f"Keeps 1 of {RANK} directions")
    tab.set(4, "keep_energy", 1)
    for node in (2, 4):
        tab.says(node, 'the adapter was trained on "photon", this model is')
    tab.says(5, "Interference by block: most")
    tab.says(5, "Energy kept by block: least")
    playwright.expect(tab.page.get_by_text(f"layers at {tab.widget(4, 'strength')}")).to_be_hidden()  # told once
    chart = tab.card(5).get_by_role("img", name="Interference by block")
    assert chart.locator(".part.warm").count() == 4
    assert tab.card(5).locator(".trilora-names").text_content() == "INMIDOUT"
    tab.set(2, "lora_name", OTHER)  # what was said of another file is not said of this one
    tab.says(4, "Spectrum: after a run")
    tab.set(2, "lora_name", STYLE)
    tab.says(4, f"Keeps 2 of {RANK} directions")


# A Reroute node and a bend of the link between the Load (2) and the Apply node (4).
DETOUR = """() => {
  const {graph} = window.app;
  const [load, apply] = [2, 4].map((id) => graph.getNodeById(id));
  const reroute = LiteGraph.createNode("Reroute");
  graph.add(reroute);
  reroute.pos = [330, 300];
  load.connect(0, reroute, 0);
  const link = reroute.connect(0, apply, apply.inputs.findIndex((each) => each.name === "trilora"));
  graph.createReroute?.([360, 330], link);
}"""
ENCLOSE = """(id) => {
  const {graph} = window.app;
  return String(graph.convertToSubgraph(new Set([graph.getNodeById(id)])).node.id);
}"""
# The file of a Load node inside a subgraph becomes a widget of the subgraph's own node.
PROMOTE = """(id) => {
  const {subgraph} = window.app.graph.getNodeById(id);
  const inner = subgraph._nodes.find((each) => each.type === "LoadTriLoRA");
  const slot = inner.inputs.find((each) => each.name === "lora_name");
  subgraph.addInput("lora_name", "COMBO").connect(slot, inner);
}"""
# The trigger words and the warning of the card of a node, wherever it is.
SAYS = """([id, wanted]) => {
  const graphs = (graph) => [graph, ...graph._nodes.flatMap((node) => (node.subgraph ? graphs(node.subgraph) : []))];
  const node = graphs(window.app.graph).flatMap((graph) => graph._nodes).find((each) => String(each.id) === id);
  const card = node.widgets.find((each) => each.name === "trilora_card").element;
  return JSON.stringify([
    [...card.querySelectorAll(".words button")].map((button) => button.textContent),
    card.querySelector(".warning").textContent,
  ]) === wanted;
}"""


def test_cards_follow_links_through_reroutes_and_subgraphs(tab: Tab) -> None:
    """Apply tells the words of the file that Load names, Load that it does not fit Apply's model, wherever both are."""
    problem = "This adapter is for SDXL, the model is SD 1.5: it cannot be used."
    answers = {OTHER: [[], problem], STYLE: [["gouache", "ohwx style"], ""]}

    def linked(file: str, holder: str = "2") -> None:
        tab.set(holder, "lora_name", file)
        for node in ("2", "4"):
            wanted = json.dumps(answers[file], separators=(",", ":"))
            tab.page.wait_for_function(SAYS, arg=[node, wanted], timeout=90_000)

    tab.show(graph("cards-detour"), "classic")
    tab.set(1, "ckpt_name", TOLD)
    tab.page.evaluate(DETOUR)
    linked(OTHER)
    linked(STYLE)
    holder = tab.page.evaluate(ENCLOSE, 2)
    tab.page.evaluate(PROMOTE, holder)
    linked(OTHER, holder)
    tab.page.evaluate(ENCLOSE, 4)
    linked(STYLE, holder)
    assert tab.errors == []


# How often this pack asks for a node's graph in a second.
ASKED = """async (node) => {
  const { graph } = node;
  let asked = 0;
  const get = () => {
    asked += new Error().stack.includes("/extensions/trilora/");
    return graph;
  };
  Object.defineProperty(node, "graph", { configurable: true, get });
  await new Promise((done) => setTimeout(done, 1000));
  Object.defineProperty(node, "graph", { configurable: true, writable: true, value: graph });
  return asked;
}"""
INNER = "(id) => app.graph.getNodeById(id).subgraph._nodes.find((each) => each.type === 'LoadTriLoRA')"
RAN = "() => comfyAPI.api.api.dispatchEvent(new CustomEvent('execution_success', {detail: {prompt_id: 'none'}}))"


def test_cards_inside_a_subgraph_are_let_go_with_their_workflow(tab: Tab) -> None:
    """Nothing looks at them any more, and no run asks for what they said."""
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url) if "history?max_items=8" in request.url else None)
    tab.show(graph("cards-left"), "classic")
    inner = tab.page.evaluate_handle(INNER, tab.page.evaluate(ENCLOSE, 2))
    tab.page.wait_for_timeout(500)
    asked.clear()
    assert tab.page.evaluate(ASKED, inner) >= 2
    with tab.page.expect_request(lambda request: "history?max_items=8" in request.url):
        tab.page.evaluate(RAN)
    tab.page.wait_for_timeout(500)
    assert len(asked) == 1
    other = {**graph("cards-none"), "nodes": [], "links": []}
    tab.page.evaluate("graph => window.app.loadGraphData(graph)", other)
    tab.page.wait_for_function("window.app.graph._nodes.length === 0")
    tab.page.wait_for_timeout(500)
    asked.clear()
    assert tab.page.evaluate(ASKED, inner) == 0
    tab.page.evaluate(RAN)
    tab.page.wait_for_timeout(500)
    assert asked == []
    assert tab.errors == []


@pytest.mark.parametrize("mode", ["classic", "nodes 2.0"])
def test_the_text_below_a_node_is_no_markup(tab: Tab, server: Server, mode: str) -> None:
    """Front ends up to that of 0.14 put it into the page as HTML, before the card takes its place."""
    needs_nodes_2(server, mode != "classic")
    tab.show(graph(f"cards-text-{mode}"), mode)
    tab.set(4, "strength", 0.5 if mode == "classic" else 0.6)
    tab.set(2, "lora_name", HOSTILE)
    tab.page.evaluate(
        """() => { window.told = []; delete window.hacked;
             comfyAPI.api.api.addEventListener("progress_text", ({detail}) => told.push(detail.text)); }"""
    )
    tab.page.evaluate("() => app.queuePrompt(0)")
    tab.page.wait_for_function("() => told.some((text) => text.includes('onerror='))", timeout=90_000)
    tab.says(4, f'the adapter was trained on "{MARKUP}"')
    tab.page.wait_for_timeout(500)  # a picture that is not there fails meanwhile
    assert tab.page.evaluate("() => window.hacked") is None
    assert tab.errors == []


def test_after_a_reload_the_last_run_is_shown(tab: Tab) -> None:
    tab.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    tab.open()
    saved = graph("cards-classic")
    saved["nodes"][1]["widgets_values"] = [STYLE]
    tab.show(saved, "classic")
    tab.says(4, f"Keeps all {RANK} directions")
    tab.says(5, "Interference by block: most")
    assert tab.errors == []


def test_the_page_reads_architectures_as_the_core_does(tab: Tab) -> None:
    said = [
        "stable-diffusion-v1/lora",
        "SDXL_base_v1-0",
        "sd3",
        "flux-1-dev/lora",
        "flux1",
        "sd_v2_768_v",
        "wan2.1",
        "",
    ]
    entries = [{key: value} for value in said for key in ("trilora.architecture", "ss_base_model_version")]
    entries += [{"modelspec.architecture": "Chroma", "ss_base_model_version": "x"}, {"trilora.architecture": "sd15"}]
    path = "/extensions/trilora/lib/adapter_facts.js"
    found = tab.page.evaluate(
        "async ([path, all]) => { const facts = await import(path); return all.map(facts.architectureOf); }",
        [path, entries],
    )
    assert found == [guess_architecture([], metadata) for metadata in entries]
