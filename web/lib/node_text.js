/** The front end's own lines of progress text below a node. No side effects on import. */

const textOf = (node) => node.widgets?.find((widget) => widget.name === "$$node-text-preview");

/** Keep the text of a node out of the workflow's widgets_values, where the oldest front ends would put it. */
export function leaveTextOut(node) {
  const text = textOf(node);
  if (text) text.serialize = false;
}

/** Hide the text of a node whose panel or card says the same, and give its room back. */
export function hideText(node) {
  leaveTextOut(node);
  const text = textOf(node);
  if (!text || text.hidden) return;
  const before = node.computeSize()[1];
  text.hidden = true;
  text.options = { ...text.options, hidden: true };
  if (text.element) text.element.hidden = true;
  node.widgets.splice(node.widgets.indexOf(text), 1); // Nodes 2.0 looks again only where the list changes
  node.widgets.push(text);
  node.setSize([node.size[0], node.size[1] - Math.max(0, before - node.computeSize()[1])]);
}
