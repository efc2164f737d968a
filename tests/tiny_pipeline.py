"""A random Stable Diffusion pipeline of a few kilobytes, and a folder of captioned pictures, for tests of the verbs."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

SIDE = 16  # pixels: its U-Net works on 8 x 8 latents
COLOURS = ("red", "green", "blue")


def write_pipeline(folder: Path) -> Path:
    """Write the pipeline as a diffusers folder; the same weights on every call."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from trilora_core.demo import words

    torch.manual_seed(0)
    tokenizer = words.build()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=words.MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_pictures(folder: Path, captions: bool = True) -> Path:
    """Write three pictures, with a caption beside each unless told otherwise."""
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{colour}.png")
        if captions:
            (folder / f"{colour}.txt").write_text(f"a {colour} square", encoding="utf-8")
    return folder
