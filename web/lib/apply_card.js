/** The card of Apply TriLoRA: a strength that rests at 0 and 1, the kept part of the spectrum, trigger words. */

import { factsOfCard, list, number } from "./adapter_facts.js";
import { drawBars } from "./bars.js";
import { cardElement, line, warning, wordList } from "./card_views.js";
import { detentSlider } from "./detent_slider.js";
import { element, formatNumber } from "./dom.js";
import { adapterSource, lastRun, misfit, sameFile } from "./fit.js";
import { isLinked, widgetValue } from "./graph_sources.js";
import { t } from "./language.js";

const HEIGHT = 172;
const PULL = 0.06; // of strength: a typed 0.97 stays, for only the slider rests

export function applyCard(node, host) {
  const slider = detentSlider({
    label: t("Strength (rests at 0 and 1)"),
    min: -1,
    max: 2,
    detents: [0, 1],
    pull: PULL,
    change: (value) => setWidget(node, "strength", value, host.app),
  });
  const bars = element("div", { class: "trilora-bars", style: "flex: 0 0 36px", role: "img" });
  const [kept, words, problem] = [line(true), wordList(), warning()];
  const root = cardElement(t("Strength and kept part"), HEIGHT, slider.root, bars, kept.root, words.root, problem.root);
  const now = () => {
    const strength = widgetValue(node, "strength");
    const cut = [widgetValue(node, "keep_rank"), widgetValue(node, "keep_energy")];
    return { strength, cut, ...adapter(node, host), why: misfit(node, host) };
  };
  const draw = () => {
    const { strength, cut, facts, run, why } = now();
    slider.set(strength ?? 1, strength === null || isLinked(node, "strength"));
    drawSpectrum(bars, kept, run, cut);
    words.set(facts?.words ?? [], facts ? t("No trigger words named") : t("Trigger words: after a run"));
    problem.set(why);
  };
  const key = () => {
    const { strength, cut, facts, run, why } = now();
    return JSON.stringify([strength, cut, facts?.words, run && [run.hash, host.results.count], why]);
  };
  return { root, height: HEIGHT, tellsAll: true, key, draw };
}

/** {facts, run}: what is known of the adapter that comes in now, and the numbers of a run that are still of it. */
function adapter(node, host) {
  const source = adapterSource(node, "trilora", host);
  const said = host.files.get("loras", source.file) ?? null;
  const seen = source.node && host.results.of(source.node);
  const same = seen && (seen.file ?? null) === source.file && sameFile(seen, said);
  const run = lastRun(node, source, said, host) ?? (same ? seen : null);
  return { facts: said ?? (run && factsOfCard(run)), run };
}

/** The mean spectrum with the part that keep_rank and keep_energy keep. */
function drawSpectrum(bars, told, run, [rank, energy]) {
  const values = list(run?.spectrum).map(number).filter((value) => value !== null);
  if (!values.length) {
    drawBars(bars, Array.from({ length: 16 }, () => ({ share: 0, part: 0 })));
    bars.setAttribute("aria-label", t("Spectrum: after a run"));
    told.set(t("Spectrum: after a run"));
    return;
  }
  const most = number(list(run.rank)[1]) ?? values.length;
  const kept = keptOf(run, rank, energy, most);
  const name = (index) =>
    t("Direction {index}: {share} of the largest singular value", {
      index: index + 1,
      share: formatNumber(values[index]),
    });
  drawBars(
    bars,
    values.map((share, index) => ({ share, part: Math.min(1, Math.max(0, kept - index)), title: name(index) })),
  );
  const all = kept >= (number(list(run.kept).at(-1)) ?? most);
  const counts = { kept: formatNumber(kept), all: formatNumber(most), drawn: values.length };
  const parts = [
    all ? t("Keeps all {all} directions", counts) : t("Keeps {kept} of {all} directions (mean of layers)", counts),
    values.length < most ? t("the first {drawn} are drawn", counts) : "",
  ];
  const text = parts.filter(Boolean).join("; ");
  told.set(text);
  bars.setAttribute("aria-label", `${t("Mean spectrum of the layers")}. ${text}`);
}

/** How many directions a layer keeps on average; that of both widgets together is at most that of either. */
function keptOf(run, rank, energy, most) {
  const table = list(run.kept);
  const place = Math.min(table.length, Math.max(1, Math.round((energy ?? 1) * table.length))) - 1;
  const byEnergy = number(table[place]) ?? most;
  return rank > 0 ? Math.min(rank, byEnergy) : byEnergy;
}

function setWidget(node, name, value, app) {
  const widget = node.widgets.find((each) => each.name === name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}
