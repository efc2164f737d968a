/** The buttons that act on a run that goes on: stop and keep, save now, preview now. */

import { element, setText } from "./dom.js";
import { t } from "./language.js";

const actions = () => [
  {
    path: "/trilora/stop",
    name: t("Stop and keep"),
    title: t("End the training after this step and keep what it has learned. The graph goes on with that adapter."),
    done: t("Stopping after this step; what was learned is kept."),
    once: true,
    unless: (run) => (run.step > 0 ? "" : t("Nothing is trained yet: cancel the queue to end this run.")),
  },
  {
    path: "/trilora/save",
    name: t("Save now"),
    title: t("Write the adapter as it is now beside the result, and go on training."),
    done: t("Saving after this step."),
  },
  {
    path: "/trilora/preview",
    name: t("Preview now"),
    title: t("Draw the preview prompts with the adapter as it is now, and go on training."),
    done: t("Drawing after this step."),
    unless: (run) =>
      run.can_preview ? "" : t("This run draws no previews: write preview_prompts in TriLoRA Monitor Options."),
  },
];

/** What an answer holds for: the stop until the end, the others until the run tells of a file or a picture more. */
function aboutOf(run, action) {
  const picture = run.previews.at(-1)?.pictures.at(-1); // not how many: the first ones of a long run are let go
  return action.once ? run.run : `${run.run} ${run.text} ${picture}`;
}

/** The buttons for `run()`; `post(path, body)` gives {ok, error}. Gives {root, draw()}. */
export function createControls(run, post) {
  const answer = element("div", { class: "tl-answer" });
  const asked = new Set(); // "run path" of what is asked for once only
  let about = ""; // what the answer speaks of: a run, and what it said and had drawn then
  const buttons = actions().map((action) => {
    const button = element("button", { type: "button", class: "tl-button", text: action.name, title: action.title });
    button.addEventListener("click", () => act(action));
    return { action, button };
  });
  const row = element("div", { class: "tl-buttons" }, ...buttons.map(({ button }) => button));

  async function act(action) {
    const id = run().run;
    if (action.once) asked.add(`${id} ${action.path}`);
    about = aboutOf(run(), action);
    setText(answer, "…");
    draw();
    const { ok, error } = await post(action.path, { run: id });
    if (!ok && action.once) asked.delete(`${id} ${action.path}`);
    answer.classList.toggle("tl-refused", !ok);
    setText(answer, ok ? action.done : error);
    draw();
  }

  function draw() {
    const now = run();
    const trains = now?.state === "training";
    if (!trains || !buttons.some(({ action }) => about === aboutOf(now, action))) setText(answer, "");
    for (const { action, button } of buttons) {
      const not = trains ? (action.unless?.(now) ?? "") : t("Only while a training goes on.");
      button.disabled = !trains || not !== "" || asked.has(`${now.run} ${action.path}`);
      button.title = not || action.title;
    }
    row.hidden = now?.state === "ended";
    answer.hidden = answer.textContent === "";
  }

  return { root: element("div", { class: "tl-controls" }, row, answer), draw };
}
