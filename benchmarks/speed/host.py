"""The host's own nodes beside this package's, in the host's interpreter: a training step, and applying an adapter."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import native

OLDEST = (0, 33)  # whose Train LoRA node takes the options that are given here
SIZES = {
    "tiny": {"levels": 1, "res_blocks": 1, "size": 8},
    "reduced": {"levels": 2, "res_blocks": 1, "size": 32},  # 107 million weights, pictures of 256 pixels
    "sd15": {"levels": 4, "res_blocks": 2, "size": 32},  # 860 million, 14 GB of memory at the peak
}
TIMED = {  # name -> (case of native.py for the host's node, that for this package, share of the rounds)
    "batch 1, the same layers": ("native, batch 1, the same layers", "here, batch 1", 1.0),
    "batch 1, as it ships": ("native, batch 1, as it ships", "here, batch 1", 1.0),
    "batch 4, the same layers": ("native, batch 4, the same layers", "here, batch 4", 0.5),  # a minute a turn
}
WEIGHED = ("here, batch 1", "native, batch 1, the same layers", "native, batch 1, as it ships")
Ask = Callable[..., Any]


def tasks(size: str, rounds: int, known: Container[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, work) of each measurement that is not known; the model is built once for all of them."""
    before = "host sd15" if size == "sd15" else "host"
    works: dict[str, Callable[[Ask], dict[str, Any]]] = {
        f"{before} apply": lambda ask: {**ask("apply", rounds=4 * rounds), "host": _version()}
    }
    works |= {f"{before} memory {name}": partial(_memory, name) for name in WEIGHED}
    works |= {f"{before} {name}": partial(_times, rounds, *case) for name, case in TIMED.items()}
    if size == "sd15":
        del works["host sd15 batch 4, the same layers"]  # the host's node needs more than 24 GB for it
    missing = {name: work for name, work in works.items() if name not in known}
    if not missing:
        return
    with native.host_tasks(SIZES[size], __file__) as ask:
        ask("build")
        for name, work in missing.items():
            yield name, partial(work, ask)


def _version() -> str:
    return ".".join(map(str, native.version()))


def _times(rounds: int, native: str, own: str, share: float, ask: Ask) -> dict[str, Any]:
    rounds = max(1, round(share * rounds))
    found = ask("times", cases=(native, own), rounds=rounds, steps=1)
    ratios = [theirs / ours for theirs, ours in zip(found[native], found[own], strict=True)]
    medians = {"native": median(found[native]), "here": median(found[own]), "x": median(ratios)}
    return {**medians, "range": [min(ratios), max(ratios)], "rounds": rounds, "host": _version()}


def _memory(case: str, ask: Ask) -> dict[str, Any]:
    return {**ask("memory", case=case), "host": _version()}


# What follows runs in the host's interpreter.


def _apply(job: dict[str, Any]) -> dict[str, Any]:
    """Process time from the file to patched weights, with the host's loader and with Load and Apply TriLoRA."""
    import comfy.model_management
    import torch

    patcher, pack, _ = native.prepare(job)
    with torch.inference_mode():
        _write(pack, patcher, Path(job["folder"]) / "models" / "loras" / "one.safetensors")
        ways = {"native": partial(_loader, patcher), "here": partial(_ours, pack, patcher)}
        times: dict[str, list[float]] = {f"{way}{part}": [] for way in ways for part in ("", " node")}
        for number in range(-1, job["rounds"]):  # the first turn is left out
            for name in ways if number % 2 else reversed(ways):
                begin = time.process_time()
                patched = ways[name](1.0 - 0.01 * number)
                node = time.process_time() - begin
                comfy.model_management.load_models_gpu([patched])
                whole = time.process_time() - begin
                comfy.model_management.unload_all_models()
                if number >= 0:
                    times[name].append(whole)
                    times[f"{name} node"].append(node)
    ratios = [own / theirs for own, theirs in zip(times["here"], times["native"], strict=True)]
    medians = {name: median(values) for name, values in times.items()}
    return {**medians, "x": median(ratios), "range": [min(ratios), max(ratios)], "rounds": job["rounds"]}


def _loader(patcher: Any, strength: float) -> Any:
    import nodes

    return nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, "one.safetensors", strength)[0]


def _ours(pack: Any, patcher: Any, strength: float) -> Any:
    def node(module: str, name: str) -> Any:
        return getattr(importlib.import_module(module, pack.__name__), name).PREPARE_CLASS_CLONE(None)

    adapter = node(".nodes.files", "LoadTriLoRA").EXECUTE_NORMALIZED(lora_name="one.safetensors").args[0]
    apply = node(".nodes.apply", "ApplyTriLoRA")
    return apply.EXECUTE_NORMALIZED(model=patcher, trilora=adapter, strength=strength).args[0]


def _write(pack: Any, patcher: Any, file: Path) -> None:
    """A random adapter of rank 16 on the attention linears."""
    import torch

    names = (".trilora_core.fileformat", ".trilora_core.spectral", ".trilora_core.config", ".nodes.host.models")
    files, spectral, config, models = (importlib.import_module(name, pack.__name__) for name in names)
    layers = {}
    for stem, target in models.targets(patcher, config.LayerConfig()).items():
        out, into = target.base_weight().shape
        layers[stem] = files.Layer(
            spectral.canonical(torch.randn(out, 16), 1e-3 * torch.randn(16, into)), target.kernel
        )
    files.write_adapter(file, files.Adapter(layers, {}))


if __name__ == "__main__":
    native.inside(json.loads(sys.argv[2]), {"apply": _apply})
