/** The live panel of one Train node: what its newest run does, draws, and how it ended. */

import { createControls } from "./controls.js";
import { densityOf } from "./chart.js";
import { addStyle, element, setText } from "./dom.js";
import { createLossView } from "./loss_view.js";
import { PANEL_CSS } from "./panel_css.js";
import { createPreviewsView } from "./previews_view.js";
import { createSpectrumView } from "./spectrum_view.js";
import { createTabs } from "./tabs.js";
import { watchTheme } from "./theme.js";
import { endKind, endText, figuresText, stateText } from "./words.js";

export const IDLE_HEIGHT = 40;
export const LIVE_HEIGHT = 310;

/**
 * Make the panel. `post(path, body)` gives {ok, error}; `addressOf(run, number)` a picture's address; `resized()` is
 * called when the panel needs another height. Gives {root, show(run), run(), height(), draw(), dispose()}.
 */
export function createPanel({ post, addressOf, resized }) {
  addStyle("trilora-panel", PANEL_CSS);
  let run = null;
  let waiting = 0;
  const now = () => run;
  const again = () => schedule();
  const views = {
    loss: createLossView(now, again),
    previews: createPreviewsView(now, addressOf),
    spectrum: createSpectrumView(now, again),
  };
  const controls = createControls(now, post);
  const head = createHead();
  const tabs = createTabs(
    "What to watch",
    [
      { key: "loss", name: "Loss", view: views.loss },
      { key: "previews", name: "Previews", view: views.previews },
      { key: "spectrum", name: "Spectrum", view: views.spectrum },
    ],
    again,
  );
  const idle = element("div", { class: "tl-idle", text: "No run yet: queue the graph." });
  const body = element("div", { class: "tl-body" }, head.root, ...tabs.roots, controls.root);
  const root = element("div", { class: "tl-panel tl-colours", role: "region", "aria-label": "Training" }, idle, body);
  const stops = [watchTheme(root, again), watchSize(root, again)];
  for (const kind of ["pointerdown", "mousedown", "dblclick"]) {
    root.addEventListener(kind, (event) => event.button !== 1 && event.stopPropagation()); // not a drag of the graph
  }
  root.addEventListener("pointerenter", again); // the zoom may have changed since the last drawing

  function schedule() {
    if (waiting === 0) waiting = requestAnimationFrame(draw);
  }

  function draw() {
    waiting = 0;
    if (!isSeen(root)) return;
    idle.hidden = run !== null;
    body.hidden = run === null;
    if (run === null) return;
    head.draw(run);
    tabs.count("previews", views.previews.count() ? String(views.previews.count()) : "");
    views[tabs.active()].draw();
    controls.draw();
  }

  return {
    root,
    run: now,
    height: () => (run === null ? IDLE_HEIGHT : LIVE_HEIGHT),
    draw,
    show(next) {
      const grown = (run === null) !== (next === null);
      run = next;
      root.classList.toggle("tl-live", run !== null);
      if (grown) resized();
      schedule();
    },
    /** Draw anew where the zoom made the picture too coarse or too fine. */
    checkZoom() {
      const canvas = views[tabs.active()].canvas;
      if (run && canvas?.clientWidth && Math.abs(canvas.width - canvas.clientWidth * densityOf(canvas)) > 2) schedule();
    },
    dispose() {
      cancelAnimationFrame(waiting);
      stops.forEach((stop) => stop());
    },
  };
}

/** The lines above the tabs: state, progress, time and memory; the end is said aloud, once. */
function createHead() {
  const state = element("div", { class: "tl-state" });
  const end = element("div", { class: "tl-end", role: "status", "aria-live": "polite" });
  const bar = element("div", { class: "tl-progress", role: "progressbar", "aria-label": "Steps", "aria-valuemin": 0 }, element("i"));
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
    setText(note, run.state === "preparing" ? "" : ended ? moreOf(run) : run.text);
    note.title = note.textContent;
    note.hidden = note.textContent === "";
  }
  return { root: element("div", { class: "tl-head" }, state, end, bar, figures, note), draw };
}

/** What the run said at its end besides how it ended: its first line says that too. */
function moreOf(run) {
  return (run.text ?? "").split("\n").slice(1).join(" ").trim();
}

/** Whether any of an element is on the screen: nothing is drawn for nobody. */
function isSeen(root) {
  if (!root.isConnected || document.visibilityState === "hidden" || !root.clientWidth) return false;
  const box = root.getBoundingClientRect();
  return box.bottom > 0 && box.right > 0 && box.top < window.innerHeight && box.left < window.innerWidth;
}

/** Call `again` when the panel's size changes or when it comes into sight. */
function watchSize(root, again) {
  const size = new ResizeObserver(again);
  const sight = new IntersectionObserver(again);
  size.observe(root);
  sight.observe(root);
  return () => {
    size.disconnect();
    sight.disconnect();
  };
}
