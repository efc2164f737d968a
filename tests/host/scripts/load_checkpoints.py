"""Load each built checkpoint with the host's own loader, run the model and the VAE once, and say what came out."""

from __future__ import annotations


def main(pack, arguments):
    return {name: _load(path) for name, path in arguments["checkpoints"].items()}


def _load(path):
    import comfy.model_management
    import comfy.sd
    import torch

    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True)
        model = patcher.model
        comfy.model_management.load_models_gpu([patcher])
        generator = torch.Generator().manual_seed(0)
        channels = model.latent_format.latent_channels
        latents = torch.randn(2, channels, 8, 8, generator=generator)
        output = model.apply_model(latents, torch.full((2,), 0.7), **_conditioning(model, latents))
        picture = vae.decode(model.process_latent_out(latents))
        again = vae.encode(torch.rand(1, 64, 64, 3, generator=generator))
    answer = {
        "class": type(model).__name__,
        "config": type(model.model_config).__name__,
        "dtype": str(next(model.diffusion_model.parameters()).dtype),
        "missing": _missing(model, path),
        "output": _figures(output),
        "picture": _figures(picture),
        "encoded": _figures(again),
        "clip": clip is not None and clip.cond_stage_model is not None,
    }
    if answer["clip"]:
        first, second = (clip.encode_from_tokens(clip.tokenize(text)) for text in ("a red cube", "a blue ball"))
        answer["prompts_differ"] = bool((first - second).abs().max() > 1e-3)
    return answer


def _conditioning(model, latents):
    """What extra_conds would give: random text embeddings of the width that this model wants."""
    import torch

    config, generator = model.model_config.unet_config, torch.Generator().manual_seed(1)
    width = config.get("context_dim") or config.get("context_in_dim") or 4096
    conds = {"c_crossattn": torch.randn(2, 16, width, generator=generator)}
    pooled = config.get("adm_in_channels") or config.get("vec_in_dim")
    if pooled:
        conds["y"] = torch.randn(2, pooled, generator=generator)
    if config.get("guidance_embed"):
        conds["guidance"] = torch.full((2,), 3.5)
    return conds


def _missing(model, path):
    """Names of parameters that only the model or only the file has; Flux's norms are called scale in files."""
    from safetensors import safe_open

    prefix = "model.diffusion_model."
    with safe_open(path, "pt") as file:
        held = {key[len(prefix) :] for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    wanted = set(model.diffusion_model.state_dict())
    if type(model).__name__ == "Flux":
        held, wanted = ({key.replace("_norm.scale", "_norm.weight") for key in keys} for keys in (held, wanted))
    return sorted(held ^ wanted)


def _figures(tensor):
    tensor = tensor.float()
    return {"shape": list(tensor.shape), "std": tensor.std().item(), "finite": bool(tensor.isfinite().all())}
