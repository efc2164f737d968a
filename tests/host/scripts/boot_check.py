"""What the boot promises to every other script."""

from __future__ import annotations

import sys


def main(pack, arguments):
    import comfy.model_management
    import folder_paths
    import torch

    import nodes

    return {
        "pack": pack.__name__,
        "entry": callable(pack.comfy_entrypoint),
        "host_nodes": hasattr(nodes, "CheckpointLoaderSimple"),
        "input": folder_paths.get_input_directory(),
        "base_directory": arguments["base_directory"],
        "device": str(comfy.model_management.get_torch_device()),
        "threads": torch.get_num_threads(),
        "pack_on_path": [entry for entry in sys.path if entry.rstrip("/") == arguments["pack_folder"]],
        "echo": arguments["echo"],
    }
