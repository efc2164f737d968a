/** What a run is doing, how it ended, and what its numbers are, in words. Pure functions of a run. */

import { formatBytes, formatCount, formatDuration, formatNumber } from "./dom.js";
import { t } from "./language.js";

/** "Training: step 120 of 500" and the like: the first line of the panel while a run goes on. */
export function stateText(run) {
  const { steps, step } = counts(run);
  if (run.state === "training" && run.step === 0) return t("Training: on the way to step 1 of {steps}", { steps });
  if (run.state === "training") return t("Training: step {step} of {steps}", { step, steps });
  if (run.state === "preparing") return noteText(run) || t("Preparing");
  return endText(run);
}

/** What the server says goes on, line by line: fixed words (nodes/host/run.py, reporter.py) in the page's language. */
export function noteText(run) {
  return (run.text ?? "").split("\n").map(inOwnLanguage).join(" · ");
}

function inOwnLanguage(line) {
  switch (line) {
    case "preparing the model":
      return t("preparing the model");
    case "measuring memory":
      return t("measuring memory");
    case "drawing previews":
      return t("drawing previews");
    default:
      return line;
  }
}

/** "3 min 20 s left · 1.2 s/step · 6.1 of 12 GB": what is known of time and memory. */
export function figuresText(run) {
  const parts = [];
  if (run.state === "training" && run.eta !== null && run.eta !== undefined) {
    parts.push(t("{time} left", { time: formatDuration(run.eta) }));
  }
  const pace = run.seconds_per_step;
  if (pace && pace < 0.1) parts.push(t("{pace} steps/s", { pace: formatNumber(1 / pace, 2) }));
  else if (pace) parts.push(t("{pace} s/step", { pace: formatNumber(pace, 2) }));
  if (run.memory) {
    const [used, total] = [run.memory.used, run.memory.total].map(formatBytes);
    parts.push(t("{used} of {total}", { used, total }));
  }
  return parts.join(" · ");
}

/** How a run ended, in a few sentences. */
export function endText(run) {
  const why = (run.problem ?? "").trim().replace(/^step \d+: /, ""); // said already
  const saved = run.file ? fileText(run) : "";
  const sentences = [howText(run), why && !/[.!?]$/.test(why) ? `${why}.` : why, saved];
  if (run.ended === "diverged" && !why) sentences[1] = t("The loss was no number any more.");
  if (run.ended === "diverged" || run.ended === "error") return sentences.filter(Boolean).join(" ");
  return [sentences[0], sentences[2], sentences[1]].filter(Boolean).join(" ");
}

function howText(run) {
  const told = counts(run);
  switch (run.ended) {
    case "steps":
      return t("Finished: {step} steps.", told);
    case "validation":
      return t("Stopped early at step {step} of {steps}: the validation loss no longer fell.", told);
    case "stop":
      return t("Stopped at step {step} of {steps} and kept.", told);
    case "interrupt":
      return t("Cancelled at step {step} of {steps}.", told);
    case "cached":
      return t("Not trained again: this run was already there, {step} steps.", told);
    case "diverged":
      return t("Broke off at step {step} of {steps}:", told);
    case "error":
      return t("Problem at step {step} of {steps}:", told);
    case "lost":
      return t("The server was restarted; what it wrote of this run until step {step} of {steps} is on its disk.", told);
    default:
      return t("Ended at step {step} of {steps}.", told);
  }
}

function fileText({ ended, file }) {
  if (ended === "interrupt") return t("What was trained is in {file}.", { file });
  if (ended === "cached") return t("Read from {file}.", { file });
  return t("Saved as {file}.", { file });
}

const counts = (run) => ({ step: formatCount(run.step), steps: formatCount(run.steps) });

/** "good", "early" or "bad": how the end is to be coloured. */
export function endKind(run) {
  if (["diverged", "error", "lost"].includes(run.ended)) return "bad";
  return ["validation", "stop", "interrupt"].includes(run.ended) ? "early" : "good";
}

/** The newest entry [step, …] of a list at or before `step` whose number at `index` is one; null for none. */
export function latest(entries, index, step = Infinity) {
  for (let at = entries.length - 1; at >= 0; at -= 1) {
    const value = entries[at][index];
    if (entries[at][0] <= step && value !== null && value !== undefined) return entries[at];
  }
  return null;
}

/** What a screen reader says of the curve: where it began, where it is, what was measured beside it. */
export function lossLabel(run, curve) {
  if (!curve.length) return t("Training loss: no step yet");
  const [first, last] = [curve[0], curve[curve.length - 1]];
  const ends = {
    from: formatNumber(first[1]),
    first: formatCount(first[0]),
    to: formatNumber(last[1]),
    last: formatCount(last[0]),
  };
  const parts = [t("Training loss, smoothed: from {from} at step {first} to {to} at step {last}", ends)];
  const at = (entry, index) => ({ value: formatNumber(entry[index]), step: formatCount(entry[0]) });
  const validation = latest(run.measures, 1);
  if (validation) parts.push(t("validation {value} at step {step}", at(validation, 1)));
  const drift = latest(run.measures, 2);
  if (drift) parts.push(t("drift {value} at step {step}", at(drift, 2)));
  return parts.join("; ");
}
