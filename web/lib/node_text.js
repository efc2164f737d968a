/** The front end's own lines of progress text below a node, where a panel or card says the same. No side effects. */

const NAME = "$$node-text-preview";

/** Hide the text of a node and give its room back; older front ends would also save it among widgets_values. */
export function hideText(node) {
  const text = node.widgets?.find((widget) => widget.name === NAME);
  if (!text || text.hidden) return;
  const before = node.computeSize()[1];
  text.hidden = true;
  text.serialize = false;
  text.options = { ...text.options, hidden: true };
  if (text.element) text.element.hidden = true;
  node.widgets.splice(node.widgets.indexOf(text), 1); // Nodes 2.0 looks again only where the list changes
  node.widgets.push(text);
  node.setSize([node.size[0], node.size[1] - Math.max(0, before - node.computeSize()[1])]);
}
