"""Gradients on a quantised base beside those on a plain copy of what its weights stand for, and the base afterwards."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import bridge_training_models as small

LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8E4M3Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
}


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for every format that this host knows."""
    found = {}
    for name in ("scaled_fp8", *LAYOUTS):
        file = _quantised(name)
        if file is not None:
            found[name] = _measure(pack, file)
    return found


def _quantised(name: str) -> dict[str, Tensor] | None:
    """The weights of linear layers in this format, as in a file; None where the host does not know it."""
    encode = _scaled if name == "scaled_fp8" else _encoder(name)
    if encode is None:
        return None
    file: dict[str, Tensor] = {}
    for key, weight in small.denoiser_weights("sd15").items():
        # the first of these packs two numbers into one, and the host reads the width of captions from the second
        plain = weight.ndim != 2 or (name == "nvfp4" and key.endswith("attn2.to_k.weight"))
        file |= {key: weight.bfloat16()} if plain else encode(key.removesuffix(".weight"), weight)
    return file | ({"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if name == "scaled_fp8" else {})


def _scaled(layer: str, weight: Tensor) -> dict[str, Tensor]:
    """The first kind: one scale for each weight, under the names that all hosts read."""
    scale = weight.abs().max() / 448
    return {f"{layer}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{layer}.scale_weight": scale}


def _encoder(name: str) -> Any:
    try:
        from comfy import quant_ops
    except ImportError:
        return None
    if name not in quant_ops.QUANT_ALGOS:
        return None
    told = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)

    def encode(layer: str, weight: Tensor) -> dict[str, Tensor]:
        scale = {"scale": "recalculate"} if name == "float8_e4m3fn" else {}
        quantised = quant_ops.QuantizedTensor.from_float(weight, LAYOUTS[name], **scale)
        return {**quantised.state_dict(f"{layer}.weight"), f"{layer}.comfy_quant": told.clone()}

    return encode


def _meaning(model: Any) -> dict[str, Tensor]:
    """What the weights that the host holds stand for, in float32, by their names in a file of a plain model."""
    found = {}
    for path, module in model.diffusion_model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            if name in ("weight", "bias"):
                plain = value.dequantize().float() if hasattr(value, "_qdata") else value.float()
                scale = getattr(module, "scale_weight", None) if name == "weight" else None
                found[f"{path}.{name}"] = plain if scale is None else plain * scale
    return found


def _measure(pack: Any, file: dict[str, Tensor]) -> dict[str, Any]:
    import comfy.sd

    bridge = {name: import_module(f".nodes.host.{name}", pack.__name__) for name in ("training", "denoiser", "models")}
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model_state_dict(dict(file))
        plain = _meaning(patcher.model)
        wide = {"dtype": torch.float32}
        exact = comfy.sd.load_diffusion_model_state_dict({k: v.clone() for k, v in plain.items()}, model_options=wide)
    for module in patcher.model.modules():
        if hasattr(module, "_full_precision_mm"):  # as it is on hardware that multiplies such numbers
            module._full_precision_mm = False
    before, functions = _contents(patcher.model), _functions(patcher.model)
    (got, start, quantised), (wanted, exact_start, _) = (_trained(pack, bridge, one) for one in (patcher, exact))
    wrong = torch.cat([(got[name] - value).flatten() for name, value in wanted.items()])
    sigmas = [name for name in start if name.endswith(".sigma")]
    original = small.denoiser_weights("sd15")
    return {
        "quantised": quantised,
        "error": float(wrong.norm() / torch.cat([value.flatten() for value in wanted.values()]).norm()),
        "finite": all(bool(value.isfinite().all()) for value in got.values()),
        "learning": sum(bool(value.any()) for value in got.values()) / len(got),
        "sigma": max(float((start[name] / exact_start[name] - 1).abs().max()) for name in sigmas),
        "rounded": max(float((plain[key] - w).norm() / w.norm()) for key, w in original.items() if w.ndim == 2),
        "same": _contents(patcher.model) == before and _functions(patcher.model) == functions,
        "fingerprints": len({bridge["models"].fingerprint(one) for one in (patcher, exact)}),
    }


def _trained(pack: Any, bridge: Any, patcher: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients of an adapter, its start, and how many adapted layers have a weight of few bits."""
    core = import_module(".trilora_core.adapter", pack.__name__)
    config = import_module(".trilora_core.config", pack.__name__).AdapterConfig(rank=3, init="svd")
    with bridge["training"].training(patcher):
        denoiser = bridge["denoiser"].HostDenoiser(patcher)
        targets = denoiser.targets()
        adapter = core.TriLoRA.create(targets, config, seed=0, data_hash="test")
        start = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
        with torch.no_grad():
            for index, branch in enumerate(adapter.branches.values()):
                branch.up.copy_(0.05 * torch.randn(branch.up.shape, generator=torch.Generator().manual_seed(index)))
        with adapter.attach(targets):
            gradients = _gradients(denoiser, adapter)
        weights = [target.module.weight for target in targets.values()]
        few = [weight for weight in weights if hasattr(weight, "_qdata") or weight.dtype.itemsize == 1]
        return gradients, start, len(few)


def _gradients(denoiser: Any, adapter: Any) -> dict[str, Tensor]:
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = [small.condition("sd15", 0), small.condition("sd15", 1)]
    prediction, target = denoiser.predict(latents, noise, denoiser.times(torch.tensor([0.3, 0.7])), conditions)
    (prediction - target).square().mean().backward()
    return {name: p.grad.clone() for name, p in adapter.named_parameters()}


def _functions(model: Any) -> list[Any]:
    return [list(getattr(module, "weight_function", [])) for module in model.modules()]


def _contents(model: Any) -> str:
    """A hash over every number that the model holds, those within quantised weights too."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.contiguous().flatten()
        digest.update(
            f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + values.view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
