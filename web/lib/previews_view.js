/** The tab "Previews": a strip of pictures by step; one enlarges, two compare. */

import { element, formatCount } from "./dom.js";
import { t } from "./language.js";
import { openOverlay, pictureName } from "./overlay.js";

/** The strip of `run()`. `addressOf(run, number)` is a picture's address. Gives {root, draw(), count()}. */
export function createPreviewsView(run, addressOf) {
  const strip = element("div", { class: "tl-strip", role: "group", "aria-label": t("Previews by step") });
  const hint = element("div", { class: "tl-hint", text: t("Click to enlarge. Shift-click two to compare them.") });
  const empty = element("div", { class: "tl-empty" });
  const choose = createChoice(run, addressOf);
  let shown = { run: null, keys: "" };

  function draw() {
    const now = run();
    const previews = now?.previews ?? [];
    empty.hidden = previews.length > 0;
    strip.hidden = hint.hidden = previews.length === 0;
    empty.textContent = now?.can_preview
      ? t("No preview yet. Preview now draws one after the next step.")
      : t("No previews: set preview_every and preview_prompts in TriLoRA Monitor Options.");
    const keys = previews.map(keyOf).join(); // not their count: of a long run the first ones go as others come
    if (shown.run === now?.run && shown.keys === keys) return;
    const atEnd = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 8;
    const known = new Map([...strip.children].map((figure) => [figure.dataset.key, figure]));
    // what is there stays, so that a picture is not loaded twice and the focus is not lost
    const kept = (entry) => (shown.run === now?.run ? known.get(keyOf(entry)) : undefined);
    arrange(strip, previews.map((entry) => kept(entry) ?? column(now, entry, addressOf, choose)));
    shown = { run: now?.run ?? null, keys };
    if (atEnd) strip.scrollLeft = strip.scrollWidth;
  }

  return {
    root: element("div", { class: "tl-previews" }, strip, hint, empty),
    draw,
    count: () => countOf(run()?.previews ?? []),
  };
}

/** Make `children` all that an element holds; what stays there is not moved, which would take the focus from it. */
function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    const there = parent.children[index] ?? null;
    if (there !== child) parent.insertBefore(child, there);
  });
}

/** Everything of one step: its pictures, one below the other, and the step. */
function column(run, entry, addressOf, choose) {
  const thumbs = entry.pictures.map((number, index) => {
    const name = pictureName(entry, index);
    const source = { src: addressOf(run, number), alt: t("Preview at {name}", { name }) };
    const image = element("img", { ...source, loading: "lazy", draggable: "false" });
    image.addEventListener("error", () =>
      image.replaceWith(element("span", { class: "tl-gone", text: t("no longer there") })),
    );
    const title = t("Enlarge {name}. With Shift: compare with another.", { name });
    const thumb = element("button", { type: "button", class: "tl-thumb", title }, image);
    thumb.addEventListener("click", (event) => choose({ entry, index, thumb }, event.shiftKey));
    return thumb;
  });
  const caption = element("figcaption", { text: formatCount(entry.step) });
  return element("figure", { "data-key": keyOf(entry), style: `--count:${entry.pictures.length}` }, ...thumbs, caption);
}

/** What a click on a thumbnail ({entry, index, thumb}) does: enlarge it, or with Shift wait for a second one. */
function createChoice(run, addressOf) {
  let first = null;
  return (chosen, shift) => {
    const now = run();
    const two = shift && first !== null && first.thumb !== chosen.thumb && first.thumb.isConnected;
    first?.thumb.removeAttribute("data-chosen");
    if (shift && !two) {
      first = chosen;
      chosen.thumb.setAttribute("data-chosen", "A");
      return;
    }
    const [a, b] = two ? [first, chosen] : [chosen, null];
    first = null;
    openOverlay({
      previews: now.previews.filter((entry) => entry.pictures.length),
      a: a.entry.pictures[0],
      b: b && b.entry.pictures[0],
      index: a.index,
      addressOf: (number) => addressOf(now, number),
      back: chosen.thumb,
    });
  };
}

const keyOf = (entry) => `${entry.step}-${entry.pictures.join("-")}`;
const countOf = (previews) => previews.reduce((sum, entry) => sum + entry.pictures.length, 0);
