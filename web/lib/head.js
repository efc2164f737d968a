/** The top of the panel: state, progress, time and memory; the end in words. */

import { element, setText } from "./dom.js";
import { t } from "./language.js";
import { endKind, endText, figuresText, noteText, stateText } from "./words.js";

/** The lines above the tabs; the end is said aloud, once. Gives {root, draw(run)}. */
export function createHead() {
  const state = element("div", { class: "tl-state" });
  const end = element("div", { class: "tl-end", role: "status", "aria-live": "polite" });
  const bar = element(
    "div",
    { class: "tl-progress", role: "progressbar", "aria-label": t("Steps"), "aria-valuemin": 0 },
    element("i"),
  );
  const figures = element("div", { class: "tl-figures" });
  const note = element("div", { class: "tl-note" });
  function draw(run) {
    const ended = run.state === "ended";
    state.hidden = ended;
    setText(state, ended ? "" : stateText(run));
    setText(end, ended ? endText(run) : "");
    end.title = end.textContent;
    end.dataset.kind = ended ? endKind(run) : "";
    bar.hidden = ended;
    bar.setAttribute("aria-valuemax", run.steps);
    bar.setAttribute("aria-valuenow", run.step);
    bar.firstChild.style.width = `${run.steps ? (100 * run.step) / run.steps : 0}%`;
    setText(figures, figuresText(run));
    figures.hidden = ended && run.problem !== "";
    setText(note, run.state === "preparing" ? "" : ended ? moreOf(run) : noteText(run));
    note.title = note.textContent;
    note.hidden = note.textContent === "";
  }
  return { root: element("div", { class: "tl-head" }, state, end, bar, figures, note), draw };
}

/** What the run said at its end besides how it ended: its first line says that too. */
function moreOf(run) {
  return (run.text ?? "").split("\n").slice(1).join(" ").trim();
}
