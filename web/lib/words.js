/** What a run is doing, how it ended, and what its numbers are, in words. Pure functions of a run. */

import { formatBytes, formatCount, formatDuration, formatNumber } from "./dom.js";

/** "Training, step 120 of 500" and the like: the first line of the panel while a run goes on. */
export function stateText(run) {
  if (run.state === "training" && run.step === 0) return `Training: on the way to step 1 of ${formatCount(run.steps)}`;
  if (run.state === "training") return `Training: step ${formatCount(run.step)} of ${formatCount(run.steps)}`;
  if (run.state === "preparing") return run.text || "Preparing";
  return endText(run);
}

/** "3 min 20 s left · 1.2 s/step · 6.1 of 12 GB": what is known of time and memory. */
export function figuresText(run) {
  const parts = [];
  if (run.state === "training" && run.eta !== null && run.eta !== undefined) {
    parts.push(`${formatDuration(run.eta)} left`);
  }
  const pace = run.seconds_per_step;
  if (pace) parts.push(pace < 0.1 ? `${formatNumber(1 / pace, 2)} steps/s` : `${formatNumber(pace, 2)} s/step`);
  if (run.memory) parts.push(`${formatBytes(run.memory.used)} of ${formatBytes(run.memory.total)}`);
  return parts.join(" · ");
}

/** How a run ended, in one or two sentences. */
export function endText(run) {
  const at = `step ${formatCount(run.step)} of ${formatCount(run.steps)}`;
  const saved = run.file ? ` Saved as ${run.file}.` : "";
  const why = run.problem ? ` ${run.problem.trim()}${/[.!?]$/.test(run.problem.trim()) ? "" : "."}` : "";
  switch (run.ended) {
    case "steps":
      return `Finished: ${formatCount(run.step)} steps.${saved}${why}`;
    case "validation":
      return `Stopped early at ${at}: the validation loss no longer fell.${saved}${why}`;
    case "stop":
      return `Stopped at ${at} and kept.${saved}${why}`;
    case "interrupt":
      return `Cancelled at ${at}.${run.file ? ` What was trained is in ${run.file}.` : ""}${why}`;
    case "cached":
      return `Not trained again: this run was already there, ${formatCount(run.step)} steps.${
        run.file ? ` Read from ${run.file}.` : ""
      }${why}`;
    case "diverged":
      return `Broke off at ${at}:${why || " the loss was no number any more."}${saved}`;
    case "error":
      return `Problem at ${at}:${why}${saved}`;
    case "lost":
      return `The server was restarted; what it wrote of this run until ${at} is on its disk.`;
    default:
      return `Ended at ${at}.${saved}${why}`;
  }
}

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
  if (!curve.length) return "Training loss: no step yet";
  const [first, last] = [curve[0], curve[curve.length - 1]];
  const parts = [
    `Training loss over ${formatCount(last[0])} steps, smoothed: from ${formatNumber(first[1])} at step ` +
      `${formatCount(first[0])} to ${formatNumber(last[1])} at step ${formatCount(last[0])}`,
  ];
  const validation = latest(run.measures, 1);
  if (validation) parts.push(`validation ${formatNumber(validation[1])} at step ${formatCount(validation[0])}`);
  const drift = latest(run.measures, 2);
  if (drift) parts.push(`drift ${formatNumber(drift[2])} at step ${formatCount(drift[0])}`);
  return parts.join("; ");
}
