/** Whether an adapter fits the model that it is put on, as far as it is known before and after a run. */

import { architectureTitle, shortText } from "./adapter_facts.js";
import { allNodes, modelFile, sourceOf, widgetValue } from "./graph_sources.js";
import { t } from "./language.js";
import { outputKey, rootOf } from "./place.js";

/** The Load TriLoRA node that feeds an Apply or Merge node and its file: {node, file}; file is null behind a link. */
export function adapterSource(node, name, host) {
  const source = sourceOf(node, name, rootOf(host.app, node))?.node ?? null;
  const file = source?.comfyClass === "LoadTriLoRA" ? widgetValue(source, "lora_name") : null;
  return { node: source, file };
}

/** The Apply TriLoRA nodes that a Load TriLoRA node feeds. */
export function appliedBy(node, host) {
  const applied = [...allNodes(rootOf(host.app, node))].filter((each) => each.comfyClass === "ApplyTriLoRA");
  return applied.filter((each) => adapterSource(each, "trilora", host).node === node);
}

/**
 * What an Apply node said in its last run, where the same file or node is still connected; else null. `source`: that
 * of adapterSource, `facts`: those of its file.
 */
export function lastRun(node, source, facts, host) {
  const run = host.results.of(node);
  if (!run) return null;
  const place = source.node && outputKey(source.node, rootOf(host.app, source.node));
  const now = JSON.stringify([place, source.file]);
  if (!origins.has(run)) origins.set(run, now);
  return origins.get(run) === now && sameFile(run, facts) ? run : null;
}

/** Whether a run was with the file that these facts are of, as far as both tell. */
export function sameFile(run, facts) {
  return !facts?.hash || !run.hash || run.hash === facts.hash;
}

/**
 * Why the adapter at an Apply node may not fit its model, "" where it does or nothing is known: what the last run
 * said, if it was with the same file and model, else whether the two files name different kinds of model.
 */
export function misfit(node, host) {
  const source = adapterSource(node, "trilora", host);
  const facts = host.files.get("loras", source.file);
  const model = modelFile(node, "model", rootOf(host.app, node));
  const run = lastRun(node, source, facts, host);
  if (typeof run?.problem === "string") {
    const now = JSON.stringify(model);
    if (!bases.has(run)) bases.set(run, now);
    if (bases.get(run) === now) return shortText(run.problem);
  }
  const adapter = facts?.architecture ?? "";
  const base = adapter && model ? (host.files.get(model.folder, model.file)?.architecture ?? "") : "";
  if (!adapter || !base || adapter === base) return "";
  const [its, models] = [adapter, base].map(architectureTitle);
  return t("This adapter is for {its}, the model is {models}: it cannot be used.", { its, models });
}

const origins = new WeakMap(); // the card of a run -> the node and file that it was of
const bases = new WeakMap(); // the card of a run -> the file of its model
