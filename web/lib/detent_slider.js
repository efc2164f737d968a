/** A slider with places where it rests. No side effects on import. */

import { element } from "./dom.js";

const STEP = 0.05; // of the arrow keys
const FINE = 0.01; // with Shift, and of the pointer
const LEAP = 0.25; // Page Up and Page Down

export const SLIDER_CSS = `
.trilora-slider { position: relative; height: 30px; flex: none; --thumb: 14px; }
.trilora-slider input {
  appearance: none; -webkit-appearance: none; position: absolute; inset: 0 0 auto 0; width: 100%; height: 18px;
  margin: 0; padding: 0; background: transparent; cursor: pointer; border: 0; box-shadow: none;
}
.trilora-slider input::-webkit-slider-runnable-track {
  height: 4px; border-radius: 2px; background: var(--border-color, #4e4e4e);
}
.trilora-slider input::-moz-range-track { height: 4px; border-radius: 2px; background: var(--border-color, #4e4e4e); }
.trilora-slider input::-webkit-slider-thumb {
  -webkit-appearance: none; width: var(--thumb); height: var(--thumb); margin-top: -5px; border-radius: 50%;
  background: var(--trilora-accent); border: 2px solid var(--trilora-card); box-sizing: border-box;
}
.trilora-slider input::-moz-range-thumb {
  width: var(--thumb); height: var(--thumb); border-radius: 50%; box-sizing: border-box;
  background: var(--trilora-accent); border: 2px solid var(--trilora-card);
}
.trilora-slider input:focus-visible {
  outline: 2px solid var(--trilora-accent); outline-offset: 1px; border-radius: 4px;
}
.trilora-slider input:disabled { opacity: 0.4; cursor: default; }
.trilora-slider .detent {
  position: absolute; top: 3px; width: 20px; margin-left: -10px; text-align: center; pointer-events: none;
  font-size: 10px; line-height: 10px; color: var(--descrip-text, #999);
}
.trilora-slider .detent::before {
  content: ""; display: block; width: 2px; height: 12px; margin: 0 auto 2px; background: var(--descrip-text, #999);
}
`;

/**
 * A slider from `min` to `max` that rests at `detents` while it is dragged within `pull` of them; arrow keys go by
 * 0.05, with Shift by 0.01. `change(value)` hears of what the user does. Returns {root, input, set(value, disabled)}.
 */
export function detentSlider({ label, min, max, detents, pull, change }) {
  let dragging = false;
  let value = min;
  const input = element("input", { type: "range", min, max, step: FINE, "aria-label": label, title: label });
  const give = (wanted) => {
    value = tidy(Math.min(max, Math.max(min, wanted)));
    show();
    change(value);
  };
  const show = () => {
    input.value = String(value);
    input.setAttribute("aria-valuetext", String(value));
  };
  input.addEventListener("pointerdown", () => {
    dragging = true;
    const stop = () => {
      dragging = false;
      for (const kind of ["pointerup", "pointercancel"]) window.removeEventListener(kind, stop, true);
    };
    for (const kind of ["pointerup", "pointercancel"]) window.addEventListener(kind, stop, true);
  });
  input.addEventListener("input", () => {
    const wanted = Number(input.value);
    const rest = dragging ? detents.find((place) => Math.abs(wanted - place) <= pull) : undefined;
    give(rest ?? wanted);
  });
  input.addEventListener("keydown", (event) => {
    const wanted = afterKey(event, value, min, max);
    if (wanted === null) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas moves nodes by the arrow keys
    give(wanted);
  });
  const marks = detents.map((place) => {
    const share = (place - min) / (max - min);
    const left = `calc(var(--thumb) / 2 + (100% - var(--thumb)) * ${share})`;
    return element("span", { class: "detent", style: `left: ${left}`, "aria-hidden": "true", text: String(place) });
  });
  const root = element("div", { class: "trilora-slider" }, ...marks, input);
  const set = (wanted, disabled = false) => {
    if (input.disabled !== disabled) input.disabled = disabled;
    if (wanted === value || typeof wanted !== "number") return;
    value = wanted; // it may lie beyond the slider's ends
    show();
  };
  return { root, input, set };
}

/** What a key asks for, null for a key that asks for nothing; arrows go to the next multiple of their step. */
function afterKey(event, value, min, max) {
  const step = event.shiftKey ? FINE : STEP;
  const up = (by) => Math.floor(value / by + 1e-6) * by + by;
  const down = (by) => Math.ceil(value / by - 1e-6) * by - by;
  const keys = {
    ArrowRight: () => up(step),
    ArrowUp: () => up(step),
    ArrowLeft: () => down(step),
    ArrowDown: () => down(step),
    PageUp: () => up(LEAP),
    PageDown: () => down(LEAP),
    Home: () => min,
    End: () => max,
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return null;
  return keys[event.key]();
}

function tidy(value) {
  return Math.round(value * 100) / 100 + 0; // no -0
}
