/** The tab "Loss": raw and smoothed loss, validation, drift on a scale of its own, the learning rate. */

import { formatNumber } from "./dom.js";
import { t } from "./language.js";
import { createPlot } from "./plot.js";
import { joined, nearest, reachOf, roomy, smoothed, spread } from "./series.js";
import { latest, lossLabel } from "./words.js";

const legend = () => [
  { key: "loss", name: t("loss"), colour: "loss", width: 2.5, title: t("Training loss, smoothed; faint: each step") },
  {
    key: "validation",
    name: t("validation"),
    colour: "validation",
    dash: [5, 3],
    mark: "circle",
    on: true,
    title: t("Loss on the pictures that are held back. Click to show or hide."),
  },
  {
    key: "drift",
    name: t("drift"),
    colour: "drift",
    dash: [2, 2],
    mark: "diamond",
    on: true,
    title: t("How much predictions on base prompts have changed; scale on the right. Click to show or hide."),
  },
  {
    key: "rate",
    name: t("learning rate"),
    colour: "rate",
    dash: [1, 2],
    on: false,
    title: t("Learning rate, from 0 to its highest. Click to show or hide."),
  },
];

/** The view of `run()`; `again()` asks for another drawing. */
export function createLossView(run, again) {
  const frameOf = (cursor, on) => (run()?.points.length ? frame(run(), cursor, on) : null);
  return createPlot(legend(), frameOf, t("The curve begins with the first step."), again);
}

function frame(run, cursor, on) {
  const { points } = run;
  const curve = smoothed(points, reachOf(points));
  const column = (index) =>
    run.measures.filter((entry) => isNumber(entry[index])).map((entry) => [entry[0], entry[index]]);
  const [validation, drift] = [column(1), column(2)];
  const losses = points.map((point) => point[1]);
  const low = joined(
    spread(losses, points.length > 50 ? 0.01 : 0),
    spread(curve.map((entry) => entry[1])),
    on.validation ? spread(validation.map((entry) => entry[1])) : null,
  );
  const first = Math.min(points[0][0], run.measures[0]?.[0] ?? Infinity);
  return {
    x: [first, Math.max(points.at(-1)[0], run.measures.at(-1)?.[0] ?? 0, first + 1)],
    left: { range: roomy(low ?? [0, 1]), name: t("loss") },
    right:
      drift.length && on.drift
        ? { range: roomy([0, spread(drift.map((e) => e[1]))[1]]), name: t("drift"), colour: "drift" }
        : null,
    curves: curvesOf(points, curve, validation, drift, on),
    drops: points.filter((point) => point[1] === null).map((point) => point[0]),
    dots: dotsOf(curve, cursor),
    entries: points,
    label: cursor === null ? lossLabel(run, curve) : cursorLabel(run, curve, cursor),
    values: valuesAt(run, curve, validation, drift, cursor ?? Infinity),
  };
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function curvesOf(points, curve, validation, drift, on) {
  const curves = [{ points, axis: "left", colour: "loss", width: 1, alpha: 0.35 }];
  const rates = points.map((point) => [point[0], point[2]]);
  const highest = Math.max(...rates.map((entry) => entry[1] ?? 0));
  if (on.rate && highest > 0) {
    curves.push({ points: rates, range: [0, highest * 1.08], colour: "rate", width: 1.2, dash: [1, 2] });
  }
  curves.push({ points: curve, axis: "left", colour: "loss", width: 2.2, mark: curve.length === 1 ? "circle" : null });
  if (on.validation && validation.length) {
    curves.push({ points: validation, axis: "left", colour: "validation", dash: [5, 3], mark: "circle" });
  }
  if (on.drift && drift.length)
    curves.push({ points: drift, axis: "right", colour: "drift", dash: [2, 2], mark: "diamond" });
  return curves;
}

function dotsOf(curve, cursor) {
  const at = cursor === null ? -1 : nearest(curve, cursor);
  return at < 0 ? [] : [{ y: curve[at][1], axis: "left", colour: "loss" }];
}

function valuesAt(run, curve, validation, drift, step) {
  const { points } = run;
  const point = points[nearest(points, Math.min(step, points.at(-1)[0]))];
  const smooth = latest(curve, 1, step) ?? curve[0];
  return {
    loss: smooth ? formatNumber(smooth[1]) + (step < Infinity ? ` (${t("raw {loss}", { loss: formatNumber(point[1]) })})` : "") : "–",
    validation: textOf(validation, step),
    drift: textOf(drift, step),
    rate: isNumber(point[2]) ? formatNumber(point[2]) : null,
  };
}

function textOf(entries, step) {
  const found = entries.length ? latest(entries, 1, step) : null;
  return found ? formatNumber(found[1]) : entries.length ? "–" : null;
}

function cursorLabel(run, curve, cursor) {
  const point = run.points[nearest(run.points, cursor)];
  const smooth = curve.length ? curve[nearest(curve, cursor)][1] : null;
  const [step, loss, rate] = [point[0], formatNumber(point[1]), formatNumber(point[2])];
  const told = { step, loss, smooth: formatNumber(smooth), rate };
  return point[1] === null
    ? t("Step {step}: left out, its loss was no number, smoothed {smooth}, learning rate {rate}", told)
    : t("Step {step}: loss {loss}, smoothed {smooth}, learning rate {rate}", told);
}
