"""Small models of the host's own classes, and adapters for them."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch

CPU = torch.device("cpu")
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 24,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
MMDIT = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
    "num_patches": 64,
    "pos_embed_max_size": 8,
    "pos_embed_scaling_factor": None,
}
CLIP_SHAPE = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "bos_token_id": 49406,
    "pad_token_id": 49407,
    "projection_dim": 32,
}


def unet(dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """SD1.5 with 32 channels, one block, context of width 24."""
    return _patcher(comfy.supported_models.SD15(UNET), dtype)


def mmdit(dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """SD3 of depth 2, whose q, k and v are one weight."""
    return _patcher(comfy.supported_models.SD3(MMDIT), dtype)


def clip(dtype: torch.dtype = torch.float32) -> comfy.sd.CLIP:
    """CLIP-L of width 32 with two layers."""
    text = partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=dict(CLIP_SHAPE), layer_norm_hidden_state=False)
    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, partial(comfy.sd1_clip.SD1ClipModel, clip_model=text)
    )
    made = comfy.sd.CLIP(target, model_options={"dtype": dtype, "load_device": CPU, "offload_device": CPU})
    _fill(made.cond_stage_model)
    return made


def _patcher(config, dtype: torch.dtype) -> comfy.model_patcher.ModelPatcher:
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    model = config.get_model({}, "", device=CPU)
    _fill(model)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def _fill(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        width = parameter.shape[1:].numel() if parameter.ndim else 1
        values = torch.randn(parameter.shape, generator=generator) * 0.3 / width**0.5
        if parameter.ndim < 2:
            values = 1 + values if name.endswith("weight") else values
        parameter.requires_grad_(False)
        parameter.data.copy_(values.to(parameter.dtype))


def adapter(pack, shapes: dict[str, tuple[int, ...]], *, rank: int = 3, size: float = 0.1, seed: int = 1, **metadata):
    """A random adapter: stem -> shape of the weight, (out, in) or (out, in, h, w); `size` is that of the change."""
    core = import_module(".trilora_core.fileformat", pack.__name__)
    spectral = import_module(".trilora_core.spectral", pack.__name__)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for stem, shape in shapes.items():
        columns = torch.Size(shape[1:]).numel()
        up = torch.randn(shape[0], rank, generator=generator) * size
        down = torch.randn(rank, columns, generator=generator) * 0.3 / (columns * rank) ** 0.5
        layers[stem] = core.Layer(spectral.canonical(up, down), tuple(shape[2:]))
    return core.Adapter(layers, metadata)


def change(made, stem: str) -> torch.Tensor:
    """The dense ΔW of one layer, (out, in · kernel), float64."""
    u, s, vh = (part.double() for part in made.layers[stem].svd)
    return u @ torch.diag(s) @ vh


def snapshot(patcher) -> dict[str, torch.Tensor]:
    """Copies of all weights of the patcher's model."""
    return {name: value.clone() for name, value in patcher.model.state_dict().items()}


def load(patcher) -> torch.nn.Module:
    """The host's model with this patcher's patches on it."""
    comfy.model_management.load_models_gpu([patcher])
    return patcher.model


def unload() -> None:
    """Take everything off, as the host does when it needs the memory."""
    comfy.model_management.unload_all_models()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit-equal in every weight."""
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return a.keys() == b.keys() and all(
        torch.equal(a[k].view(views[a[k].element_size()]), b[k].view(views[b[k].element_size()])) for k in a
    )


def error(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative distance in the Frobenius norm."""
    return float((value.double() - wanted.double()).norm() / wanted.double().norm())


def cosine(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Cosine of the angle between two tensors."""
    return float(torch.nn.functional.cosine_similarity(value.double().flatten(), wanted.double().flatten(), dim=0))


def hooks_on(model: torch.nn.Module) -> int:
    """How many forward hooks there are on the model."""
    return sum(len(module._forward_hooks) for module in model.modules())


def snapshot_loaded(patcher) -> dict[str, torch.Tensor]:
    """Copies of all weights while the patcher is loaded."""
    load(patcher)
    return snapshot(patcher)
