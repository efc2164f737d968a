"""Names: every spelling of a layer leads to one canonical stem."""

from __future__ import annotations

import pytest

from trilora_core import keys
from trilora_core.keys import canonical_stem, guess_architecture, parse_key, stem_of_diffusers_module

BLOCK = "transformer_blocks_0_attn1_to_q"
TEXT = "text_encoder.text_model.encoder.layers.0"
TE = "te_text_model_encoder_layers_0"


@pytest.mark.parametrize(
    ("key", "stem", "part"),
    [
        ("lora_unet_mid_block_x.lora_down.weight", "lora_unet_mid_block_x", "down"),
        ("lora_unet_mid_block_x.lora_up.weight", "lora_unet_mid_block_x", "up"),
        ("lora_unet_mid_block_x.alpha", "lora_unet_mid_block_x", "alpha"),
        ("unet.mid_block.to_q.lora_A.weight", "unet.mid_block.to_q", "down"),
        ("unet.mid_block.to_q.lora_B.weight", "unet.mid_block.to_q", "up"),
        ("base_model.model.to_q.lora_A.default.weight", "base_model.model.to_q", "down"),
        ("base_model.model.to_q.lora_B.my_style.weight", "base_model.model.to_q", "up"),
        ("transformer.to_q.lora.down.weight", "transformer.to_q", "down"),
        ("unet.attn1.processor.to_q_lora.up.weight", "unet.attn1.processor.to_q", "up"),
        ("text_encoder.q_proj.lora_linear_layer.up.weight", "text_encoder.q_proj", "up"),
        ("blocks.0.qkv.lora_A", "blocks.0.qkv", "down"),
    ],
)
def test_every_spelling_of_a_tensor_is_split(key, stem, part):
    assert parse_key(key) == (stem, part)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w2", "LoKr"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("unet.x.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_x.lora_mid.weight", "LoRA with a middle (Tucker) convolution"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.weight", "unknown tensors"),
        ("lora_unet_x.w_norm", "trained norm"),
        ("lora_unet_x.diff_b", "trained bias"),
        ("unet.x.lora_B.bias", "trained bias"),
        ("lora_unet_x.diff", "whole-weight difference"),
        ("bundle_emb.word.string_to_param.*", "textual inversion embedding"),
        ("model.diffusion_model.out.2.weight", "base model weights"),
    ],
)
def test_what_is_no_plain_lora_is_named(key, kind):
    assert parse_key(key) is None
    assert keys.foreign_layer(key)[0] == kind


def test_the_layer_of_a_foreign_tensor_is_named():
    assert keys.foreign_layer("lora_unet_x.hada_w1_a") == ("LoHa", "lora_unet_x")
    assert keys.foreign_layer("something.weight") == ("unknown tensors", "something.weight")


