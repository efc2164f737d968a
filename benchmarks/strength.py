"""What a moved slider of Apply TriLoRA costs: the node's own time, and beside it the host's time to patch the weights.

Run from the root of a clone, with a ComfyUI at COMFYUI_PATH or ~/comfy/ComfyUI:
`python benchmarks/strength.py [--rank 16] [--repeats 7] [--no-patching]`. The model has SDXL's shape in half
precision with weights of no meaning, the adapter random factors. One thread, process time, median and largest; the same
value is never asked for twice. The model takes 5 GB of memory, patching as much again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("custom_nodes", "models/loras", "input", "output", "user", "temp")
SDXL: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
# what is moved -> the value of the n-th move
MOVES: dict[str, Callable[[int], dict[str, Any]]] = {
    "strength": lambda n: {"strength": 0.5 + n / 100},
    "keep_rank": lambda n: {"keep_rank": 15 - n},
    "keep_energy": lambda n: {"keep_energy": 0.9 - n / 100},
    "tone": lambda n: {"tone": 0.5 + n / 100},
    "blocks": lambda n: {"blocks": f"IN04-08:0.{n + 1}, MID:0.5, OUT:0.{n + 2}"},
    "all of them": lambda n: {
        "strength": 0.8,
        "keep_rank": 12,
        "keep_energy": 0.95 - n / 100,
        "tone": 0.7,
        "normalize": True,
        "blocks": "*:0.5",
    },
}


def main() -> None:
    """Measure in the host's interpreter, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7, help="moves of each slider, at most 8")
    parser.add_argument("--no-patching", action="store_true", help="only the node's time; takes no memory for weights")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(json.loads(options.inside))
    host = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON", host / ".venv/bin/python"))
    with tempfile.TemporaryDirectory(prefix="trilora-benchmark-") as folder:
        for name in FOLDERS:
            (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        job = {"host": str(host), "folder": folder, **vars(options)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
        command = [str(python), __file__, "--inside", json.dumps(job)]
        subprocess.run(command, check=True, cwd=folder, env=environment)


# What follows runs in the host's interpreter.


def inside(job: dict[str, Any]) -> None:
    """Start the host as a library, build the model, measure both choices of layers."""
    sys.path[0] = job["host"]
    sys.argv = ["main.py", "--cpu", "--base-directory", job["folder"]]
    importlib.import_module("comfy.options").enable_args_parsing()
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    pack = _pack()
    with torch.inference_mode():
        patcher = _model()
        print("| layers | first | " + " | ".join(MOVES) + " | the host's patching, s |")
        print("|" + "---|" * (len(MOVES) + 3))
        for which in ("attention", "attention+ff+conv"):
            _row(pack, patcher, which, job)


def _pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trilora_pack", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["trilora_pack"] = pack
    spec.loader.exec_module(pack)
    return pack


def _model() -> Any:
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.SDXL(dict(SDXL))
    config.set_inference_dtype(torch.float16, None)
    cpu = torch.device("cpu")
    model = config.get_model({}, "", device=cpu)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _row(pack: ModuleType, patcher: Any, which: str, job: dict[str, Any]) -> None:
    import comfy.model_management

    node = importlib.import_module(".nodes.apply", pack.__name__).ApplyTriLoRA
    adapter = _adapter(pack, patcher, which, job["rank"])

    def moved(**widgets: Any) -> tuple[float, Any]:
        start = time.process_time()
        result = (
            node.PREPARE_CLASS_CLONE(None)
            .EXECUTE_NORMALIZED(model=patcher, trilora=adapter, **{"strength": 1.0, **widgets})
            .args[0]
        )
        return time.process_time() - start, result

    first, patched = moved()
    cells = [f"{1000 * first:.0f}"]
    for move in MOVES.values():
        times = [moved(**move(number))[0] for number in range(job["repeats"])]
        cells.append(f"{1000 * statistics.median(times):.0f} ({1000 * max(times):.0f})")
    if job["no_patching"]:
        cells.append("")
    else:
        start = time.process_time()
        comfy.model_management.load_models_gpu([patched])
        cells.append(f"{time.process_time() - start:.1f}")
        comfy.model_management.unload_all_models()
    print(f"| {len(adapter.layers)}, {which} | " + " | ".join(cells) + " |", flush=True)


def _adapter(pack: ModuleType, patcher: Any, which: str, rank: int) -> Any:
    import torch

    names = (".trilora_core.fileformat", ".trilora_core.spectral", ".trilora_core.config", ".nodes.host.models")
    files, spectral, config, models = (importlib.import_module(name, pack.__name__) for name in names)
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for stem, target in models.targets(patcher, config.LayerConfig(which)).items():
        out, into = target.base_weight().shape
        s = torch.rand(rank, generator=generator).sort(descending=True).values * 0.01
        u, vh = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
        svd = spectral.SVD(u / out**0.5, s, vh / into**0.5)  # of the right shape; nothing here asks for orthogonality
        layers[stem] = files.Layer(svd, target.kernel)
    return files.Adapter(layers, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})


if __name__ == "__main__":
    main()
