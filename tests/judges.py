"""Networks of random weights in the true layouts of FID's Inception and of CLIP, and pictures, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trilora_core.evaluate_inception import InceptionFID


def inception_state() -> dict[str, Tensor]:
    """Random tensors by the names of the weights file, in half precision; variances keep the signal's size."""
    draw, found = torch.Generator().manual_seed(0), {}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionFID().state_dict().items()}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        values = torch.rand(shape, generator=draw)
        if name.endswith("conv.weight"):
            values = (values - 0.5) * (24 / values[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            values = values + 0.5
        else:
            values = (values - 0.5) * 0.2
        found[name] = values.half()
    return found


def write_inception(path: Path) -> Path:
    save_file(inception_state(), path)
    return path


def write_clip(folder: Path) -> Path:
    """Write a CLIP of two layers with the demo's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from trilora_core.demo import words

    torch.manual_seed(0)
    tokenizer = words.build()
    ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": words.MAX_TOKENS}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8)
    )
    model.save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def noise_pictures(count: int, side: int, seed: int = 1) -> Tensor:
    """(count, 3, side, side) uint8."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=draw).to(torch.uint8)
