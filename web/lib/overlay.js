/** Previews at full size over the whole page: one step, or two side by side. */

import { element, fill, formatCount } from "./dom.js";
import { t } from "./language.js";

/**
 * Show one of `previews` ({step, pictures}) and, unless null, another beside it: `a` and `b` are the numbers of their
 * first pictures, `index` says which of a step's pictures. Left and right arrows move the last one shown from step to
 * step, up and down from picture to picture; Escape closes and gives the focus back to `back`.
 */
export function openOverlay({ previews, a, b, index, addressOf, back }) {
  const placeOf = (number) => previews.findIndex((entry) => entry.pictures[0] === number);
  const at = { a: placeOf(a), b: b === null ? -1 : placeOf(b), index };
  const sides = element("div", { class: "tl-sides" });
  const chooseA = stepChoice(previews, t("Step"), (value) => move({ a: value }));
  const chooseB = stepChoice(previews, t("Compare with"), (value) => move({ b: value }), t("– nothing –"));
  const close = element("button", { type: "button", class: "tl-button", text: t("Close"), title: t("Close (Escape)") });
  const bar = element("div", { class: "tl-bar" }, chooseA.root, chooseB.root, close);
  const said = { role: "dialog", "aria-modal": "true", "aria-label": t("Previews") };
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

const stepName = (entry) => t("step {step}", { step: formatCount(entry.step) });

/** "step 100", or "step 100, picture 2 of 3". */
export function pictureName(entry, place) {
  const count = entry.pictures.length;
  return stepName(entry) + (count > 1 ? `, ${t("picture {place} of {count}", { place: place + 1, count })}` : "");
}

const bounded = (value, count) => Math.min(count - 1, Math.max(0, value));

/** One picture of a step, with its caption. */
function side(entry, index, letter, addressOf) {
  const place = bounded(index, entry.pictures.length);
  const name = pictureName(entry, place);
  const image = element("img", { src: addressOf(entry.pictures[place]), alt: t("Preview at {name}", { name }) });
  return element("figure", {}, image, element("figcaption", { text: `${letter}${name}` }));
}

/** A labelled choice of a step; -1 is `none`, where that may be chosen. */
function stepChoice(previews, name, chosen, none = null) {
  const named = (entry, index) => element("option", { value: index, text: stepName(entry) });
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
