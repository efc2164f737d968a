"""Small random CLIPs, made by the host's own classes as its loaders make them: in inference mode."""

from __future__ import annotations

from typing import Any

import torch

LAYERS = 3
LAYER = {"num_hidden_layers": LAYERS, "intermediate_size": 256}
SMALL = {"clip_l_model_config": LAYER, "clip_g_model_config": LAYER}


def clip(kind: str, seed: int | None = 0, dtype: torch.dtype = torch.float32, words: int | None = None) -> Any:
    """CLIP-L of SD 1.5, or CLIP-L and CLIP-G of SDXL, of three layers each at their own width; empty without a seed.

    `words`: a vocabulary smaller than the tokenizer's, where nothing is encoded.
    """
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models_base

    kinds = {
        "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }
    target = comfy.supported_models_base.ClipTarget(*kinds[kind])
    fewer = {} if words is None else {"vocab_size": words}
    configs = {name: config | fewer for name, config in SMALL.items()}
    with torch.inference_mode():
        made = comfy.sd.CLIP(target, model_options={"dtype": dtype, **configs})
        if seed is not None:
            fill(made.cond_stage_model, seed)
    return made


def fill(model: Any, seed: int) -> None:
    """Weights of norms near one, biases near zero, matrices that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("token_embedding.weight"):  # large, and few of them are looked at
            rows = torch.randn(997, parameter.shape[1], generator=generator)
            values = rows.repeat(-(-len(parameter) // 997), 1)[: len(parameter)]
        else:
            values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            values = values * 0.05 + ("norm" in name and name.endswith("weight"))
        elif "embedding" not in name:
            values = values / parameter.shape[1] ** 0.5
        parameter.copy_(values)


def twin(made: Any, kind: str) -> Any:
    """The same weights in ordinary float32 tensors."""
    other = clip(kind, None)
    for name, parameter in list(other.cond_stage_model.named_parameters()):
        owner, _, last = name.rpartition(".")
        source = made.cond_stage_model.get_parameter(name)
        value = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
        with torch.no_grad():
            value.copy_(source)
        setattr(other.cond_stage_model.get_submodule(owner), last, value)
    return other
