/** What the cards of adapter nodes are put together from. Texts of files go into textContent only. No side effects. */

import { BARS_CSS } from "./bars.js";
import { SLIDER_CSS } from "./detent_slider.js";
import { element, fill, setText } from "./dom.js";
import { t } from "./language.js";

export const CARD_CSS = `
.trilora-card {
  --trilora-card: color-mix(in srgb, var(--comfy-input-bg, #222) 45%, transparent); --trilora-accent: #3b8fe8; --trilora-warm: #d9772b;
  --trilora-well: color-mix(in srgb, var(--input-text, #ddd) 6%, transparent);
  --trilora-faint: color-mix(in srgb, var(--input-text, #ddd) 28%, transparent);
  display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%; padding: 6px 8px;
  overflow: hidden; border-radius: 8px; border: 1px solid var(--border-color, #4e4e4e);
  background: var(--trilora-card); color: var(--input-text, #ddd);
  font: 11px/14px Inter, Arial, sans-serif; text-align: left; cursor: default;
}
.trilora-card .top { display: flex; gap: 8px; flex: 1 1 0; min-height: 0; overflow: hidden; }
.trilora-card .cover {
  flex: none; height: 100%; max-width: 36%; aspect-ratio: 1; object-fit: cover; border-radius: 5px;
  background: var(--trilora-well);
}
.trilora-card .side { display: flex; flex-direction: column; gap: 2px; flex: 1 1 0; min-width: 0;
  min-height: 0; overflow: hidden; }
.trilora-card .line { flex: none; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.trilora-card .quiet { color: var(--descrip-text, #999); }
.trilora-card .words { flex: 1 1 0; min-height: 0; overflow-y: auto; display: flex; flex-wrap: wrap; gap: 3px;
  align-content: flex-start; scrollbar-width: thin; }
.trilora-card .words button {
  max-width: 100%; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; cursor: copy; margin: 0;
  font: inherit; line-height: 14px; padding: 1px 7px; border-radius: 9px; color: inherit;
  border: 1px solid var(--border-color, #4e4e4e); background: var(--comfy-menu-bg, #353535);
}
.trilora-card .words button:hover { border-color: var(--trilora-accent); }
.trilora-card .words button:focus-visible { outline: 2px solid var(--trilora-accent); outline-offset: -1px; }
.trilora-card .warning {
  flex: none; max-height: 28px; overflow-y: auto; padding-left: 7px; border-left: 3px solid var(--trilora-warm);
  overflow-wrap: anywhere; scrollbar-width: thin;
}
.trilora-card [hidden] { display: none; }
${BARS_CSS}${SLIDER_CSS}`;

const TOLD = 1600; // milliseconds

/** The outer element of a card, `height` pixels high or more; `label` names it for assistive software. */
export function cardElement(label, height, ...children) {
  const style = `min-height: ${height}px`;
  const card = element("div", { class: "trilora-card", role: "group", "aria-label": label, style }, ...children);
  card.addEventListener("keydown", (event) => {
    // Enter and Space press the button, and not whatever the canvas has for them
    if (event.target.closest("button") && [" ", "Enter"].includes(event.key)) event.stopPropagation();
  });
  return card;
}

/** A single line: {root, set(text, title)}. */
export function line(quiet = false) {
  const root = element("div", { class: quiet ? "line quiet" : "line" });
  const set = (text, title = text) => {
    setText(root, text);
    root.title = title;
  };
  return { root, set };
}

/** Words that a click copies, below a line that says so: {root, set(words, empty)}; `empty` where there are none. */
export function wordList() {
  const label = element("div", { class: "line quiet", "aria-live": "polite" });
  const list = element("div", { class: "words" });
  const root = element("div", { class: "side" }, label, list);
  let shown = null;
  let title = "";
  let timer = 0;
  const tell = (text) => {
    clearTimeout(timer);
    setText(label, text);
    timer = setTimeout(() => setText(label, title), TOLD);
  };
  const button = (word) => {
    const click = async () => tell((await copy(word)) ? t("Copied: {word}", { word }) : t("The browser does not allow to copy"));
    return element("button", { type: "button", title: t("Copy: {word}", { word }), text: word, on: { click } });
  };
  const set = (words, empty = "") => {
    const key = JSON.stringify([words, empty]);
    if (key === shown) return;
    shown = key;
    title = words.length ? t("Trigger words: click to copy") : empty;
    clearTimeout(timer);
    setText(label, title);
    fill(list, ...words.map(button));
  };
  return { root, set };
}

/** A cover that hides itself where there is none or it cannot be drawn: {root, set(url)}. */
export function cover() {
  const root = element("img", { class: "cover", alt: t("Cover of the adapter"), draggable: "false", hidden: true });
  root.addEventListener("error", () => (root.hidden = true));
  const set = (url) => {
    if (root.getAttribute("src") === (url || null)) return;
    root.hidden = !url;
    if (url) root.src = url;
    else root.removeAttribute("src");
  };
  return { root, set };
}

/** A text that stands out, hidden while it is empty: {root, set(text)}. */
export function warning() {
  const root = element("div", { class: "warning", role: "status", hidden: true, tabindex: "0" });
  const set = (text) => {
    root.hidden = !text;
    root.title = text;
    setText(root, text);
  };
  return { root, set };
}

/** Put a text on the clipboard; on pages without https only the old way is allowed. True when done. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { style: "position: fixed; opacity: 0", text });
    const before = document.activeElement;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus?.();
    return done;
  }
}
