/** Tabs as assistive software knows them: a tablist, arrow keys move between the tabs. */

import { element, setText } from "./dom.js";

let made = 0; // ids have to differ in one page

/** `entries`: [{key, name, view}], views with a `root`; `chosen(key)` is called on a change. */
export function createTabs(label, entries, chosen) {
  made += 1;
  const parts = entries.map(({ key, name, view }) => {
    const id = `tl-${made}-${key}`;
    const count = element("span", { class: "tl-count" });
    const tab = element(
      "button",
      { type: "button", role: "tab", id: `${id}-tab`, "aria-controls": id },
      element("span", { text: name }),
      count,
    );
    const panel = element("div", { role: "tabpanel", id, "aria-labelledby": `${id}-tab`, class: "tl-page" }, view.root);
    tab.addEventListener("click", () => select(key));
    return { key, tab, panel, count };
  });
  const list = element(
    "div",
    { role: "tablist", "aria-label": label, class: "tl-tabs" },
    ...parts.map(({ tab }) => tab),
  );
  let active = entries[0].key;

  function select(key, focus = false) {
    active = key;
    for (const part of parts) {
      const on = part.key === key;
      part.tab.setAttribute("aria-selected", String(on));
      part.tab.tabIndex = on ? 0 : -1;
      part.panel.hidden = !on;
      if (on && focus) part.tab.focus();
    }
    chosen(key);
  }

  list.addEventListener("keydown", (event) => {
    const here = parts.findIndex((part) => part.key === active);
    const goals = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: parts.length - 1 };
    if (!(event.key in goals) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    select(parts[(goals[event.key] + parts.length) % parts.length].key, true);
  });

  select(active);
  return {
    roots: [list, ...parts.map(({ panel }) => panel)],
    active: () => active,
    select,
    count: (key, text) => setText(parts.find((part) => part.key === key).count, text),
  };
}