@pytest.mark.parametrize(
    "raw",
    [
        f"lora_unet_down_blocks_1_attentions_0_{BLOCK}",
        f"lora_unet_input_blocks_4_1_{BLOCK}",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q",
        "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    ],
)
def test_unet_spellings_meet(raw):
    assert canonical_stem(raw, "sd15") == f"lora_unet_down_blocks_1_attentions_0_{BLOCK}"
    assert canonical_stem(raw, "sdxl") == f"lora_unet_input_blocks_4_1_{BLOCK}"


@pytest.mark.parametrize(
    ("diffusers", "sgm"),
    [
        ("down_blocks_0_resnets_1_conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks_2_resnets_0_conv_shortcut", "input_blocks_7_0_skip_connection"),
        ("down_blocks_0_downsamplers_0_conv", "input_blocks_3_0_op"),
        ("up_blocks_1_upsamplers_0_conv", "output_blocks_5_2_conv"),
        ("up_blocks_0_attentions_2_proj_in", "output_blocks_2_1_proj_in"),
        ("mid_block_resnets_0_time_emb_proj", "middle_block_0_emb_layers_1"),
        ("mid_block_resnets_1_conv2", "middle_block_2_out_layers_3"),
        ("mid_block_attentions_0_proj_out", "middle_block_1_proj_out"),
        ("conv_in", "input_blocks_0_0"),
        ("conv_out", "out_2"),
        ("time_embedding_linear_2", "time_embed_2"),
        ("add_embedding_linear_1", "label_emb_0_0"),
    ],
)
def test_blocks_are_respelled_both_ways(diffusers, sgm):
    assert canonical_stem(f"lora_unet_{diffusers}", "sdxl") == f"lora_unet_{sgm}"
    assert canonical_stem(f"lora_unet_{sgm}", "sd15") == f"lora_unet_{diffusers}"


@pytest.mark.parametrize(
    ("raw", "architecture", "stem"),
    [
        (f"{TEXT}.self_attn.q_proj", "sd15", f"lora_{TE}_self_attn_q_proj"),
        (f"{TEXT}.self_attn.to_out", "sd15", f"lora_{TE}_self_attn_out_proj"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "sdxl", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "sd15", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "sd3", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "flux", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("diffusion_model.single_blocks.3.linear1_qkv", "flux", "diffusion_model.single_blocks.3.linear1_qkv"),
        ("transformer.transformer_blocks.0.attn.to_q", "flux", "transformer.transformer_blocks.0.attn.to_q"),
        ("transformer.transformer_blocks.0.attn.to_q", "sd3", "transformer.transformer_blocks.0.attn.to_q"),
        ("base_model.model.transformer_blocks.0.attn.to_q", "sd3", "transformer.transformer_blocks.0.attn.to_q"),
        ("transformer_blocks.0.attn.to_out.0", "sd3", "transformer.transformer_blocks.0.attn.to_out.0"),
        ("diffusion_model.blocks.0.self_attn.q", "", "diffusion_model.blocks.0.self_attn.q"),
        ("base_model.model.blocks.0.attn", "", "base_model.model.blocks.0.attn"),
        ("lora_unet__blocks_0_cross_attn_k", "", "lora_unet_blocks_0_cross_attn_k"),
        ("lycoris_blocks_0", "", "lycoris_blocks_0"),
    ],
)  # fmt: skip
def test_other_models_and_text_encoders(raw, architecture, stem):
    assert canonical_stem(raw, architecture) == stem


@pytest.mark.parametrize("architecture", ["sd15", "sdxl", "sd3", "flux", ""])
def test_a_canonical_stem_stays(architecture):
    raw = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
    once = canonical_stem(raw, architecture)
    assert canonical_stem(once, architecture) == once


@pytest.mark.parametrize(
    ("metadata", "architecture"),
    [
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"ss_base_model_version": "flux1"}, "flux"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        ({"modelspec.architecture": "stable-diffusion-3-m/lora"}, "sd3"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "flux"),
        ({"ss_base_model_version": "sd_v2"}, ""),
        ({"trilora.architecture": "toy"}, "toy"),
    ],
)
def test_what_the_metadata_says_wins(metadata, architecture):
    stems = ["lora_unet_down_blocks_0_attentions_0_proj_in"]
    assert guess_architecture(stems, metadata) == architecture


@pytest.mark.parametrize(
    ("stem", "width", "architecture"),
    [
        (f"lora_unet_down_blocks_0_attentions_0_{BLOCK}", 0, "sd15"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", 0, "sd15"),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q", 0, "sdxl"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 0, "sdxl"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", 0, "sdxl"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 2048, "sdxl"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 768, "sd15"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 1024, ""),
        ("lora_unet_mid_block_attentions_0_proj_in", 0, ""),
        ("lora_unet_double_blocks_0_img_attn_qkv", 0, "flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", 0, "flux"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv", 0, "sd3"),
        ("transformer.transformer_blocks.0.attn.to_q", 1536, "sd3"),
        ("transformer.transformer_blocks.0.attn.to_q", 3072, ""),
        ("transformer.double_blocks.0.img_attn_qkv", 0, ""),
        ("diffusion_model.blocks.0.self_attn.q", 0, ""),
    ],
)
def test_the_names_tell_the_architecture(stem, width, architecture):
    assert guess_architecture([stem], {}, {stem: width}) == architecture


def test_diffusers_modules_there_and_back():
    paths = [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "text_encoder.encoder.layers.1.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj",
    ]
    stems = [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_self_attn_q_proj",
    ]
    assert [stem_of_diffusers_module("sdxl", path) for path in paths] == stems


def test_diffusers_modules_of_transformers_keep_their_names():
    path = "transformer_blocks.0.attn.to_q"
    assert stem_of_diffusers_module("sd3", path) == f"transformer.{path}"
    assert stem_of_diffusers_module("flux", f"single_{path}") == f"transformer.single_{path}"


def test_blocks_of_one_resnet_count_differently():
    path = "down_blocks.1.attentions.0.proj_in"
    assert stem_of_diffusers_module("sdxl", path, layers_per_block=1) == "lora_unet_input_blocks_3_1_proj_in"
