/** Previews at full size over the whole page: one step, or two side by side. */

import { element, fill, formatCount } from "./dom.js";

/**
 * Show one of `previews` ({step, pictures}) and, unless null, another beside it: `a` and `b` are the numbers of their
 * first pictures, `index` says which of a step's pictures. Left and right arrows move the last one shown from step to
 * step, up and down from picture to picture; Escape closes and gives the focus back to `back`.
 */
export function openOverlay({ previews, a, b, index, addressOf, back }) {
  const placeOf = (number) => previews.findIndex((entry) => entry.pictures[0] === number);
  const at = { a: placeOf(a), b: b === null ? -1 : placeOf(b), index };
  const sides = element("div", { class: "tl-sides" });
  const chooseA = stepChoice(previews, "Step", (value) => move({ a: value }));
  const chooseB = stepChoice(previews, "Compare with", (value) => move({ b: value }), "– nothing –");
  const close = element("button", { type: "button", class: "tl-button", text: "Close", title: "Close (Escape)" });
  const bar = element("div", { class: "tl-bar" }, chooseA.root, chooseB.root, close);
  const said = { role: "dialog", "aria-modal": "true", "aria-label": "Previews" };
  const root = element("div", { class: "tl-overlay tl-colours", ...said }, bar, sides);

  function move(change) {
    Object.assign(at, change);
    chooseA.select(at.a);
    chooseB.select(at.b);
    const two = at.b >= 0;
    const picture = (place, letter) => side(previews[place], at.index, two ? `${letter}: ` : "", addressOf);
    fill(sides, picture(at.a, "A"), two ? picture(at.b, "B") : null);
  }

  function step(by) {
    const which = at.b >= 0 ? "b" : "a";
    move({ [which]: bounded(at[which] + by, previews.length) });
  }

  function shut() {
    window.removeEventListener("keydown", onKey, true);
    root.remove();
    if (back?.isConnected) back.focus();
  }

  const keys = {
    Escape: shut,
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => move({ index: bounded(at.index - 1, previews[at.a].pictures.length) }),
    ArrowDown: () => move({ index: bounded(at.index + 1, previews[at.a].pictures.length) }),
  };

  function onKey(event) {
    event.stopPropagation(); // the graph below must not hear it
    if (event.key === "Tab") keepFocus(event, root);
    else if (event.key === "Escape" || (event.key in keys && document.activeElement?.tagName !== "SELECT"))
      keys[event.key]();
    else return;
    event.preventDefault();
  }

  close.addEventListener("click", shut);
  root.addEventListener("click", (event) => (event.target === root || event.target === sides) && shut());
  window.addEventListener("keydown", onKey, true);
  document.body.append(root);
  move({});
  close.focus();
}

const bounded = (value, count) => Math.min(count - 1, Math.max(0, value));

/** One picture of a step, with its caption. */
function side(entry, index, letter, addressOf) {
  const place = bounded(index, entry.pictures.length);
  const which = entry.pictures.length > 1 ? `, picture ${place + 1} of ${entry.pictures.length}` : "";
  const name = `${letter}step ${formatCount(entry.step)}${which}`;
  const image = element("img", { src: addressOf(entry.pictures[place]), alt: `Preview at ${name}` });
  return element("figure", {}, image, element("figcaption", { text: name }));
}

/** A labelled choice of a step; -1 is `none`, where that may be chosen. */
function stepChoice(previews, name, chosen, none = null) {
  const named = (entry, index) => element("option", { value: index, text: `step ${formatCount(entry.step)}` });
  const options = previews.map(named);
  if (none) options.unshift(element("option", { value: -1, text: none }));
  const select = element("select", {}, ...options);
  select.addEventListener("change", () => chosen(Number(select.value)));
  return {
    root: element("label", {}, element("span", { text: name }), select),
    select: (value) => (select.value = String(value)),
  };
}

/** Tab goes round within the overlay. */
function keepFocus(event, root) {
  const stops = [...root.querySelectorAll("select, button")];
  const here = stops.indexOf(document.activeElement);
  const next = (here + (event.shiftKey ? -1 : 1) + stops.length) % stops.length;
  stops[next].focus();
}
