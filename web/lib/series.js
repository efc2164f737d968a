/** Numbers of a curve before they are drawn: thinned, smoothed, ranged, with round ticks. Pure functions. */

/**
 * Points [step, loss or null, learning rate] to at most `most`: neighbours become one that holds the mean of their
 * losses (null where none is a number) at the later step; first and last are kept. Rates are kept, not averaged.
 */
export function thinned(points, most) {
  if (points.length <= most) return points;
  const inner = points.slice(1, -1);
  const group = Math.ceil(inner.length / (most - 2));
  const kept = [points[0]];
  for (let start = 0; start < inner.length; start += group) {
    const some = inner.slice(start, start + group);
    const [step, , rate] = some[some.length - 1];
    kept.push([step, mean(some.map((point) => point[1])), rate]);
  }
  kept.push(points[points.length - 1]);
  return kept;
}

/** Every so many entries of a list, first and last among them: at most `most`. */
export function sampled(entries, most) {
  if (entries.length <= most) return entries;
  const last = entries.length - 1;
  return Array.from({ length: most }, (_, index) => entries[Math.round((index * last) / (most - 1))]);
}

function mean(values) {
  const numbers = values.filter((value) => value !== null);
  return numbers.length ? numbers.reduce((sum, value) => sum + value, 0) / numbers.length : null;
}

/**
 * [step, smoothed loss] of points [step, loss or null, …]: an exponential mean over about `reach` steps, without the
 * bias of a start at zero, so that thinned points smooth as the steps that they stand for would.
 */
export function smoothed(points, reach) {
  const curve = [];
  let sum = 0;
  let weight = 0;
  let before = null;
  for (const [step, value] of points) {
    if (value === null) continue;
    const keep = Math.exp(-Math.max(1, before === null ? 1 : step - before) / reach);
    sum = sum * keep + value * (1 - keep);
    weight = weight * keep + (1 - keep);
    before = step;
    curve.push([step, sum / weight]);
  }
  return curve;
}

/** How many steps the smoothed curve looks back over: a thirtieth of what is shown, no fewer than five. */
export function reachOf(points) {
  if (points.length < 2) return 5;
  return Math.max(5, (points[points.length - 1][0] - points[0][0]) / 30);
}

/** [low, high] that holds `values` but for the `cut` share of extremes at both ends; null without a number. */
export function spread(values, cut = 0) {
  const sorted = values.filter((value) => Number.isFinite(value)).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const off = Math.floor(sorted.length * cut);
  return [sorted[off], sorted[sorted.length - 1 - off]];
}

/** The smallest range that holds all the given ones; null for none. */
export function joined(...ranges) {
  const there = ranges.filter((range) => range !== null);
  if (!there.length) return null;
  return [Math.min(...there.map((range) => range[0])), Math.max(...there.map((range) => range[1]))];
}

/** Whether a range is wider than the rounding of its ends: a mean of equal numbers is often off by the last bit. */
const isWide = (low, high) => high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high));

/** A range with room around it, never empty, and not below zero for what never is. */
export function roomy([low, high], share = 0.08) {
  const room = isWide(low, high) ? (high - low) * share : Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten. */
export function ticks(low, high, count) {
  if (!isWide(low, high)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

/** The index of the entry whose first number is nearest to `step`, in a list in rising order; -1 for none. */
export function nearest(entries, step) {
  let low = 0;
  let high = entries.length - 1;
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (entries[middle][0] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - entries[low - 1][0] <= entries[low][0] - step ? low - 1 : low;
}
