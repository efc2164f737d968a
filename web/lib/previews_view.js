/** The tab "Previews": a strip of pictures by step; one enlarges, two compare. */

import { element, fill, formatCount, plural } from "./dom.js";
import { openOverlay } from "./overlay.js";

/**
 * The strip of `run()`. `addressOf(run, number)` is a picture's address. Gives {root, draw(), count()}.
 */
export function createPreviewsView(run, addressOf) {
  const strip = element("div", { class: "tl-strip", role: "group", "aria-label": "Previews by step" });
  const hint = element("div", { class: "tl-hint", text: "Click to enlarge. Shift-click two to compare them." });
  const empty = element("div", { class: "tl-empty" });
  const root = element("div", { class: "tl-previews" }, strip, hint, empty);
  let shown = { run: null, count: 0 };
  let first = null; // {step, number}: the one of two that was chosen already

  function draw() {
    const now = run();
    const previews = now?.previews ?? [];
    empty.hidden = previews.length > 0;
    strip.hidden = hint.hidden = previews.length === 0;
    empty.textContent = now?.can_preview
      ? "No preview yet. Preview now draws one after the next step."
      : "No previews: set preview_every and preview_prompts in TriLoRA Monitor Options.";
    const count = countOf(previews);
    if (shown.run === now?.run && shown.count === count) return;
    const added = shown.run === now?.run ? previews.filter((entry) => !strip.querySelector(`[data-key="${keyOf(entry)}"]`)) : null;
    const atEnd = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 8;
    if (added && strip.childElementCount + added.length === previews.length) strip.append(...added.map((entry) => column(now, entry)));
    else fill(strip, ...previews.map((entry) => column(now, entry)));
    shown = { run: now?.run ?? null, count };
    if (atEnd) strip.scrollLeft = strip.scrollWidth;
  }

  function column(now, entry) {
    const pictures = entry.pictures.map((number, index) => {
      const what = `step ${formatCount(entry.step)}${entry.pictures.length > 1 ? `, picture ${index + 1} of ${entry.pictures.length}` : ""}`;
      const image = element("img", { src: addressOf(now, number), alt: `Preview at ${what}`, loading: "lazy", draggable: "false" });
      image.addEventListener("error", () => image.replaceWith(element("span", { class: "tl-gone", text: "no longer there" })));
      const thumb = element("button", { type: "button", class: "tl-thumb", title: `Enlarge ${what}. Shift: compare with another.` }, image);
      thumb.addEventListener("click", (event) => choose(now, { entry, index, thumb }, event.shiftKey));
      return thumb;
    });
    return element("figure", { "data-key": keyOf(entry), style: `--count:${pictures.length}` }, ...pictures, element("figcaption", { text: formatCount(entry.step) }));
  }

  function choose(now, chosen, shift) {
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
      a: a.entry,
      b: b?.entry ?? null,
      index: a.index,
      addressOf: (number) => addressOf(now, number),
      back: chosen.thumb,
    });
  }

  return { root, draw, count: () => countOf(run()?.previews ?? []), label: () => plural(countOf(run()?.previews ?? []), "preview") };
}

const keyOf = (entry) => `${entry.step}-${entry.pictures[0]}`;
const countOf = (previews) => previews.reduce((sum, entry) => sum + entry.pictures.length, 0);
