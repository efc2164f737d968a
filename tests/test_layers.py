"""Which layers each choice adapts, in the real shapes, and what patterns do."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from tests.toy import ToyDenoiser
from trilora_core.adapter import TriLoRA
from trilora_core.config import LAYERS, AdapterConfig, LayerConfig
from trilora_core.errors import InputError
from trilora_core.keys import stem_of_diffusers_module
from trilora_core.layers import CHOICES, KINDS, choose, choose_text, kind_of, kinds_of, text_kinds

KIND_OF = {
    ("sd15", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"): "self",
    ("sd15", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"): "cross",
    ("sd15", "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj"): "ff",
    ("sd15", "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_2"): "ff",
    ("sd15", "lora_unet_mid_block_attentions_0_proj_in"): "proj",
    ("sd15", "lora_unet_down_blocks_0_resnets_1_conv1"): "conv",
    ("sd15", "lora_unet_up_blocks_3_resnets_1_time_emb_proj"): "conv",
    ("sd15", "lora_unet_down_blocks_1_downsamplers_0_conv"): "conv",
    ("sd15", "lora_unet_up_blocks_1_upsamplers_0_conv"): "conv",
    ("sd15", "lora_unet_conv_in"): "",
    ("sd15", "lora_unet_conv_out"): "",
    ("sd15", "lora_unet_time_embedding_linear_1"): "",
    ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_v"): "self",
    ("sdxl", "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k"): "cross",
    ("sdxl", "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_2"): "ff",
    ("sdxl", "lora_unet_output_blocks_0_1_proj_out"): "proj",
    ("sdxl", "lora_unet_input_blocks_4_0_skip_connection"): "conv",
    ("sdxl", "lora_unet_middle_block_0_emb_layers_1"): "conv",
    ("sdxl", "lora_unet_input_blocks_3_0_op"): "conv",
    ("sdxl", "lora_unet_output_blocks_2_2_conv"): "conv",
    ("sdxl", "lora_unet_input_blocks_0_0"): "",
    ("sdxl", "lora_unet_out_2"): "",
    ("sdxl", "lora_unet_label_emb_0_0"): "",
    ("sd3", "transformer.transformer_blocks.3.attn.add_k_proj"): "joint",
    ("sd3", "transformer.transformer_blocks.3.attn.to_out.0"): "joint",
    ("sd3", "transformer.transformer_blocks.3.attn2.to_q"): "self",
    ("sd3", "transformer.transformer_blocks.3.ff_context.net.0.proj"): "ff",
    ("sd3", "transformer.transformer_blocks.3.attn.norm_q"): "",
    ("sd3", "transformer.transformer_blocks.3.norm1.linear"): "",
    ("sd3", "transformer.proj_out"): "",
    ("flux", "lora_unet_double_blocks_1_txt_attn_qkv"): "joint",
    ("flux", "lora_unet_single_blocks_1_linear2"): "joint",
    ("flux", "lora_unet_double_blocks_1_img_mlp_0"): "ff",
    ("flux", "lora_unet_double_blocks_1_img_mod_lin"): "",
    ("flux", "lora_unet_img_in"): "",
}
STEMS = {
    "lora_unet_a_attn1_to_q": "self",
    "lora_unet_a_attn2_to_q": "cross",
    "lora_unet_a_ff_net_2": "ff",
    "lora_unet_b_attn1_to_q": "self",
    "lora_unet_b_conv": "conv",
}


@pytest.mark.parametrize(("place", "kind"), list(KIND_OF.items()), ids=str)
def test_the_kind_of_a_layer_is_told_by_its_name(place: tuple[str, str], kind: str) -> None:
    assert kind_of(place[1], place[0]) == kind


def test_only_layers_of_a_kind_are_offered() -> None:
    stems = [stem for architecture, stem in KIND_OF if architecture == "sd3"]
    assert list(kinds_of(stems, "sd3")) == [stem for stem in stems if KIND_OF["sd3", stem]]


def test_every_choice_is_known_and_each_one_holds_the_next() -> None:
    assert tuple(CHOICES) == LAYERS
    assert CHOICES["self-attention"] < CHOICES["attention"] < CHOICES["attention+ff"] < CHOICES["attention+ff+conv"]
    assert CHOICES["attention+ff+conv"] == set(KINDS)


# Layers of the real shapes; kohya's trainer reports 192 and 722 modules, and 278 and 788 with a conv_dim.
COUNTS = {
    "sd15": {"self": 64, "cross": 64, "ff": 32, "proj": 32, "conv": 86},
    "sdxl": {"self": 280, "cross": 280, "ff": 140, "proj": 22, "conv": 66},
}


REAL = {
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("architecture", list(COUNTS))
def test_real_models_have_the_layers_that_kohya_trains(architecture: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**REAL[architecture])
    names = [name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    kinds = kinds_of((stem_of_diffusers_module(architecture, name) for name in names), architecture)
    assert Counter(kinds.values()) == COUNTS[architecture]
    sizes = [len(choose(kinds, LayerConfig(which))) for which in LAYERS]
    assert sizes == {"sd15": [128, 64, 192, 278], "sdxl": [560, 280, 722, 788]}[architecture]


def test_patterns_take_in_and_leave_out() -> None:
    assert choose(STEMS, LayerConfig(include=("*_a_*",))) == ["lora_unet_a_attn1_to_q", "lora_unet_a_attn2_to_q"]
    assert choose(STEMS, LayerConfig(exclude=("*attn2*", "*_b_*"))) == ["lora_unet_a_attn1_to_q"]
    both = LayerConfig("attention+ff+conv", include=("*attn[12]*", "*conv"), exclude=("*attn2*",))
    assert choose(STEMS, both) == ["lora_unet_a_attn1_to_q", "lora_unet_b_attn1_to_q", "lora_unet_b_conv"]
    assert choose(STEMS, LayerConfig(include=("lora_unet_b_attn1_to_q",))) == ["lora_unet_b_attn1_to_q"]


def test_patterns_cannot_reach_beyond_the_choice() -> None:
    with pytest.raises(
        InputError, match=r"include \*conv\. Of attention this model has 3 layers: lora_unet_a_attn1_to_q"
    ):
        choose(STEMS, LayerConfig(include=("*conv",)))


def test_a_choice_that_leaves_nothing_names_patterns_and_layers() -> None:
    with pytest.raises(InputError) as caught:
        choose(STEMS, LayerConfig("attention+ff", include=("*_c_*", "*ATTN*"), exclude=("*",)))
    said = str(caught.value)
    assert "include *_c_*, *ATTN*; exclude *" in said
    assert "has 4 layers: lora_unet_a_attn1_to_q, lora_unet_a_attn2_to_q, lora_unet_a_ff_net_2 …" in said
    with pytest.raises(InputError, match="no layer of the choice 'self-attention'"):
        choose({"lora_unet_b_conv": "conv"}, LayerConfig("self-attention"))


def test_an_adapter_has_the_chosen_layers_only() -> None:
    layers = LayerConfig(exclude=("*_mix", "*_0_*"))
    denoiser = ToyDenoiser()
    adapter = TriLoRA.create(denoiser.targets(layers), AdapterConfig(2, layers=layers), seed=0, data_hash="x")
    assert list(adapter.branches) == [f"lora_unet_blocks_1_to_{name}" for name in "qkv"]
    with adapter.attach(denoiser.targets(layers)):
        hooked = [name for name, module in denoiser.model.named_modules() if module._forward_hooks]
    assert hooked == ["blocks.1.to_q", "blocks.1.to_k", "blocks.1.qv"]


def clip_stems(encoder: str, count: int) -> list[str]:
    parts = [f"self_attn_{name}_proj" for name in ("k", "v", "q", "out")] + ["mlp_fc1", "mlp_fc2"]
    rest = [f"{encoder}_text_model_embeddings_token_embedding", f"{encoder}_text_projection"]
    return [f"{encoder}_text_model_encoder_layers_{n}_{part}" for n in range(count) for part in parts] + rest


def test_text_encoders_offer_attention_and_feed_forward_of_each_layer() -> None:
    kinds = text_kinds(clip_stems("lora_te", 12), "sd15")
    assert Counter(kinds.values()) == {"self": 48, "ff": 24}  # kohya's trainer reports 72 modules
    sizes = [len(choose_text(kinds, LayerConfig(which))) for which in LAYERS]
    assert sizes == [48, 48, 72, 72]
    two = text_kinds(clip_stems("lora_te1", 12) + clip_stems("lora_te2", 32), "sdxl")
    assert Counter(two.values()) == {"self": 176, "ff": 88}


def test_layers_whose_outcome_nobody_reads_are_not_offered() -> None:
    stems = clip_stems("lora_te1", 3) + clip_stems("lora_te2", 2)
    kinds = text_kinds(stems, "sdxl", {"lora_te1": 2})
    assert kinds == {
        stem: kind for stem, kind in text_kinds(stems, "sdxl").items() if "te1_text_model_encoder_layers_2" not in stem
    }
    assert len(kinds) == 24


def test_each_model_has_its_own_text_encoders_and_some_have_none_to_train() -> None:
    assert text_kinds(clip_stems("lora_te1", 1) + clip_stems("lora_te2", 1), "sd15") == {}
    assert text_kinds(clip_stems("lora_te", 1), "sdxl") == {}
    for architecture in ("flux", ""):
        with pytest.raises(InputError, match=r"cannot be trained, only those of SD 1\.5 and SDXL; set it to 0"):
            text_kinds(clip_stems("lora_te", 1), architecture)


def test_patterns_hold_for_text_encoders_and_the_error_names_them() -> None:
    kinds = text_kinds(clip_stems("lora_te", 2), "sd15")
    chosen = choose_text(
        kinds, LayerConfig("attention+ff", include=("lora_unet_*", "*text_model*fc?"), exclude=("*_0_*",))
    )
    assert chosen == [f"lora_te_text_model_encoder_layers_1_mlp_fc{n}" for n in (1, 2)]
    with pytest.raises(InputError) as caught:
        choose_text(kinds, LayerConfig(include=("*attn2*",)))
    said = str(caught.value)
    assert "the layer patterns leave no layer of the text encoders: include *attn2*" in said
    assert "has 8 layers: lora_te_text_model_encoder_layers_0_self_attn_k_proj" in said
    assert "or set text_encoder_rate to 0" in said
    with pytest.raises(InputError, match="has no text encoder with a layer that can be trained"):
        choose_text({}, LayerConfig(include=("*",)))
