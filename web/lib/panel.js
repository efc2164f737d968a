/** The live panel of one Train node: what its newest run does, draws, and how it ended. */

import { createControls } from "./controls.js";
import { densityOf } from "./chart.js";
import { addStyle, element } from "./dom.js";
import { createHead } from "./head.js";
import { t } from "./language.js";
import { createLossView } from "./loss_view.js";
import { PANEL_CSS } from "./panel_css.js";
import { createPreviewsView } from "./previews_view.js";
import { createSpectrumView } from "./spectrum_view.js";
import { isSeen, watchSize } from "./sight.js";
import { createTabs } from "./tabs.js";
import { watchTheme } from "./theme.js";

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
    t("What to watch"),
    [
      { key: "loss", name: t("Loss"), view: views.loss },
      { key: "previews", name: t("Previews"), view: views.previews },
      { key: "spectrum", name: t("Spectrum"), view: views.spectrum },
    ],
    again,
  );
  const idle = element("div", { class: "tl-idle", text: t("No run yet: queue the graph.") });
  const body = element("div", { class: "tl-body" }, head.root, ...tabs.roots, controls.root);
  const root = element("div", { class: "tl-panel tl-colours", role: "region", "aria-label": t("Training") }, idle, body);
  const theme = watchTheme(root, again);
  const stops = [theme.stop, watchSize(root, again)];
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
    theme.look();
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
