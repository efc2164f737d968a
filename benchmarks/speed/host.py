"""The host's own nodes beside this package's, in the host's interpreter: a training step, and applying an adapter."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import native_trainer  # noqa: E402

SMALL = {"levels": 2, "res_blocks": 1, "size": 16}  # 107 million weights, pictures of 128 pixels
TIMED = {  # name -> (case of native_trainer for the host's node, that for this package)
    "batch 1, the same layers": ("native, batch 1, the same layers", "here, batch 1"),
    "batch 1, as it ships": ("native, batch 1, as it ships", "here, batch 1"),
    "batch 4, the same layers": ("native, batch 4, the same layers", "here, batch 4"),
}
WEIGHED = ("here, batch 1", "native, batch 1, the same layers", "native, batch 1, as it ships")


def there() -> bool:
    """Whether a ComfyUI with an interpreter is found."""
    folder, python = native_trainer.find_host()
    return (folder / "main.py").is_file() and python.is_file()


def tasks(tiny: bool, rounds: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, work) of each measurement."""
    options = {**SMALL, "size": 8} if tiny else SMALL
    for name, pair in TIMED.items():
        yield f"host {name}", partial(_times, options, pair, 2 if tiny else rounds)
    for name in WEIGHED:
        yield f"host memory {name}", partial(_memory, options, name)
    yield "host apply", partial(_apply, options, 2 if tiny else rounds)


def _times(options: dict[str, Any], pair: tuple[str, str], rounds: int) -> dict[str, Any]:
    with native_trainer.host_tasks(options, native_trainer.__file__) as ask:
        ask("build")
        found = ask("times", cases=pair, rounds=rounds, steps=1)
    native, own = (found[name] for name in pair)
    return {"native": median(native), "here": median(own), "x": median(n / h for n, h in zip(native, own, strict=True))}


def _memory(options: dict[str, Any], case: str) -> dict[str, Any]:
    with native_trainer.host_tasks(options, native_trainer.__file__) as ask:
        ask("build")
        return dict(ask("memory", case=case))


def _apply(options: dict[str, Any], rounds: int) -> dict[str, Any]:
    with native_trainer.host_tasks(options, __file__) as ask:
        ask("build")
        return dict(ask("apply", rounds=rounds))


# What follows runs in the host's interpreter.


def _apply_inside(job: dict[str, Any]) -> dict[str, float]:
    """Process time from the file to patched weights, with the host's loader and with Load and Apply TriLoRA."""
    import comfy.model_management
    import torch

    patcher, pack, _ = native_trainer.prepare(job)
    file = Path(job["folder"]) / "models" / "loras" / "one.safetensors"
    with torch.inference_mode():
        _write(pack, patcher, file)
        ways: dict[str, Callable[[float], Any]] = {
            "native": partial(_loader, patcher),
            "here": partial(_ours, pack, patcher),
        }
        times: dict[str, list[float]] = {f"{way}{part}": [] for way in ways for part in ("", " node")}
        for number in range(-1, job["rounds"]):
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
    ratio = median(h / n for h, n in zip(times["here"], times["native"], strict=True))
    return {**{name: median(values) for name, values in times.items()}, "x": ratio}


def _loader(patcher: Any, strength: float) -> Any:
    import nodes

    return nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, "one.safetensors", strength)[0]


def _ours(pack: Any, patcher: Any, strength: float) -> Any:
    import importlib

    def node(module: str, name: str) -> Any:
        return getattr(importlib.import_module(module, pack.__name__), name).PREPARE_CLASS_CLONE(None)

    adapter = node(".nodes.files", "LoadTriLoRA").EXECUTE_NORMALIZED(lora_name="one.safetensors").args[0]
    apply = node(".nodes.apply", "ApplyTriLoRA")
    return apply.EXECUTE_NORMALIZED(model=patcher, trilora=adapter, strength=strength).args[0]


def _write(pack: Any, patcher: Any, file: Path) -> None:
    import importlib

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
    native_trainer.inside(json.loads(sys.argv[2]), {"apply": _apply_inside})
