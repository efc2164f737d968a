"""Our files in diffusers: the same ΔW in every layer of SD1.5 and SDXL, accepted names for Flux and SD3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.adapters import dense, make_layer, relative_error
from trilora_core.fileformat import Adapter, Layer, read_adapter, write_adapter
from trilora_core.keys import stem_of_diffusers_module
from trilora_core.layers import kinds_of

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
OTHERS = (
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
    "ff.net.0.proj",
    "ff.net.2",
    "time_emb_proj",
    "conv_shortcut",
    ".conv",
)


def tiny_unet(architecture: str) -> nn.Module:
    """The real block layout of SD1.5 or SDXL on eight channels, random weights."""
    shared = {"sample_size": 8, "layers_per_block": 2, "cross_attention_dim": 16, "norm_num_groups": 4}
    if architecture == "sd15":
        return diffusers.UNet2DConditionModel(block_out_channels=(8,) * 4, attention_head_dim=2, **shared)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,) * 3,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
        **shared,
    )


def pipeline(architecture: str, unet: nn.Module):
    scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    if architecture == "sd15":
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(unet=unet, scheduler=scheduler, **nothing, **more)
    nothing |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    return diffusers.StableDiffusionXLPipeline(unet=unet, scheduler=scheduler, **nothing)


def layer_for(module: nn.Module, seed: int) -> Layer:
    weight = module.weight
    return make_layer(weight.shape[0], weight[0].numel(), 2, seed=seed, kernel=tuple(weight.shape[2:]))


def adapter_for(architecture: str, unet: nn.Module, endings: tuple[str, ...]) -> tuple[Adapter, dict[str, str]]:
    """A random adapter for all modules of these endings, and which module each stem means."""
    modules = dict(unet.named_modules())
    paths = [path for path, module in modules.items() if path.endswith(endings) and hasattr(module, "weight")]
    stems = {stem_of_diffusers_module(architecture, path): path for path in paths}
    layers = {stem: layer_for(modules[path], seed) for seed, (stem, path) in enumerate(stems.items())}
    assert len(stems) == len(paths) > 0
    return Adapter(layers, {"trilora.architecture": architecture}), stems


@pytest.mark.parametrize(("architecture", "count"), [("sd15", 276), ("sdxl", 366)])
def test_load_lora_weights_gives_our_change(tmp_path, architecture, count):
    torch.manual_seed(0)
    unet = tiny_unet(architecture)
    adapter, stems = adapter_for(architecture, unet, ATTENTION + OTHERS)
    assert len(stems) == count
    write_adapter(tmp_path / "a.safetensors", adapter, dtype=torch.float16)
    before = {path: unet.get_submodule(path).weight.clone() for path in stems.values()}
    pipe = pipeline(architecture, unet)
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for stem, path in stems.items():
        change = (unet.get_submodule(path).weight - before[path]).flatten(1)
        assert relative_error(change, dense(adapter.layers[stem])) <= 1e-3, stem


def test_a_file_that_peft_made_is_read_as_peft_applies_it(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = tiny_unet("sd15")
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "conv1"], init_lora_weights=False))
    state = peft.get_peft_model_state_dict(unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    found = read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    wrapped = {path: module for path, module in unet.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert len(found.layers) == len(wrapped) == 54
    for path, module in wrapped.items():
        layer = found.layers[stem_of_diffusers_module("sd15", path)]
        assert relative_error(dense(layer), module.get_delta_weight("default").flatten(1)) < 1e-5, path


def test_flux_files_pass_the_converter_and_keep_their_change(tmp_path):
    """The converter knows only the real widths, so the layers are thin instead: few inputs."""
    names = {
        "lora_unet_double_blocks_0_img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "lora_unet_double_blocks_0_img_attn_proj": ("attn.to_out.0",),
        "lora_unet_double_blocks_0_txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "lora_unet_double_blocks_0_txt_attn_proj": ("attn.to_add_out",),
        "lora_unet_double_blocks_0_img_mlp_0": ("ff.net.0.proj",),
        "lora_unet_double_blocks_0_img_mlp_2": ("ff.net.2",),
        "lora_unet_double_blocks_0_txt_mlp_0": ("ff_context.net.0.proj",),
        "lora_unet_double_blocks_0_txt_mlp_2": ("ff_context.net.2",),
    }
    layers = {stem: make_layer(12 * len(parts), 8, 3, seed=len(stem)) for stem, parts in names.items()}
    layers["lora_unet_single_blocks_0_linear1"] = make_layer(3 * 3072 + 12288, 8, 3)
    layers["lora_unet_single_blocks_0_linear2"] = make_layer(12, 8, 3)
    write_adapter(tmp_path / "a.safetensors", Adapter(layers, {}), dtype=torch.float32)
    state, alphas = diffusers.FluxPipeline.lora_state_dict(tmp_path, weight_name="a.safetensors", return_alphas=True)
    assert not alphas
    prefix = "transformer.transformer_blocks.0."
    for stem, parts in names.items():
        assert relative_error(joined(state, [prefix + part for part in parts]), dense(layers[stem])) < 1e-5, stem
    prefix = "transformer.single_transformer_blocks.0."
    parts = [prefix + part for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert relative_error(joined(state, parts), dense(layers["lora_unet_single_blocks_0_linear1"])) < 1e-5
    last = joined(state, [f"{prefix}proj_out"])
    assert relative_error(last, dense(layers["lora_unet_single_blocks_0_linear2"])) < 1e-5
    assert set(kinds_of(layers, "flux")) == set(layers)
    assert len(state) == 2 * 17


def joined(state: dict[str, torch.Tensor], modules: list[str]) -> torch.Tensor:
    """ΔW of several modules one above the other."""
    return torch.cat([state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for name in modules])


def test_sd3_files_load_into_the_transformer(tmp_path):
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
    )
    endings = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", ".net.0.proj", ".net.2")
    adapter, stems = adapter_for("sd3", transformer, endings)
    kinds = list(kinds_of(stems, "sd3").values())
    assert len(kinds) == len(stems) and kinds.count("joint") == 15 and kinds.count("ff") == 6
    write_adapter(tmp_path / "a.safetensors", adapter, dtype=torch.float16)
    before = {path: transformer.get_submodule(path).weight.clone() for path in stems.values()}
    mixin = diffusers.StableDiffusion3Pipeline
    state = mixin.lora_state_dict(Path(tmp_path), weight_name="a.safetensors")
    mixin.load_lora_into_transformer(state, transformer)
    transformer.fuse_lora()
    for stem, path in stems.items():
        change = transformer.get_submodule(path).weight - before[path]
        assert relative_error(change, dense(adapter.layers[stem])) <= 1e-3, stem
