"""Small random models of the four architectures, made by the host's own classes and loaded by its own loader."""

from __future__ import annotations

from typing import Any

import torch

UNET = {
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
}
SD15 = {
    **UNET,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
}
SDXL = {
    **UNET,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 2, 5],  # as KOALA, which the host runs as an SDXL
    "transformer_depth_output": [0, 0, 0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
}
SD3 = {
    "input_size": None,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "num_patches": 1024,
    "pos_embed_max_size": 32,
    "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 32,
    "context_in_dim": 64,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
CONDITION = {  # width of the caption's tokens, width of the pooled vector
    "sd15": (768, None),
    "sdxl": (2048, 1280),
    "sd3": (64, 32),
    "flux": (64, 32),
}


def denoiser_weights(kind: str, seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """Random weights of the host's own class, of a size that keeps activations near one."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux, FluxParams
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    makers = {"sd15": (UNetModel, SD15), "sdxl": (UNetModel, SDXL), "sd3": (MMDiT, SD3), "flux": (Flux, FLUX | newer)}
    make, config = makers[kind]
    options = {key: list(value) if isinstance(value, list) else value for key, value in {**config, **changes}.items()}
    model = make(**options, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, tensor, generator) for name, tensor in model.state_dict().items()}


def _random(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim < 2:
        return values * 0.05 + (1.0 if name.endswith(("weight", "scale")) else 0.0)
    return values / max(1, tensor[0].numel()) ** 0.5


def load(kind: str, *, inference: bool = True, **changes: Any) -> Any:
    """A model patcher as a loader node gives it: made in inference mode."""
    import comfy.sd

    weights = denoiser_weights(kind, **changes)
    with torch.inference_mode(inference):
        return comfy.sd.load_diffusion_model_state_dict({name: weight.clone() for name, weight in weights.items()})


def condition(kind: str, seed: int, tokens: int = 77) -> list[Any]:
    """One entry of CONDITIONING, made in inference mode as the text encoder's are."""
    width, pooled = CONDITION[kind]
    generator = torch.Generator().manual_seed(seed)
    options = {} if pooled is None else {"pooled_output": torch.randn(1, pooled, generator=generator)}
    return [torch.randn(1, tokens, width, generator=generator), options]


def channels(kind: str) -> int:
    """Channels of the latents."""
    return 4 if kind in ("sd15", "sdxl") else 16
