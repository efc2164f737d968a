"""Random U-Nets of SD1.5's and SDXL's shape, whole and reduced, in a pipeline as the diffusers backend wants it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from trilora_core.backend_diffusers import DiffusersDenoiser, load_pipeline
from trilora_core.data.dataset import Dataset, load_tensors
from trilora_core.demo import BASE

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}  # all else is the class's default
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {  # to see that all of this runs
        **SD15,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": (CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP),
    },
    "reduced": {  # SD1.5's two upper levels, one block of each: 107 million weights
        **SD15,
        "block_out_channels": (320, 640),
        "layers_per_block": 1,
        "down_block_types": (CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP),
    },
    "sd15": SD15,
    "sdxl": SDXL,
}


def unet(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A frozen random U-Net; on the device "meta" it has shapes only."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that half formats are never there twice
    try:
        with torch.device(device):
            made = UNet2DConditionModel(in_channels=4, out_channels=4, **MODELS[name])
    finally:
        torch.set_default_dtype(before)
    return made.requires_grad_(False).eval()


def denoiser(model: Any) -> DiffusersDenoiser:
    """Our backend over such a U-Net, with the other parts of the demo's pipeline, which are not used."""
    pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
    pipe.unet = model
    pipe.vae.register_to_config(latent_channels=4)
    if model.config.addition_embed_type == "text_time":
        pipe.text_encoder_2 = pipe.text_encoder
    return DiffusersDenoiser(pipe, "random")


def dataset(model: Any, side: int, pictures: int) -> Dataset:
    """Random latents (4, side, side) and captions of 77 tokens."""
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(4, side, side, generator=generator) for _ in range(pictures)]
    return load_tensors(latents, [_caption(model, generator) for _ in range(pictures)])


def _caption(model: Any, generator: torch.Generator) -> dict[str, Any]:
    tokens = torch.randn(77, model.config.cross_attention_dim, generator=generator)
    whole = model.config.addition_embed_type == "text_time"
    return {"tokens": tokens, "pooled": torch.randn(1280, generator=generator) if whole else None}
