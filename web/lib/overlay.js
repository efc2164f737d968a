/** Previews at full size over the whole page: one step, or two side by side. */

import { element, fill, formatCount } from "./dom.js";

/**
 * Show the preview `a` and, unless null, `b` beside it (entries of `previews`, {step, pictures}); `index` says which
 * of a step's pictures. Left and right arrows move the last one shown from step to step, up and down from picture to
 * picture, Escape closes and gives the focus back to `back`.
 */
export function openOverlay({ previews, a, b, index, addressOf, back }) {
  const at = { a: previews.indexOf(a), b: b ? previews.indexOf(b) : -1, index };
  const sides = element("div", { class: "tl-sides" });
  const chooseA = stepChoice(previews, "Step", (value) => move("a", value));
  const chooseB = stepChoice(previews, "Compare with", (value) => move("b", value), "– nothing –");
  const close = element("button", { type: "button", class: "tl-button", text: "Close", title: "Close (Escape)", on: { click: shut } });
  const bar = element("div", { class: "tl-bar" }, chooseA.root, chooseB.root, close);
  const root = element("div", { class: "tl-overlay tl-colours", role: "dialog", "aria-modal": "true", "aria-label": "Previews" }, bar, sides);

  function move(which, value) {
    at[which] = value;
    show();
  }

  function show() {
    chooseA.select(at.a);
    chooseB.select(at.b);
    fill(sides, side(previews[at.a], "A"), at.b >= 0 ? side(previews[at.b], "B") : null);
  }

  function side(entry, letter) {
    const number = entry.pictures[Math.min(at.index, entry.pictures.length - 1)];
    const name = `${at.b >= 0 ? `${letter}: ` : ""}step ${formatCount(entry.step)}`;
    const which = entry.pictures.length > 1 ? `, picture ${Math.min(at.index, entry.pictures.length - 1) + 1} of ${entry.pictures.length}` : "";
    const image = element("img", { src: addressOf(number), alt: `Preview at ${name}${which}` });
    return element("figure", {}, image, element("figcaption", { text: name + which }));
  }

  function step(by) {
    const which = at.b >= 0 ? "b" : "a";
    move(which, Math.min(previews.length - 1, Math.max(0, at[which] + by)));
  }

  function picture(by) {
    const most = previews[at.a].pictures.length - 1;
    at.index = Math.min(most, Math.max(0, at.index + by));
    show();
  }

  function shut() {
    window.removeEventListener("keydown", onKey, true);
    root.remove();
    if (back?.isConnected) back.focus();
  }

  function onKey(event) {
    if (!root.isConnected) return;
    const chooses = document.activeElement?.tagName === "SELECT";
    if (event.key === "Escape") shut();
    else if (event.key === "Tab") keepFocus(event, root);
    else if (chooses || event.ctrlKey || event.metaKey) return event.stopPropagation();
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowUp") picture(-1);
    else if (event.key === "ArrowDown") picture(1);
    else return event.stopPropagation(); // the graph below must not hear it
    event.preventDefault();
    event.stopPropagation();
  }

  root.addEventListener("click", (event) => {
    if (event.target === root || event.target === sides) shut();
  });
  window.addEventListener("keydown", onKey, true);
  document.body.append(root);
  show();
  close.focus();
  return shut;
}

/** A labelled choice of a step; -1 is `none`, where that may be chosen. */
function stepChoice(previews, name, chosen, none = null) {
  const options = previews.map((entry, index) => element("option", { value: index, text: `step ${formatCount(entry.step)}` }));
  if (none) options.unshift(element("option", { value: -1, text: none }));
  const select = element("select", { on: { change: () => chosen(Number(select.value)) } }, ...options);
  const root = element("label", {}, element("span", { text: name }), select);
  return { root, select: (value) => (select.value = String(value)) };
}

/** Tab goes round within the overlay. */
function keepFocus(event, root) {
  const stops = [...root.querySelectorAll("select, button")];
  const here = stops.indexOf(document.activeElement);
  const next = (here + (event.shiftKey ? -1 : 1) + stops.length) % stops.length;
  stops[next].focus();
}
