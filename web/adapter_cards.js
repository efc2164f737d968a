/** Cards on nodes that load, apply and merge adapters: what a file is, how much of it is kept, where two collide. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { applyCard } from "./lib/apply_card.js";
import { CARD_CSS } from "./lib/card_views.js";
import { chain } from "./lib/chain.js";
import { addStyle } from "./lib/dom.js";
import { sameFile } from "./lib/fit.js";
import { loadLanguage } from "./lib/language.js";
import { loadCard } from "./lib/load_card.js";
import { mergeCard } from "./lib/merge_card.js";
import { MetadataStore } from "./lib/metadata_store.js";
import { hideText, leaveTextOut } from "./lib/node_text.js";
import { passOn } from "./lib/pass_on.js";
import { sweep } from "./lib/place.js";
import { Results } from "./lib/results.js";

const CARDS = { LoadTriLoRA: loadCard, ApplyTriLoRA: applyCard, MergeTriLoRA: mergeCard };
const MARGIN = 10; // pixels that the classic canvas leaves on each side of an element
const LOOK = 300; // milliseconds: values and links also change without any event, by undo or by another extension

const shown = new Map(); // node -> {card, key}, while it stands in a graph
const files = new MetadataStore((path) => api.fetchApi(path));
const results = new Results(app);
const host = { app, files, results };

/** Draw a card again if what it shows has changed. */
function look(node) {
  const entry = shown.get(node);
  if (!entry || !node.graph) return;
  if (entry.card.tellsAll && results.of(node)) hideText(node);
  else leaveTextOut(node);
  const key = entry.card.key();
  if (key === entry.key) return;
  entry.key = key;
  entry.card.draw();
}

const drop = (node) => shown.delete(node);

function lookAtAll() {
  if (document.hidden) return;
  sweep(shown.keys(), app, drop);
  for (const node of shown.keys()) look(node);
}

function addCard(node, make) {
  const card = make(node, host);
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => card.height + 2 * MARGIN };
  const widget = node.addDOMWidget("trilora_card", "trilora_card", card.root, options);
  passOn(card.root, () => app.canvas);
  widget.serialize = false; // not in the workflow; the option keeps it out of the prompt
  for (const each of node.widgets) {
    if (each !== widget) chain(each, "callback", () => look(node));
  }
  // the front end also makes nodes that it only copies from: those never come into a graph
  chain(node, "onAdded", () => shown.set(node, { card, key: null }));
  chain(node, "onRemoved", () => drop(node));
  chain(node, "onExecuted", (output) => {
    const run = results.keep(node, output);
    const known = run?.file ? files.get("loras", run.file) : null;
    if (known && !sameFile(run, known)) files.forget(); // it was written anew
    lookAtAll();
  });
}

async function restore() {
  sweep(shown.keys(), app, drop);
  try {
    if (shown.size && (await results.restore([...shown.keys()], (path) => api.fetchApi(path)))) lookAtAll();
  } catch (error) {
    console.warn("TriLoRA: the results of earlier runs could not be read:", error);
  }
}

app.registerExtension({
  name: "TriLoRA.AdapterCards",
  init: () => loadLanguage(app, api),
  setup() {
    addStyle("trilora-cards", CARD_CSS);
    files.onLoad = lookAtAll;
    setInterval(lookAtAll, LOOK);
    api.addEventListener("execution_success", restore);
  },
  nodeCreated(node) {
    const make = CARDS[node.comfyClass];
    if (make) addCard(node, make);
  },
  afterConfigureGraph: restore,
  refreshComboInNodes() {
    files.forget();
  },
});
