/** The card of Merge TriLoRA: in which blocks the two adapters meet, and how much of each block is kept. */

import { list, number, shortText } from "./adapter_facts.js";
import { drawBars, drawNames } from "./bars.js";
import { cardElement, line, warning } from "./card_views.js";
import { element } from "./dom.js";
import { t } from "./language.js";

const HEIGHT = 152;
const TOPS = [0.25, 0.5]; // of the chart of interference, which is seldom near 1
const CHART = "flex: 1 1 26px; min-height: 20px";

export function mergeCard(node, host) {
  const [met, held] = [line(true), line(true)];
  const [meets, keeps] = [0, 1].map(() => element("div", { class: "trilora-bars", style: CHART, role: "img" }));
  const names = element("div", { class: "trilora-names", "aria-hidden": "true" });
  const problem = warning();
  const parts = [met.root, meets, held.root, keeps, names, problem.root];
  const root = cardElement(t("Interference of the two adapters"), HEIGHT, ...parts);
  const draw = () => {
    const report = host.results.of(node)?.merge ?? null;
    const blocks = list(report?.blocks).filter((block) => typeof block === "object" && block !== null);
    drawRow(meets, met, blocks, "interference", t("Interference by block"), true);
    drawRow(keeps, held, blocks, "energy_kept", t("Energy kept by block"), false);
    drawNames(names, blocks.map((block) => shortText(block.name).replace(/[\d ]+$/, "")));
    problem.set(list(report?.warnings).map(shortText).join("\n"));
  };
  const key = () => JSON.stringify([host.results.of(node) !== null, host.results.count]);
  return { root, height: HEIGHT, key, draw };
}

/** One row of bars with its line: the largest value for interference, the smallest for what is kept. */
function drawRow(bars, told, blocks, field, title, largest) {
  const values = blocks.map((block) => number(block[field]));
  const known = values.filter((value) => value !== null);
  if (!known.length) {
    const empty = blocks.length ? t("no layer in both") : t("after a run");
    drawBars(bars, Array.from({ length: 16 }, () => ({ share: 0, part: 0 })));
    told.set(`${title}: ${empty}`);
    bars.setAttribute("aria-label", `${title}: ${empty}`);
    return;
  }
  const extreme = largest ? Math.max(...known) : Math.min(...known);
  const top = largest ? (TOPS.find((each) => extreme <= each) ?? 1) : 1;
  const where = shortText(blocks[values.indexOf(extreme)].name);
  const at = { share: percent(extreme), where };
  const named = largest ? t("most {share} in {where}", at) : t("least {share} in {where}", at);
  const text = known.length > 1 ? named : at.share;
  told.set(`${title}: ${text}`, `${title}: ${text}. ${t("The chart's top is {top}.", { top: percent(top) })}`);
  bars.setAttribute("aria-label", `${title}: ${text}`);
  const share = (index) => (values[index] === null ? t("in one adapter only") : percent(values[index]));
  const bar = (value, index) => ({
    share: value === null ? null : value / top,
    title: `${shortText(blocks[index].name)}: ${share(index)}`,
    warm: largest,
  });
  drawBars(bars, values.map(bar));
}

function percent(share) {
  return `${share < 0.0995 ? Number((share * 100).toFixed(1)) : Math.round(share * 100)}%`;
}
