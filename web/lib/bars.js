/** Small bar charts of plain elements, which follow the theme and any width. No side effects on import. */

import { element, fill, formatNumber } from "./dom.js";

export const BARS_CSS = `
.trilora-bars { display: flex; align-items: stretch; gap: 1px; min-height: 0; overflow: hidden; }
.trilora-bars > span {
  flex: 1 1 0; min-width: 1px; position: relative; background: var(--trilora-well); border-radius: 1px;
}
.trilora-bars i { position: absolute; inset: auto 0 0 0; display: block; border-radius: 1px; }
.trilora-bars .whole { background: var(--trilora-faint); }
.trilora-bars .part { background: var(--trilora-accent); }
.trilora-bars .part.warm { background: var(--trilora-warm); }
.trilora-bars .none { background: transparent; }
.trilora-names { display: flex; gap: 1px; font-size: 9px; line-height: 11px; color: var(--descrip-text, #999); }
.trilora-names > span { overflow: hidden; white-space: nowrap; min-width: 0; }
`;

/**
 * Draw bars into `parent`: {share, part, title, warm} each. `share` is the height from 0 to 1 (null: nothing is known
 * there); of it the first `part`, 0 to 1, counts and the rest is faint.
 */
export function drawBars(parent, bars) {
  fill(parent, ...bars.map(bar));
}

function bar({ share, part = 1, title = "", warm = false }) {
  const column = element("span", { title });
  if (share === null) {
    column.className = "none";
    return column;
  }
  const height = `${Math.max(2, Math.min(1, share) * 100)}%`;
  column.append(element("i", { class: "whole", style: `height: ${height}` }));
  if (part > 0) {
    const style = `height: ${height}; width: ${formatNumber(Math.min(1, part) * 100)}%`;
    column.append(element("i", { class: warm ? "part warm" : "part", style }));
  }
  return column;
}

/** Names below bars, one for each run of equal ones: "IN" under IN01 to IN08. */
export function drawNames(parent, names) {
  const runs = [];
  for (const name of names) {
    if (runs.at(-1)?.name === name) runs.at(-1).count += 1;
    else runs.push({ name, count: 1 });
  }
  const width = (count) => `flex: ${count} 1 ${count - 1}px`; // as wide as its bars with their gaps
  fill(parent, ...runs.map(({ name, count }) => element("span", { style: width(count), text: name })));
}
