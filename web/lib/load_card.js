/** The card of Load TriLoRA: cover, base model, rank, trigger words, and whether the base fits. */

import { architectureTitle, factsOfCard, rankText } from "./adapter_facts.js";
import { cardElement, cover, line, warning, wordList } from "./card_views.js";
import { element, formatNumber } from "./dom.js";
import { appliedBy, misfit, sameFile } from "./fit.js";
import { widgetValue } from "./graph_sources.js";
import { t } from "./language.js";

const HEIGHT = 114;

export function loadCard(node, host) {
  const [picture, base, rank, words, problem] = [cover(), line(), line(true), wordList(), warning()];
  const side = element("div", { class: "side" }, base.root, rank.root, words.root);
  const top = element("div", { class: "top" }, picture.root, side);
  const root = cardElement(t("About the adapter"), HEIGHT, top, problem.root);
  const now = () => {
    const file = widgetValue(node, "lora_name");
    const said = host.files.get("loras", file);
    const problems = appliedBy(node, host).map((each) => misfit(each, host));
    return { file, said, run: ranWith(node, file, host), misfit: problems.find(Boolean) ?? "" };
  };
  const draw = () => {
    const { file, said, run, misfit: why } = now();
    const facts = merged(said, run);
    picture.set(facts?.cover ?? "");
    base.set(baseLine(facts, file, said), facts?.base);
    rank.set(...rankLine(facts));
    words.set(facts?.words ?? [], facts ? t("No trigger words named") : "");
    problem.set(why);
  };
  const key = () => {
    const { file, said, run, misfit: why } = now();
    return JSON.stringify([file, said === undefined, said?.hash, Boolean(said), run && host.results.count, why]);
  };
  return { root, height: HEIGHT, key, draw };
}

/** What the last run said, if it was with this file; with any file where a link names it. */
function ranWith(node, file, host) {
  const run = host.results.of(node);
  return run && (file === null || run.file === file) ? run : null;
}

/** What the run saw, which has looked at the layers too, with the file's cover; the file's own words without a run. */
function merged(said, run) {
  if (!run || (said && !sameFile(run, said))) return said ?? null;
  return { ...factsOfCard(run), cover: said?.cover ?? "" };
}

function baseLine(facts, file, said) {
  if (facts) {
    const title = architectureTitle(facts.architecture);
    const told = facts.base && title && facts.base !== title ? `${facts.base} (${title})` : facts.base || title;
    return told ? t("Base: {told}", { told }) : t("Base: not said");
  }
  if (said === undefined) return "…";
  if (file === null) return t("The file comes over a link.");
  return file.endsWith(".safetensors") ? t("This file tells nothing before it has run.") : t("No file chosen.");
}

/** [line, its longer form for the tooltip]. */
function rankLine(facts) {
  if (!facts?.rank) return ["", ""];
  const [rank, effective] = [rankText(facts.rank), formatNumber(facts.effective)];
  const text =
    facts.effective === null ? t("Rank {rank}", { rank }) : t("Rank {rank}, effective {effective}", { rank, effective });
  return [text, facts.layers ? `${text} (${t("layers: {count}", { count: facts.layers })})` : text];
}
