"""Everything about applying, in one process: the nodes first, while the folders are empty."""

from __future__ import annotations

from . import bridge_apply_merged, bridge_apply_nodes, bridge_apply_runtime


def main(pack, arguments):
    parts = {"nodes": bridge_apply_nodes, "merged": bridge_apply_merged, "runtime": bridge_apply_runtime}
    return {name: part.figures(pack, arguments) for name, part in parts.items()}
