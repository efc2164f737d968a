/** Whether anybody can see an element, and when that or its size changes. */

/** Whether any of an element is on the screen: nothing is drawn for nobody. */
export function isSeen(root) {
  if (!root.isConnected || document.visibilityState === "hidden" || !root.clientWidth) return false;
  const box = root.getBoundingClientRect();
  return box.bottom > 0 && box.right > 0 && box.top < window.innerHeight && box.left < window.innerWidth;
}

/** Call `again` when the panel's size changes or when it comes into sight; gives what ends that. */
export function watchSize(root, again) {
  const size = new ResizeObserver(again);
  const sight = new IntersectionObserver(again);
  size.observe(root);
  sight.observe(root);
  return () => {
    size.disconnect();
    sight.disconnect();
  };
}
