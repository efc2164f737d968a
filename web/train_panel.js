/** The live panel in Train TriLoRA: gives each such node its panel and each panel the runs of its node. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chain } from "./lib/chain.js";
import { loadLanguage, t } from "./lib/language.js";
import { hideText } from "./lib/node_text.js";
import { createPanel } from "./lib/panel.js";
import { passOn } from "./lib/pass_on.js";
import { isOf, outputKey, rootOf, sweep } from "./lib/place.js";
import { createRuns } from "./lib/runs.js";

const NODE = "TrainTriLoRA";
const panels = new Map(); // node -> panel
const runs = createRuns(fetchJson, changed);
let asking = null; // the question for the list of runs that is under way

async function fetchJson(path) {
  const answer = await api.fetchApi(path, { cache: "no-store" });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function post(path, body) {
  try {
    const answer = await api.fetchApi(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (answer.ok) return { ok: true };
    const told = await answer.json().catch(() => ({}));
    return { ok: false, error: told.error || t("The server refused ({status}).", { status: answer.status }) };
  } catch {
    return { ok: false, error: t("The server does not answer.") };
  }
}

const addressOf = (run, number) => api.apiURL(`/trilora/runs/${encodeURIComponent(run.run)}/previews/${number}`);

/** Show a changed run on the nodes that it belongs to, unless they show a later one. */
function changed(run) {
  for (const [node, panel] of panels) {
    const shown = panel.run()?.run;
    // what is heard of an earlier run comes late: the answer to a question after a lost connection
    if (shown !== run.run && (!isOf(run, node, rootOf(app, node)) || runs.isBefore(run.run, shown))) continue;
    panel.show(run);
    hideText(node);
  }
}

function drop(node) {
  panels.get(node)?.dispose();
  panels.delete(node);
}

/** The newest run of a node that the server still knows, else what the front end kept of its last output. */
async function restore(node, panel) {
  asking ??= fetchJson("/trilora/runs")
    .catch(() => null)
    .finally(() => (asking = null));
  const listed = (await asking) ?? [];
  sweep(panels.keys(), app, drop);
  if (!panels.has(node)) return;
  const root = rootOf(app, node);
  const newest = listed.filter((run) => isOf(run, node, root)).pop();
  if (newest) {
    const known = runs.get(newest.run);
    if (known && runs.isWhole(newest.run)) panel.show(known);
    else await runs.load(newest.run);
    if (panel.run()) return;
  }
  takeKept(node, panel);
}

/** What the front end kept of a node's last output: of a server that was restarted since, that is all there is. */
function takeKept(node, panel) {
  const kept = app.nodeOutputs?.[outputKey(node, rootOf(app, node))]?.trilora?.[0];
  if (kept && !panel.run()) adopt(node, kept);
}

/** What a finished node put out: also that of a run which sent no events, since it was read from the disk. */
function adopt(node, payload) {
  const run = runs.adopt(payload);
  if (run) panels.get(node)?.show(run);
}

function addPanel(node) {
  const resized = () => {
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.graph?.setDirtyCanvas(true, true);
  };
  const panel = createPanel({ post, addressOf, resized });
  passOn(panel.root, () => app.canvas);
  const widget = node.addDOMWidget("training", "trilora_training", panel.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => panel.height(),
    getValue: () => "",
    setValue: () => undefined,
  });
  widget.serialize = false; // not among widgets_values
  panels.set(node, panel);
  chain(node, "onExecuted", (output) => output?.trilora?.[0] && adopt(node, output.trilora[0]));
  chain(node, "onRemoved", () => drop(node));
  // a node learns its id and its graph after this call
  setTimeout(() => restore(node, panel), 0);
}

app.registerExtension({
  name: "trilora.train_panel",
  init: () => loadLanguage(app, api),
  setup() {
    api.addEventListener("trilora.run", ({ detail }) => runs.take(detail));
    api.addEventListener("reconnected", () => runs.reload());
    let zoomed = 0;
    const afterZoom = () => {
      clearTimeout(zoomed);
      zoomed = setTimeout(() => panels.forEach((panel) => panel.checkZoom()), 150);
    };
    window.addEventListener("wheel", afterZoom, { passive: true, capture: true });
  },
  onNodeOutputsUpdated() {
    panels.forEach((panel, node) => takeKept(node, panel));
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addPanel(node);
  },
});
