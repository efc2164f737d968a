/** A chart with its legend: the legend names each curve by colour and form, and reads out values at the cursor. */

import { drawChart } from "./chart.js";
import { element, fill, formatCount, setText, svg } from "./dom.js";
import { t } from "./language.js";
import { nearest } from "./series.js";

/**
 * Make a chart; `again()` is called when it wants to be drawn. `frameOf(cursor, on)` gives a frame of chart.js and
 * besides: entries ([[step]], where the cursor may stand), label (for screen readers), values ({key: text}), or null
 * while there is nothing to draw. legend: [{key, name, colour, dash, mark, width, title, on}]; an entry with `on`
 * (true or false) is a switch of that curve. Gives {root, draw(), canvas}.
 */
export function createPlot(legend, frameOf, empty, again) {
  const on = Object.fromEntries(legend.map((entry) => [entry.key, entry.on ?? true]));
  let cursor = null;
  let last = null; // the frame and the box that were drawn last
  const items = legend.map((entry) => legendItem(entry, on, again));
  const step = element("span", { class: "tl-at" });
  const canvas = element("canvas", { class: "tl-canvas", role: "img", tabindex: 0 });
  const nothing = element("div", { class: "tl-empty", text: empty });
  const root = element(
    "div",
    { class: "tl-plot" },
    element("div", { class: "tl-legend" }, ...items.map((item) => item.root), step),
    element("div", { class: "tl-frame" }, canvas, nothing),
  );
  const put = (at) => {
    if (at === cursor) return;
    cursor = at;
    again();
  };
  listen(
    canvas,
    () => last,
    () => cursor,
    put,
  );

  function draw() {
    const frame = frameOf(cursor, on);
    nothing.hidden = frame !== null;
    canvas.hidden = frame === null;
    setText(step, frame && cursor !== null ? t("step {step}", { step: formatCount(cursor) }) : "");
    items.forEach((item, index) => item.show(frame?.values[legend[index].key]));
    if (frame === null) return;
    canvas.setAttribute("aria-label", frame.label);
    last = { frame, box: drawChart(canvas, { ...frame, cursor }) };
  }

  return { root, draw, canvas };
}

/** One entry of the legend: swatch, name and value; hidden while it has no value. */
function legendItem(entry, on, again) {
  const value = element("b");
  const inner = [swatch(entry), element("span", { text: entry.name }), value];
  const root =
    entry.on === undefined
      ? element("span", { class: "tl-key", title: entry.title }, ...inner)
      : element("button", { class: "tl-key", type: "button", title: entry.title, "aria-pressed": on[entry.key] });
  if (entry.on !== undefined) {
    fill(root, ...inner);
    root.addEventListener("click", () => {
      on[entry.key] = !on[entry.key];
      root.setAttribute("aria-pressed", String(on[entry.key]));
      again();
    });
  }
  return {
    root,
    show(text) {
      root.hidden = text === undefined || text === null;
      setText(value, text ?? "");
    },
  };
}

function swatch({ colour, dash, mark, width }) {
  const ink = `var(--tl-${colour})`;
  const line = { x1: 1, y1: 5, x2: 19, y2: 5, stroke: ink, "stroke-width": width ?? 1.5 };
  const shapes = {
    circle: () => svg("circle", { cx: 10, cy: 5, r: 3, fill: ink }),
    square: () => svg("rect", { x: 7, y: 2, width: 6, height: 6, fill: ink }),
    diamond: () => svg("path", { d: "M10 1 14 5 10 9 6 5Z", fill: ink }),
  };
  return svg(
    "svg",
    { viewBox: "0 0 20 10", width: 20, height: 10, "aria-hidden": "true" },
    svg("line", { ...line, "stroke-dasharray": dash?.join(" ") }),
    mark ? shapes[mark]() : null,
  );
}

/** The cursor: it follows the pointer, and the arrow keys while the chart has the focus. */
function listen(canvas, drawn, cursor, put) {
  canvas.addEventListener("pointermove", (event) => {
    const now = drawn();
    if (!now) return;
    const { frame, box } = now;
    const share = (event.offsetX - box.left) / (box.right - box.left || 1);
    const at = nearest(frame.entries, frame.x[0] + share * (frame.x[1] - frame.x[0]));
    put(at < 0 ? null : frame.entries[at][0]);
  });
  canvas.addEventListener("pointerleave", () => put(null));
  canvas.addEventListener("blur", () => put(null));
  canvas.addEventListener("keydown", (event) => {
    const entries = drawn()?.frame.entries ?? [];
    if (!entries.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const end = entries.length - 1;
    const here = cursor() === null ? end : nearest(entries, cursor());
    const far = Math.max(1, Math.round(end / 10));
    const goals = {
      ArrowLeft: here - 1,
      ArrowRight: here + 1,
      PageUp: here - far,
      PageDown: here + far,
      Home: 0,
      End: end,
    };
    if (event.key === "Escape" && cursor() !== null) put(null);
    else if (event.key in goals) put(entries[Math.min(end, Math.max(0, goals[event.key]))][0]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
