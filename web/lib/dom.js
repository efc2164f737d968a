/** Elements, one style sheet for each part of the pack, and numbers as people read them. No side effects on import. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element. `attributes`: names as in HTML; `class`; `text` (textContent, never HTML); `on` ({click: handler});
 * true gives an empty attribute, false, null and undefined none. `children`: nodes, texts, or null for none.
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [kind, handler] of Object.entries(value)) made.addEventListener(kind, handler);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Replace all that an element holds. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  return parent;
}

/** Set a text only where it changed: assistive software reads what is written anew. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Put a style sheet into the page, once for each id. */
export function addStyle(id, css) {
  if (document.getElementById(id)) return;
  document.head.append(element("style", { id, text: css }));
}

/** "3", "0.0421", "1.2e-5": at most `digits` significant digits; "–" for what is no finite number. */
export function formatNumber(value, digits = 3) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 10 ** (digits - 1)) return String(Math.round(value));
  return String(Number(value.toPrecision(digits)));
}

/** "12,345": whole numbers with a thin mark at each thousand. */
export function formatCount(value) {
  if (!Number.isFinite(value)) return "–";
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Seconds as "8 s", "3 min 20 s", "2 h 05 min", "1 d 4 h"; "–" for none. */
export function formatDuration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds) || seconds < 0) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Bytes as "512 B", "3.4 MB", "12 GB" (powers of 1024, as the host counts memory); "–" for none. */
export function formatBytes(bytes) {
  if (typeof bytes !== "number" || !Number.isFinite(bytes) || bytes < 0) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let size = bytes;
  let unit = 0;
  while (size >= 1023.5 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size < 9.95 && unit > 0 ? Math.round(size * 10) / 10 : Math.round(size)} ${units[unit]}`;
}

/** The value of one of the front end's CSS variables where an element stands. */
export function themed(target, variable, fallback) {
  return getComputedStyle(target).getPropertyValue(variable).trim() || fallback;
}
