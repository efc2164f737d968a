/** Whether the front end is dark or light where an element stands, told by its background, and when that changes. */

import { themed } from "./dom.js";

/** Keep data-theme ("dark" or "light") of `root` true, and call `changed()` on every change; gives what ends it. */
export function watchTheme(root, changed) {
  const look = () => {
    const theme = isDark(root) ? "dark" : "light";
    if (root.dataset.theme !== theme) root.dataset.theme = theme;
    changed();
  };
  const observer = new MutationObserver(look);
  for (const target of [document.documentElement, document.body]) {
    observer.observe(target, { attributes: true, attributeFilter: ["class", "style", "data-theme"] });
  }
  look();
  return () => observer.disconnect();
}

/** Whether the background of the front end's fields is dark. */
export function isDark(root) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = "#222"; // stays if the next is no colour; a canvas reads every way to write one
  pen.fillStyle = themed(root.isConnected ? root : document.body, "--comfy-input-bg", "#222");
  pen.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}
