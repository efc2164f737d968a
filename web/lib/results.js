/** What the nodes said of adapters in their last run, by node. No side effects on import. */

import { list } from "./adapter_facts.js";
import { allNodes, executionIds, widgetValue } from "./graph_sources.js";
import { outputKey, rootOf } from "./place.js";

const KEY = "trilora_adapter"; // as in nodes/sockets.py
const HISTORY = "/history?max_items=8";

export class Results {
  /** `app`: the front end, which keeps the outputs of nodes when the user goes to another workflow and back. */
  constructor(app) {
    this.app = app;
    this.cards = new WeakMap(); // node -> the card of its `ui` output
    this.count = 0;
  }

  /** Keep what a node's `ui` output says and give it; null for a cached node that says nothing: the last word stays. */
  keep(node, output) {
    const [card] = list(output?.[KEY]);
    if (typeof card !== "object" || card === null) return null;
    this.cards.set(node, card);
    this.count += 1;
    return card;
  }

  /** The last word of a node, or null. */
  of(node) {
    if (!this.cards.has(node)) this.keep(node, this.outputs()[outputKey(node, rootOf(this.app, node))]);
    return this.cards.get(node) ?? null;
  }

  /**
   * Look for the last word of nodes in the host's history of this workflow, that of a file in every other's: after a
   * reload of the page, and where a run was answered from the cache, which tells nothing of the nodes that it passed
   * over. True if one was found.
   */
  async restore(nodes, fetch) {
    const root = rootOf(this.app);
    if (!root?.id || nodes.every((node) => this.of(node))) return false;
    const response = await fetch(HISTORY);
    const runs = response.ok ? Object.values(await response.json()).reverse() : [];
    const before = this.count;
    for (const { prompt, outputs } of runs) {
      if (prompt?.[3]?.extra_pnginfo?.workflow?.id !== root.id) continue;
      for (const [id, node] of executionIds(root)) {
        if (this.of(node) || prompt[2]?.[id]?.class_type !== node.comfyClass) continue;
        const card = this.keep(node, outputs?.[id]);
        if (card) delete card.problem; // it may have been another model
      }
    }
    const told = runs.flatMap(({ outputs }) => Object.values(outputs ?? {}).flatMap((output) => list(output?.[KEY])));
    for (const node of allNodes(root)) {
      const file = node.comfyClass === "LoadTriLoRA" && !this.of(node) ? widgetValue(node, "lora_name") : null;
      if (file) this.keep(node, { [KEY]: told.filter((card) => card?.file === file) });
    }
    return this.count > before;
  }

  outputs() {
    return this.app.nodeOutputs ?? {};
  }
}
