"""What the bridge refuses, and the models that are not plain: patched, half precision, other targets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import bridge_training_models as small


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """One entry for each question."""

    def load(name: str) -> Any:
        return import_module(f".nodes.host.{name}", pack.__name__)

    bridge = {name: load(name) for name in ("models", "denoiser", "training", "encode")}
    return {
        "refused": _refused(bridge),
        "patched": _patched(bridge),
        "times": {kind: _times(bridge, kind) for kind in ("sd15", "sd3")},
        "v_target": _v_target(bridge),
        "half": {name: _half(bridge, getattr(torch, name)) for name in ("float16", "float8_e4m3fn")},
        "encoder": _encoder(bridge, arguments["checkpoint"]),
    }


def _complaint(action: Any) -> str:
    try:
        action()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _refused(bridge: Any) -> dict[str, str]:
    make = bridge["denoiser"].HostDenoiser
    found = {
        "sd2": _complaint(lambda: make(small.load("sd15", context_dim=1024, use_linear_in_transformer=True))),
        "inpainting": _complaint(lambda: make(small.load("sd15", in_channels=9))),
    }
    patcher = small.load("sd3")
    with bridge["training"].training(patcher):
        denoiser = make(patcher)
        times, conds = denoiser.times(torch.tensor([0.5])), [small.condition("sd3", 0)]
        found["latents"] = _complaint(
            lambda: denoiser.predict(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), times, conds)
        )
        wide = torch.zeros(2, 16, 8, 8)
        found["conditions"] = _complaint(lambda: denoiser.predict(wide, wide, times, conds))
    return found


def _patched(bridge: Any) -> dict[str, Any]:
    """A LoRA of the host's own is on the model: it stays on, and W0 is found under it."""
    import comfy.model_management

    plain = small.load("sd15")
    path, key = "middle_block.1.transformer_blocks.0.attn1.to_q", "diffusion_model.{}.weight"
    module = plain.model.diffusion_model.get_submodule(path)
    base = module.weight.detach().clone()
    patcher = plain.clone()
    patcher.add_patches({key.format(path): ("diff", (torch.ones_like(base),))}, 0.5)
    early = bridge["models"].fingerprint(patcher)
    with bridge["training"].training(patcher):
        targets = bridge["models"].targets(patcher)
        target = next(target for target in targets.values() if target.module is module)
        answer = {
            "trains_patched": torch.allclose(module.weight, base + 0.5),
            "sigma_from_base": torch.equal(target.base_weight(), base),
            "others_plain": sum(target.weight is not None for target in targets.values()),
            "same_loaded_or_not": bridge["models"].fingerprint(patcher) == early,
            "own_fingerprint": early != bridge["models"].fingerprint(plain),
        }
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([plain])
    return answer | {"restored": torch.equal(module.weight, base)}


def _times(bridge: Any, kind: str) -> dict[str, Any]:
    """Draws of u against the host's own table."""
    patcher = small.load(kind)
    sampling = patcher.model.model_sampling
    with bridge["training"].training(patcher):
        denoiser = bridge["denoiser"].HostDenoiser(patcher)
        times = denoiser.times(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        snr = denoiser.snr(times)
        ends = [float(sampling.sigma_min), float(sampling.sigma_max)]
        step = sampling.timestep(times[2:3]).item()
    return {"times": times.tolist(), "snr": snr.tolist(), "ends": ends, "step": step}


def _v_target(bridge: Any) -> float:
    """The regression target of a v model, beside the formula of Salimans and Ho 2022 (v = α ε − σ x)."""
    import comfy.sd

    weights = small.denoiser_weights("sdxl") | {"v_pred": torch.tensor([])}
    patcher = comfy.sd.load_diffusion_model_state_dict(weights)
    with bridge["training"].training(patcher):
        denoiser = bridge["denoiser"].HostDenoiser(patcher)
        latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        times = denoiser.times(torch.tensor([0.2, 0.9]))
        prediction, target = denoiser.predict(latents, noise, times, [small.condition("sdxl", i) for i in range(2)])
        sigma = times.reshape(-1, 1, 1, 1)
        alpha = 1 / (1 + sigma**2).sqrt()
        wanted = alpha * noise - alpha * sigma * denoiser.model.process_latent_in(latents)
        assert prediction.shape == target.shape == latents.shape
    return float((target - wanted).abs().max() / wanted.abs().max())


def _half(bridge: Any, dtype: torch.dtype) -> dict[str, Any]:
    """A base in fewer bits: computed as the host does, gradients finite, weights untouched."""
    import comfy.sd

    weights = {name: weight.half() for name, weight in small.denoiser_weights("sd15").items()}
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})
    with bridge["training"].training(patcher):
        denoiser = bridge["denoiser"].HostDenoiser(patcher)
        gain = torch.ones((), requires_grad=True)
        module = next(iter(denoiser.targets().values())).module
        handle = module.register_forward_hook(lambda _module, _args, output: output * gain.to(output.dtype))
        latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            pair = denoiser.predict(latents, noise, denoiser.times(torch.tensor([0.5])), [small.condition("sd15", 0)])
        (pair[0] - pair[1]).square().mean().backward()
        handle.remove()
        dtypes = {str(target.module.weight.dtype) for target in denoiser.targets().values()}
        return {"gradient": float(gain.grad), "weights": sorted(dtypes), "compute": str(denoiser.compute_dtype)}


def _encoder(bridge: Any, checkpoint: str) -> dict[str, Any]:
    """Latents and conditioning from a CLIP and a VAE that a loader node made."""
    import comfy.sd

    def loaded() -> Any:
        with torch.inference_mode():
            _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=True)
        return bridge["encode"].HostEncoder(clip, vae)

    encoder = loaded()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # as in a node
        latents, conds = encoder.pictures(images), encoder.captions(["a cat", "a dog"])
        again = encoder.pictures(images)
    tensors = [latents, *_tensors(conds)]
    other = loaded()
    same = other.fingerprint == encoder.fingerprint
    stopped = encoder.clip.clone()
    stopped.clip_layer(-2)
    return {
        "latents": list(latents.shape),
        "dtype": str(latents.dtype),
        "repeatable": torch.equal(latents, again),
        "tokens": [list(entry[0].shape) for entry in conds],
        "unlike": not torch.equal(conds[0][0], conds[1][0]),
        "inference": any(tensor.is_inference() for tensor in tensors),
        "same_fingerprint": same,
        "other_fingerprint": bridge["encode"].HostEncoder(stopped, encoder.vae).fingerprint != encoder.fingerprint,
        "without_vae": _complaint(lambda: bridge["encode"].HostEncoder(encoder.clip, None)),
    }


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for item in items for tensor in _tensors(item)]
