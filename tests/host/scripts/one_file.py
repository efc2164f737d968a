"""What one LoRA file does to the host's own SD1.5 and SDXL, through our nodes' way and through the native loader."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import comfy.lora
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from safetensors.torch import save_file

from . import bridge_apply_models as models

SD15 = {
    **models.UNET,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
SDXL = {
    **models.UNET,
    "model_channels": 64,  # the host gives every head of an SDXL 64 channels
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "transformer_depth_middle": 3,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 56,
}


def main(pack: Any, arguments: dict[str, str]) -> dict[str, int | str]:
    """Write the changes of every layer, by stem, to arguments["ours"] and arguments["native"]; how many there are.

    Also what the model is by its content, once it has the weights of arguments["weights"].
    """
    config = {"sd15": comfy.supported_models.SD15(SD15), "sdxl": comfy.supported_models.SDXL(SDXL)}
    patcher = models._patcher(config[arguments["kind"]], torch.float32)
    content = _content(pack, patcher, arguments["weights"])
    adapter = import_module(".trilora_core.fileformat", pack.__name__).read_adapter(arguments["file"])
    apply = import_module(".nodes.host.patching", pack.__name__).apply
    ours, _ = apply(adapter, patcher, 1.0)
    native, _ = comfy.sd.load_lora_for_models(
        patcher, None, comfy.utils.load_torch_file(arguments["file"], safe_load=True), 1.0, 0.0
    )
    base = models.snapshot(patcher)
    names = comfy.lora.model_lora_keys_unet(patcher.model, {})
    counts: dict[str, int | str] = {"content": content}
    for way, patched in (("ours", ours), ("native", native)):
        loaded = models.snapshot_loaded(patched)
        keys = {stem: names[stem] for stem in adapter.layers}
        changes = {stem: (loaded[key] - base[key]).flatten(1) for stem, key in keys.items()}
        save_file({stem: change.contiguous() for stem, change in changes.items()}, arguments[way])
        counts[way] = len(changes)
        models.unload()
    return counts


def _content(pack: Any, patcher: Any, weights: str) -> str:
    """The content of the model with these weights of its attention, by stem."""
    bridge = import_module(".nodes.host.models", pack.__name__)
    config = patcher.model.model_config
    config.unet_config = {**config.unet_config, "context_dim": 768}  # by which an SD1.5 is told
    given = comfy.utils.load_torch_file(weights, safe_load=True)
    targets = bridge.targets(patcher)
    assert targets.keys() == given.keys()
    with torch.no_grad():
        for stem, target in targets.items():
            target.module.weight.copy_(given[stem].reshape(target.module.weight.shape))
    return bridge.bare_content(patcher)
