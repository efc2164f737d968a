"""The block of every layer beside the real structure of the models, and the lists that kohya's tools use."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from trilora_core.blocks import LISTS, REST, Block, block_of, blocks_of
from trilora_core.keys import canonical_stem, is_text, stem_of_diffusers_module

STEMS = {
    ("sd15", "lora_unet_conv_in"): "IN00",
    ("sd15", "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"): "IN02",
    ("sd15", "lora_unet_down_blocks_2_resnets_0_conv1"): "IN07",
    ("sd15", "lora_unet_down_blocks_1_downsamplers_0_conv"): "IN06",
    ("sd15", "lora_unet_mid_block_attentions_0_proj_in"): "MID",
    ("sd15", "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2"): "OUT11",
    ("sd15", "lora_unet_up_blocks_0_upsamplers_0_conv"): "OUT02",
    ("sd15", "lora_unet_conv_out"): "REST",
    ("sd15", "lora_unet_time_embedding_linear_1"): "REST",
    ("sd15", "lora_te_text_model_encoder_layers_3_self_attn_q_proj"): "TE1",
    ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v"): "IN04",
    ("sdxl", "lora_unet_middle_block_1_proj_out"): "MID",
    ("sdxl", "lora_unet_output_blocks_8_0_skip_connection"): "OUT08",
    ("sdxl", "lora_unet_label_emb_0_0"): "REST",
    ("sdxl", "lora_te2_text_model_encoder_layers_31_mlp_fc2"): "TE2",
    ("sd3", "transformer.transformer_blocks.23.attn.add_k_proj"): "joint 23",
    ("sd3", "lora_unet_joint_blocks_3_x_block_mlp_fc1"): "joint 3",
    ("sd3", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"): "TE3",
    ("flux", "lora_unet_double_blocks_18_txt_mlp_2"): "double 18",
    ("flux", "lora_unet_single_blocks_37_linear2"): "single 37",
    ("flux", "transformer.transformer_blocks.4.attn.to_q"): "double 4",
    ("flux", "transformer.single_transformer_blocks.4.attn.to_q"): "single 4",
    ("flux", "lora_unet_img_in"): "IN",
    ("flux", "lora_unet_time_in_in_layer"): "IN",
    ("flux", "lora_unet_final_layer_linear"): "OUT",
    ("", "something_else"): "REST",
}


@pytest.mark.parametrize(("architecture", "stem"), STEMS)
def test_the_block_of_a_stem(architecture: str, stem: str) -> None:
    assert str(block_of(stem, architecture)) == STEMS[architecture, stem]


@pytest.fixture(scope="module")
def sd15() -> dict[str, str]:
    """Every linear and convolution of diffusers' U-Net of SD 1.5 without weights: canonical stem -> module name."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    names = [name for name, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    return {stem_of_diffusers_module("sd15", name): name for name in names}


def test_sd15_beside_the_original_numbers(sd15: dict[str, str]) -> None:
    """keys.py knows the original checkpoint's numbers by another way, that of SDXL's files."""
    original = re.compile(r"lora_unet_(input|output|middle)_blocks?_(\d+)?")
    seen = 0
    for stem in sd15:
        match = original.match(canonical_stem(stem, "sdxl"))
        block = block_of(stem, "sd15")
        if match is None:
            assert block == REST
            continue
        group = {"input": "IN", "output": "OUT", "middle": "MID"}[match[1]]
        assert block == (Block("MID") if group == "MID" else Block(group, int(match[2])))
        seen += 1
    assert seen > 250
    assert {block_of(stem, "sd15") for stem in sd15} | {Block("TE", 1)} == set(blocks_of("sd15"))


def test_attention_of_sd15_lies_in_the_blocks_of_the_short_list(sd15: dict[str, str]) -> None:
    counts = Counter(str(block_of(stem)) for stem in sd15 if "_attn" in stem)
    short = [str(block) for names in LISTS["sd15"][0][1:] for block in names]
    assert list(counts) == [name for name in counts if name in short] and set(counts) == set(short)
    assert set(counts.values()) == {8} and len(counts) == 16


def test_attention_of_sdxl_lies_in_the_blocks_of_the_short_list() -> None:
    """560 attention linears: depth 2 in 1 of the levels, 10 in the last and the middle (SDXL's own configuration)."""
    depths = {"input_blocks": {4: 2, 5: 2, 7: 10, 8: 10}, "output_blocks": {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}}
    places = [(f"{side}_{n}_1", depth) for side, rows in depths.items() for n, depth in rows.items()]
    counts: Counter[Block] = Counter()
    for place, depth in [*places, ("middle_block_1", 10)]:
        for index in range(depth):
            for layer in ("to_q", "to_k", "to_v", "to_out_0"):
                for attention in ("attn1", "attn2"):
                    stem = f"lora_unet_{place}_transformer_blocks_{index}_{attention}_{layer}"
                    counts[block_of(stem, "sdxl")] += 1
    assert sum(counts.values()) == 560
    assert set(counts) == {block for names in LISTS["sdxl"][0][1:] for block in names}


@pytest.mark.parametrize(("architecture", "lengths"), [("sd15", [17, 26]), ("sdxl", [12, 20]), ("flux", [61])])
def test_lists_have_the_known_lengths_and_name_blocks_once(architecture: str, lengths: list[int]) -> None:
    assert [len(names) for names in LISTS[architecture]] == lengths
    for names in LISTS[architecture]:
        flat = [block for blocks in names for block in blocks]
        assert len(flat) == len(set(flat))


def test_blocks_of_an_unknown_model_are_those_of_its_layers() -> None:
    stems = ["lora_unet_input_blocks_3_x", "lora_te_y", "odd"]
    assert list(map(str, blocks_of("", stems))) == ["IN03", "TE1", "REST"]
    assert all(is_text(stem) == (block_of(stem).group == "TE") for stem in stems)
