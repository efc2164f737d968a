/** The tab "Spectrum": the mean singular values of the layers over the steps, and the effective rank. */

import { formatCount, formatNumber } from "./dom.js";
import { t } from "./language.js";
import { createPlot } from "./plot.js";
import { nearest, roomy, spread } from "./series.js";

const legend = () => [
  {
    key: "values",
    name: t("singular values"),
    colour: "loss",
    width: 2,
    title: t("Mean over the layers, each as a share of its layer's; largest first, from strong to faint"),
  },
  {
    key: "rank",
    name: t("effective rank"),
    colour: "validation",
    dash: [5, 3],
    mark: "square",
    on: true,
    title: t("How many directions the adapter really uses; scale on the right. Click to show or hide."),
  },
  { key: "norm", name: t("norm"), colour: "dim", title: t("Size of the whole change") },
];

/** The view of `run()`; `again()` asks for another drawing. */
export function createSpectrumView(run, again) {
  const frameOf = (cursor, on) => (run()?.spectra.length ? frame(run().spectra, cursor, on) : null);
  return createPlot(legend(), frameOf, t("The first look at the singular values is still to come."), again);
}

function frame(spectra, cursor, on) {
  const steps = spectra.map((look) => [look.step]);
  const here = spectra[cursor === null ? spectra.length - 1 : nearest(steps, cursor)];
  const ranks = spectra.map((look) => [look.step, look.effective_rank]);
  return {
    x: [spectra[0].step, Math.max(spectra.at(-1).step, spectra[0].step + 1)],
    left: { range: roomy([0, spread(spectra.flatMap((look) => look.values))?.[1] ?? 1]), name: t("relative size") },
    right: on.rank
      ? { range: roomy([0, spread(ranks.map((e) => e[1]))?.[1] ?? 1]), name: t("eff. rank"), colour: "validation" }
      : null,
    curves: [...lines(spectra), ...(on.rank ? [rankCurve(ranks)] : [])],
    dots: [],
    entries: steps,
    label: labelOf(here),
    values: { values: topOf(here), rank: formatNumber(here.effective_rank), norm: formatNumber(here.norm) },
  };
}

function lines(spectra) {
  const count = Math.max(...spectra.map((look) => look.values.length));
  return Array.from({ length: count }, (_, index) => ({
    points: spectra.map((look) => [look.step, look.values[index] ?? null]),
    axis: "left",
    colour: "loss",
    width: index === 0 ? 2 : 1.2,
    alpha: 1 - 0.75 * (index / Math.max(1, count - 1)),
    mark: spectra.length === 1 ? "circle" : null,
  }));
}

function rankCurve(ranks) {
  return { points: ranks, axis: "right", colour: "validation", dash: [5, 3], mark: "square" };
}

function topOf(look) {
  const shown = look.values.slice(0, 3).map((value) => formatNumber(value, 2));
  return shown.join(" ") + (look.values.length > 3 ? " …" : "");
}

function labelOf(look) {
  return t("Singular values at step {step}, largest first: {values}; effective rank {rank}, norm {norm}", {
    step: formatCount(look.step),
    values: look.values
      .slice(0, 8)
      .map((value) => formatNumber(value, 2))
      .join(", "),
    rank: formatNumber(look.effective_rank),
    norm: formatNumber(look.norm),
  });
}
