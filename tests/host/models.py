"""Random checkpoints, small but of a shape that ComfyUI's own loader takes for the real thing; built once, then cached.

Each builder returns the path of a safetensors file (fp16, seeded): the same bytes on every call.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from .discovery import CACHE

_VERSION = "1"  # part of the cache's path: raise it whenever a builder writes other bytes than before
Shapes = dict[str, tuple[int, ...]]
UNET = "model.diffusion_model."


def sd15_checkpoint() -> Path:
    """SD1.5 class: 32 attention linears in 4 transformer blocks, and a TAESD; without text encoder (54 MB)."""
    return _cached("sd15", lambda: _fill(_sd15_unet(), 1) | _taesd("first_stage_model.", 4, 0.18215, 0.0))


def sd15_clip_checkpoint() -> Path:
    """The same U-Net and VAE as sd15_checkpoint, and a CLIP-L, so that a server can encode prompts (300 MB)."""

    def tensors() -> dict[str, torch.Tensor]:
        vae = _taesd("first_stage_model.", 4, 0.18215, 0.0)
        return _fill(_sd15_unet(), 1) | vae | _fill(_clip_l("cond_stage_model.transformer.text_model."), 2)

    return _cached("sd15_clip", tensors)


def sdxl_checkpoint() -> Path:
    """SDXL class (the host takes its depths 0, 2, 5 for KOALA, whose model and keys are SDXL's); no text encoders."""
    return _cached("sdxl", lambda: _fill(_sdxl_unet(), 3) | _taesd("first_stage_model.", 4, 0.13025, 0.0))


def sd3_checkpoint() -> Path:
    """SD3 medium class with two joint blocks of width 128, the last of them with the context's q, k, v only."""
    return _cached("sd3", lambda: _fill(_mmdit(depth=2), 4) | _taesd("first_stage_model.", 16, 1.5305, 0.0609))


def flux_checkpoint() -> Path:
    """Flux dev class with two double and two single blocks of width 128; ComfyUI 0.14 or newer reads its width."""
    return _cached("flux", lambda: _fill(_flux(128, 2, 2), 5) | _taesd("vae.", 16, 0.3611, 0.1159))


def write_pictures(folder: Path, count: int = 4, size: int = 128) -> list[Path]:
    """`count` unlike PNG pictures with captions of unlike length beside them, in `folder`; returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    across = torch.linspace(0, 1, size).expand(size, size)
    pictures = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        colours = torch.rand(2, 3, generator=generator)
        weight = ((across + across.T * (index + 1)) % 1.0).unsqueeze(-1)
        pixels = colours[0] * weight + colours[1] * (1 - weight)
        path = folder / f"picture_{index}.png"
        Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(path)
        path.with_suffix(".txt").write_text("a striped thing" + ", very striped" * index, encoding="utf-8")
        pictures.append(path)
    return pictures


def _cached(name: str, tensors: Callable[[], dict[str, torch.Tensor]]) -> Path:
    path = CACHE / f"models-{_VERSION}" / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            save_file({key: tensor.half().contiguous() for key, tensor in tensors().items()}, built)
            os.replace(built, path)
    return path


def _fill(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Norms at 1 (their weights are the vectors), biases near 0, matrices normal with variance 1 / fan-in."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        if len(shape) == 1:
            tensors[key] = torch.full(shape, 0.0 if key.endswith("bias") else 1.0)
        else:
            fan_in = torch.Size(shape[1:]).numel()
            tensors[key] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return tensors


def _linear(name: str, inner: int, outer: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outer, inner)} | ({f"{name}.bias": (outer,)} if bias else {})


def _conv(name: str, inner: int, outer: int, kernel: int = 3, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outer, inner, kernel, kernel)} | ({f"{name}.bias": (outer,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _resblock(name: str, inner: int, outer: int) -> Shapes:
    shapes = _norm(f"{name}.in_layers.0", inner) | _conv(f"{name}.in_layers.2", inner, outer)
    shapes |= _linear(f"{name}.emb_layers.1", 1280, outer)
    shapes |= _norm(f"{name}.out_layers.0", outer) | _conv(f"{name}.out_layers.3", outer, outer)
    return shapes | (_conv(f"{name}.skip_connection", inner, outer, 1) if inner != outer else {})


def _transformer(name: str, width: int, context: int, depth: int, linear: bool) -> Shapes:
    project = _linear if linear else lambda key, inner, outer: _conv(key, inner, outer, 1)
    shapes = _norm(f"{name}.norm", width) | project(f"{name}.proj_in", width, width)
    for block in (f"{name}.transformer_blocks.{index}" for index in range(depth)):
        for attention, source in (("attn1", width), ("attn2", context)):
            shapes |= _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_k", source, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_v", source, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _linear(f"{block}.ff.net.0.proj", width, 8 * width) | _linear(f"{block}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{block}.{norm}", width)
    return shapes | project(f"{name}.proj_out", width, width)


def _unet_ends(width: int) -> Shapes:
    shapes = _linear(f"{UNET}time_embed.0", width, 1280) | _linear(f"{UNET}time_embed.2", 1280, 1280)
    shapes |= _conv(f"{UNET}input_blocks.0.0", 4, width)
    return shapes | _norm(f"{UNET}out.0", width) | _conv(f"{UNET}out.2", width, 4)


def _sd15_unet() -> Shapes:
    """One resolution, one block a side: input 1, middle, output 0 and 1, each with a transformer block."""
    width, context = 320, 768
    shapes = _unet_ends(width)
    for name, inner in (("input_blocks.1", width), ("output_blocks.0", 2 * width), ("output_blocks.1", 2 * width)):
        shapes |= _resblock(f"{UNET}{name}.0", inner, width)
        shapes |= _transformer(f"{UNET}{name}.1", width, context, 1, linear=False)
    shapes |= _resblock(f"{UNET}middle_block.0", width, width) | _resblock(f"{UNET}middle_block.2", width, width)
    return shapes | _transformer(f"{UNET}middle_block.1", width, context, 1, linear=False)


def _sdxl_unet() -> Shapes:
    """Three resolutions of one block a side and no middle block; transformers 0, 2, 5 deep down, 1 deep at output 0."""
    width, context = 320, 2048
    shapes = _unet_ends(width)
    shapes |= _linear(f"{UNET}label_emb.0.0", 2816, 1280) | _linear(f"{UNET}label_emb.0.2", 1280, 1280)
    for index, depth in ((1, 0), (3, 2), (5, 5)):
        shapes |= _resblock(f"{UNET}input_blocks.{index}.0", width, width)
        if depth:
            shapes |= _transformer(f"{UNET}input_blocks.{index}.1", width, context, depth, linear=True)
    for index in (2, 4):
        shapes |= _conv(f"{UNET}input_blocks.{index}.0.op", width, width)
    for index in range(6):
        shapes |= _resblock(f"{UNET}output_blocks.{index}.0", 2 * width, width)
    for index in (0, 1):
        shapes |= _transformer(f"{UNET}output_blocks.{index}.1", width, context, 1, linear=True)
    return (
        shapes
        | _conv(f"{UNET}output_blocks.1.2.conv", width, width)
        | _conv(f"{UNET}output_blocks.3.1.conv", width, width)
    )


def _mmdit(depth: int) -> Shapes:
    width = 64 * depth
    shapes = _conv(f"{UNET}x_embedder.proj", 16, width, 2) | {f"{UNET}pos_embed": (1, 32 * 32, width)}
    shapes |= _linear(f"{UNET}context_embedder", 4096, width)
    for name, inner in (("t_embedder", 256), ("y_embedder", 2048)):
        shapes |= _linear(f"{UNET}{name}.mlp.0", inner, width) | _linear(f"{UNET}{name}.mlp.2", width, width)
    for index in range(depth):
        last = index == depth - 1
        for side, only_qkv in (("x_block", False), ("context_block", last)):
            block = f"{UNET}joint_blocks.{index}.{side}"
            shapes |= _linear(f"{block}.attn.qkv", width, 3 * width)
            shapes |= _linear(f"{block}.adaLN_modulation.1", width, (2 if only_qkv else 6) * width)
            if not only_qkv:
                shapes |= _linear(f"{block}.attn.proj", width, width)
                shapes |= _linear(f"{block}.mlp.fc1", width, 4 * width) | _linear(f"{block}.mlp.fc2", 4 * width, width)
    shapes |= _linear(f"{UNET}final_layer.linear", width, 2 * 2 * 16)
    return shapes | _linear(f"{UNET}final_layer.adaLN_modulation.1", width, 2 * width)


def _flux(width: int, double: int, single: int) -> Shapes:
    shapes = _linear(f"{UNET}img_in", 64, width) | _linear(f"{UNET}txt_in", 4096, width)
    for name, inner in (("time_in", 256), ("guidance_in", 256), ("vector_in", 768)):
        shapes |= _linear(f"{UNET}{name}.in_layer", inner, width) | _linear(f"{UNET}{name}.out_layer", width, width)
    for index in range(double):
        for side in ("img", "txt"):
            block = f"{UNET}double_blocks.{index}.{side}"
            shapes |= _linear(f"{block}_mod.lin", width, 6 * width)
            shapes |= _linear(f"{block}_attn.qkv", width, 3 * width) | _linear(f"{block}_attn.proj", width, width)
            shapes |= {f"{block}_attn.norm.{norm}_norm.scale": (128,) for norm in ("query", "key")}
            shapes |= _linear(f"{block}_mlp.0", width, 4 * width) | _linear(f"{block}_mlp.2", 4 * width, width)
    for index in range(single):
        block = f"{UNET}single_blocks.{index}"
        shapes |= _linear(f"{block}.modulation.lin", width, 3 * width)
        shapes |= _linear(f"{block}.linear1", width, 7 * width) | _linear(f"{block}.linear2", 5 * width, width)
        shapes |= {f"{block}.norm.{norm}_norm.scale": (128,) for norm in ("query", "key")}
    shapes |= _linear(f"{UNET}final_layer.linear", width, 64)
    return shapes | _linear(f"{UNET}final_layer.adaLN_modulation.1", width, 2 * width)


def _clip_l(prefix: str) -> Shapes:
    shapes: Shapes = {
        f"{prefix}embeddings.token_embedding.weight": (49408, 768),
        f"{prefix}embeddings.position_embedding.weight": (77, 768),
    }
    for block in (f"{prefix}encoder.layers.{index}" for index in range(12)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{block}.self_attn.{name}", 768, 768)
        shapes |= _linear(f"{block}.mlp.fc1", 768, 3072) | _linear(f"{block}.mlp.fc2", 3072, 768)
        shapes |= _norm(f"{block}.layer_norm1", 768) | _norm(f"{block}.layer_norm2", 768)
    return shapes | _norm(f"{prefix}final_layer_norm", 768)


def _taesd(prefix: str, channels: int, scale: float, shift: float) -> dict[str, torch.Tensor]:
    """A random tiny autoencoder whose residual branches and output are damped, so that pictures are not all clipped."""
    encoder = _conv("0", 3, 64)
    for index in (2, 6, 10):
        encoder |= _conv(f"{index}", 64, 64, bias=False)
    decoder = _conv("1", channels, 64)
    for index in (7, 12, 17):
        decoder |= _conv(f"{index}", 64, 64, bias=False)
    blocks = {"encoder": (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), "decoder": (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)}
    shapes: Shapes = {}
    for side, layers, last in (
        ("encoder", encoder, _conv("14", 64, channels)),
        ("decoder", decoder, _conv("19", 64, 3)),
    ):
        for index in blocks[side]:
            for part in (0, 2, 4):
                layers.update(_conv(f"{index}.conv.{part}", 64, 64))
        shapes |= {f"{prefix}taesd_{side}.{key}": shape for key, shape in (layers | last).items()}
    tensors = _fill(shapes, 6)
    for key in tensors:
        if key.endswith("conv.4.weight"):
            tensors[key] *= 0.3
    tensors[f"{prefix}taesd_decoder.19.bias"] += 0.5
    return tensors | {f"{prefix}vae_scale": torch.tensor(scale), f"{prefix}vae_shift": torch.tensor(shift)}
