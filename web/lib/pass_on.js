/** In the classic canvas an element of a node catches what is meant for the graph below: zoom and pan are passed on. */

/** Pass wheel and middle-button drags over `root` to `canvas()`; the Vue nodes of Nodes 2.0 see to that themselves. */
export function passOn(root, canvas) {
  const inVueNode = () => root.closest("[data-node-id]") !== null;
  root.addEventListener(
    "wheel",
    (event) => {
      if (inVueNode()) return;
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY) && event.target.closest(".tl-strip")) return;
      canvas().processMouseWheel(event);
    },
    { passive: false },
  );
  const kinds = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [kind, method] of Object.entries(kinds)) {
    root.addEventListener(kind, (event) => {
      const middle = kind === "pointermove" ? (event.buttons & 4) === 4 : event.button === 1;
      if (middle && !inVueNode()) canvas()[method](event);
    });
  }
}
