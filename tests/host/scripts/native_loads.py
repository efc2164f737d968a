"""Files for everything that training adapts, in the host's own LoRA loader and through our nodes' way."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import torch

from . import bridge_apply_models as models
from . import bridge_training_models as trained

RANK = 3


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """How far native is from us and from the exact change, and how many weights changed, for each kind."""
    return {kind: _compare(pack, kind) for kind in arguments["kinds"]}


def _compare(pack: Any, kind: str) -> dict[str, Any]:
    patcher = trained.load(kind, inference=False)
    targets = import_module(".nodes.host.models", pack.__name__).targets(patcher)
    shapes = {stem: tuple(target.base_weight().shape) for stem, target in targets.items()}
    core = import_module(".trilora_core.fileformat", pack.__name__)
    adapter, file = models.adapter(pack, shapes, rank=RANK), Path(f"{kind}.safetensors")
    core.write_adapter(file, adapter)
    base = models.snapshot(patcher)
    apply = import_module(".nodes.host.patching", pack.__name__).apply
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    ways = {
        "ours": apply(core.read_adapter(file), patcher, 1.0)[0],
        "native": comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0],
    }
    changes = {way: _changes(models.snapshot_loaded(patched), base) for way, patched in ways.items()}
    exact = _exact(patcher, targets, adapter, base)
    models.unload()
    return {
        "stems": len(shapes),
        "weights": {way: len(found) for way, found in changes.items()},
        "between": max(models.error(changes["ours"][key], changes["native"][key]) for key in exact),
        "to_exact": max(models.error(changes["native"][key], exact[key]) for key in exact),
    }


def _changes(loaded: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: loaded[key] - base[key] for key in base if not torch.equal(loaded[key], base[key])}


def _exact(patcher: Any, targets: Any, adapter: Any, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ΔW of every weight, its row ranges put together."""
    names = {id(module): f"{name}.weight" for name, module in patcher.model.named_modules()}
    found: dict[str, torch.Tensor] = {}
    for stem, target in targets.items():
        key = names[id(target.module)]
        whole = found.setdefault(key, torch.zeros(base[key].shape, dtype=torch.float64))
        rows = slice(*(target.rows or (0, whole.shape[0])))
        whole[rows] = models.change(adapter, stem)
    return found
