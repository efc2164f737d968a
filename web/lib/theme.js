/** Whether the front end is dark or light where an element stands, told by its background, and when that changes. */

import { themed } from "./dom.js";

/**
 * Keep data-theme ("dark" or "light") of `root` true, and call `changed()` on every change. Gives {look, stop}: look()
 * at every drawing too, since the first look came before the element was on the page.
 */
export function watchTheme(root, changed) {
  let seen = null; // the background of the last look
  const look = () => {
    const background = backgroundOf(root);
    if (background === seen) return;
    seen = background;
    root.dataset.theme = isDark(background) ? "dark" : "light";
  };
  const observer = new MutationObserver(() => {
    look();
    changed();
  });
  for (const target of [document.documentElement, document.body]) {
    observer.observe(target, { attributes: true, attributeFilter: ["class", "style", "data-theme"] });
  }
  look();
  return { look, stop: () => observer.disconnect() };
}

const backgroundOf = (root) => themed(root.isConnected ? root : document.body, "--comfy-input-bg", "#222");

function isDark(background) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = "#222"; // stays if the next is no colour; a canvas reads every way to write one
  pen.fillStyle = background;
  pen.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}
