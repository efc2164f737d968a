/** Where an input of a node comes from and where an output goes, through reroutes and subgraphs. No side effects. */

const HOPS = 64; // longer chains are taken for a loop
const SUBGRAPH_INPUT = -10; // the front end's id of the node inside a subgraph that stands for its inputs

/** Every node of a graph, with those of its subgraphs. */
export function* allNodes(graph) {
  for (const [, node] of executionIds(graph)) yield node;
}

/** [id, node] of every node as a run names it: "7", or "3:7" inside the subgraph at node 3. */
export function* executionIds(graph, before = "", depth = 0) {
  for (const node of graph?._nodes ?? graph?.nodes ?? []) {
    const id = `${before}${node.id}`;
    yield [id, node];
    if (node.subgraph && depth < HOPS) yield* executionIds(node.subgraph, `${id}:`, depth + 1);
  }
}

/** The node whose own output feeds the input `name` of `node`, and the slot: {node, slot}, or null. */
export function sourceOf(node, name, root) {
  const slot = (node?.inputs ?? []).findIndex((input) => input.name === name);
  let link = slot < 0 ? null : linkInto(node, slot);
  let graph = node?.graph;
  for (let hop = 0; link && hop < HOPS; hop += 1) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) {
      const host = hostOf(graph, root);
      if (!host) return null;
      [graph, link] = [host.graph, linkInto(host, link.origin_slot)];
      continue;
    }
    const origin = graph.getNodeById(link.origin_id);
    if (!origin) return null;
    if (origin.subgraph) {
      const inner = origin.subgraph;
      const [first] = inner.outputs?.[link.origin_slot]?.linkIds ?? [];
      [graph, link] = [inner, first === undefined ? null : linkOf(inner, first)];
    } else if (isReroute(origin)) {
      link = linkInto(origin, 0);
    } else {
      return { node: origin, slot: link.origin_slot };
    }
  }
  return null;
}

/** Whether a link gives the value of a node's widget. */
export function isLinked(node, name) {
  const link = (node.inputs ?? []).find((each) => each.widget?.name === name)?.link;
  return link !== null && link !== undefined;
}

/**
 * The value of a node's widget, or that of the widget of the subgraph around it or of the Primitive node that is linked
 * to it; null where there is none of that name or another node computes it.
 */
export function widgetValue(node, name) {
  for (let hop = 0; node && hop < HOPS; hop += 1) {
    if (!isLinked(node, name)) return (node.widgets ?? []).find((widget) => widget.name === name)?.value ?? null;
    const link = linkOf(node.graph, node.inputs.find((each) => each.widget?.name === name).link);
    if (Number(link?.origin_id) !== SUBGRAPH_INPUT) {
      const origin = node.graph?.getNodeById(link?.origin_id);
      return origin?.type === "PrimitiveNode" ? (origin.widgets?.[0]?.value ?? null) : null;
    }
    node = hostOf(node.graph, node.graph.rootGraph);
    const input = node?.inputs?.[link.origin_slot];
    name = input?.widget?.name ?? input?.name;
  }
  return null;
}

/** The file that the model at the input `name` was loaded from, as the host names it: {folder, file}, or null. */
export function modelFile(node, name, root) {
  let found = sourceOf(node, name, root);
  for (let hop = 0; found && hop < HOPS; hop += 1) {
    const checkpoint = widgetValue(found.node, "ckpt_name");
    if (typeof checkpoint === "string") return { folder: "checkpoints", file: checkpoint };
    const unet = widgetValue(found.node, "unet_name");
    if (typeof unet === "string") return { folder: "diffusion_models", file: unet };
    const input = (found.node.inputs ?? []).find((each) => each.type === "MODEL");
    found = input ? sourceOf(found.node, input.name, root) : null;
  }
  return null;
}

function isReroute(node) {
  return node.isVirtualNode === true && node.inputs?.length === 1 && node.outputs?.length === 1;
}

function linkInto(node, slot) {
  const id = node.inputs?.[slot]?.link;
  return id === null || id === undefined ? null : linkOf(node.graph, id);
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null;
}

/** The node that stands for a subgraph in the graph around it; null where there is none, or more than one. */
function hostOf(graph, root) {
  const hosts = [...allNodes(root)].filter((node) => node.subgraph === graph);
  return hosts.length === 1 ? hosts[0] : null;
}
