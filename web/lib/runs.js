/**
 * All runs that this page has heard of, by id: events added up, histories fetched, neither counted twice.
 *
 * A run is {run, node, workflow, name, state, text, step, steps, seconds_per_step, eta, memory, points, measures,
 * spectra, previews, can_preview, ended, problem, file}, as the server sends it, with all points since the start.
 */

import { sampled, thinned } from "./series.js";

const POINTS = 4000; // of a curve, halved when there are more: twice what any panel is wide
const LOOKS = 400; // at validation and spectrum
const PREVIEWS = 400;
const RUNS = 48; // the server keeps 32 ended ones

const LISTS = ["points", "measures", "spectra", "previews"];
const stepOf = (entry) => (Array.isArray(entry) ? entry[0] : entry.step);
// what rises from entry to entry: steps, but of previews the numbers, since one step may have been drawn twice
const orderOf = (name, entry) => (name === "previews" ? (entry.pictures.at(-1) ?? -1) : stepOf(entry));

/**
 * The store. `fetchJson(path)` gives the parsed answer, or null for 404; `changed(run)` is called after each change.
 * Gives {take(event), adopt(payload), load(id), reload(), get(id), isWhole(id), isBefore(id, other)}.
 */
export function createRuns(fetchJson, changed) {
  const runs = new Map(); // in the order in which they were last heard of by themselves, not by asking
  const whole = new Set(); // ids whose history since the start is here
  const loading = new Map();

  function take(event) {
    if (typeof event?.run !== "string") return;
    const before = runs.get(event.run);
    const run = before ?? { ...event, points: [], measures: [], spectra: [], previews: [] };
    for (const [name, value] of Object.entries(event)) if (!LISTS.includes(name)) run[name] = value;
    append(run, event);
    keep(run);
    // the first event of a run that began before this page did: what was before it has to be asked for
    if (!before && beganEarlier(event)) load(event.run);
    else if (!before) whole.add(event.run);
    changed(run);
  }

  function adopt(payload) {
    if (typeof payload?.run !== "string") return null;
    const late = runs.get(payload.run);
    const run = { ...payload };
    for (const name of LISTS) run[name] = [...(payload[name] ?? [])];
    if (late) append(run, late); // what events brought while the history was on its way
    if (late && late.step > run.step) {
      for (const name of Object.keys(run)) if (!LISTS.includes(name)) run[name] = late[name];
    }
    bound(run);
    whole.add(run.run);
    if (late) runs.set(run.run, run);
    else keep(run);
    changed(run);
    return run;
  }

  function load(id) {
    if (!loading.has(id)) {
      const asked = fetchJson(`/trilora/runs/${encodeURIComponent(id)}`).then(
        (payload) => (payload ? adopt(payload) : lost(id)),
        () => null,
      );
      loading.set(
        id,
        asked.finally(() => loading.delete(id)),
      );
    }
    return loading.get(id);
  }

  function lost(id) {
    const run = runs.get(id);
    if (!run || run.state === "ended") return null;
    Object.assign(run, { state: "ended", ended: "lost", eta: null });
    changed(run);
    return run;
  }

  function keep(run) {
    runs.delete(run.run); // the newest stands last
    runs.set(run.run, run);
    for (const [id, old] of runs) {
      if (runs.size <= RUNS) break;
      if (old.state === "ended") {
        runs.delete(id);
        whole.delete(id);
      }
    }
  }

  return {
    take,
    adopt,
    load,
    /** After the connection was lost: events are missing, so ask again for every run that went on. */
    reload: () => [...runs.values()].filter((run) => run.state !== "ended").forEach((run) => load(run.run)),
    get: (id) => runs.get(id) ?? null,
    isWhole: (id) => whole.has(id),
    isBefore(id, other) {
      const order = [...runs.keys()];
      return order.indexOf(id) < order.indexOf(other);
    },
  };
}

function beganEarlier(event) {
  const first = Math.min(...LISTS.flatMap((name) => (event[name] ?? []).slice(0, 1).map(stepOf)));
  return Number.isFinite(first) ? first > 1 : event.step > 0;
}

function append(run, news) {
  for (const name of LISTS) {
    const known = run[name];
    const last = known.length ? orderOf(name, known[known.length - 1]) : -Infinity;
    for (const entry of news[name] ?? []) if (orderOf(name, entry) > last) known.push(entry);
  }
  bound(run);
}

function bound(run) {
  if (run.points.length > POINTS) run.points = thinned(run.points, POINTS / 2);
  if (run.measures.length > LOOKS) run.measures = sampled(run.measures, LOOKS / 2);
  if (run.spectra.length > LOOKS) run.spectra = sampled(run.spectra, LOOKS / 2);
  if (run.previews.length > PREVIEWS) run.previews = run.previews.slice(-PREVIEWS);
}
