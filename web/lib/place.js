/** Which node of which workflow is meant: execution ids ("3:1" inside subgraphs), ids of graphs, nodes that left. */

const NOBODY = "00000000-0000-0000-0000-000000000000"; // a graph that was never given an id

/** The root graph of the workflow of a node that stands in one, else of the workflow that is open. */
export function rootOf(app, node = null) {
  return node?.graph?.rootGraph ?? app.rootGraph ?? app.graph;
}

/** The id of the workflow that a graph is, or null where the front end gave it none. */
export function workflowOf(root) {
  const id = root?.id;
  return typeof id === "string" && id !== "" && id !== NOBODY ? id : null;
}

/**
 * Every id under which the host may run a node: one outside subgraphs; inside one, one for each place where that
 * subgraph stands. Computed from the graph, since the oldest front ends have no helper for it.
 */
export function executionIds(node, root) {
  const found = [];
  const walk = (graph, path, depth) => {
    if (graph === node.graph) found.push([...path, node.id].join(":"));
    if (depth > 16) return; // a subgraph never holds itself; this is for broken files
    for (const each of graph?._nodes ?? graph?.nodes ?? []) {
      if (each.subgraph) walk(each.subgraph, [...path, each.id], depth + 1);
    }
  };
  walk(root, [], 0);
  return found;
}

/** Whether a run ({node, workflow}) is one of this node in this workflow; an unknown workflow counts as this one. */
export function isOf(run, node, root) {
  if (run.node === null || run.node === undefined) return false;
  const id = String(run.node);
  if (id.split(":").pop() !== String(node.id)) return false;
  const workflow = workflowOf(root);
  if (run.workflow && workflow && run.workflow !== workflow) return false;
  return executionIds(node, root).includes(id);
}

/** The key of a node among the front end's outputs: its id, behind the id of its subgraph where it stands in one. */
export function outputKey(node, root) {
  return !node.graph || node.graph === root ? String(node.id) : `${node.graph.id}:${node.id}`;
}

/** Call `drop` for nodes that went inside a subgraph with their workflow: the front end does not say when they do. */
export function sweep(nodes, app, drop) {
  for (const node of nodes) {
    const root = rootOf(app, node);
    const inside = node.graph && node.graph !== root && root.subgraphs instanceof Map;
    if (inside && root.subgraphs.get(node.graph.id) !== node.graph) drop(node);
  }
}
