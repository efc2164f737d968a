"""Where layers lie, what share of the energy they hold, and overlap against its formula."""

from __future__ import annotations

import pytest
import torch

from tests.adapters import make_adapter, make_layer
from trilora_core.anatomy import Place, anatomy, describe, overlap_lines, overlaps, place_of
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer
from trilora_core.spectral import SVD, canonical, overlap

TO_Q = "transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("stem", "architecture", "place"),
    [
        (f"lora_unet_down_blocks_1_attentions_0_{TO_Q}", "sd15", Place("down", 1, 0)),
        (f"lora_unet_input_blocks_8_1_{TO_Q}", "sdxl", Place("down", 2, 1)),
        (f"lora_unet_output_blocks_2_1_{TO_Q}", "sdxl", Place("up", 0, 2)),
        (f"lora_unet_middle_block_1_{TO_Q}", "sdxl", Place("mid", 0)),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "sd15", Place("down", 0, 1)),
        ("lora_unet_up_blocks_1_upsamplers_0_conv", "sd15", Place("up", 1, 2)),
        ("lora_te_text_model_encoder_layers_7_mlp_fc1", "sd15", Place("text", 1, 7)),
        ("lora_te2_text_model_encoder_layers_30_mlp_fc1", "sdxl", Place("text", 2, 30)),
        ("lora_unet_single_blocks_12_linear1", "flux", Place("single", 12)),
        ("lora_unet_double_blocks_3_img_attn_qkv", "flux", Place("double", 3)),
        ("transformer.transformer_blocks.23.attn.to_q", "sd3", Place("joint", 23)),
        ("transformer.transformer_blocks.3.attn.to_q", "flux", Place("double", 3)),
        ("transformer.single_transformer_blocks.37.attn.to_q", "flux", Place("single", 37)),
        ("lora_unet_joint_blocks_5_x_block_attn_qkv", "sd3", Place("joint", 5)),
        ("something_else", "", Place("other", 0)),
    ],
)
def test_every_layer_has_its_place(stem: str, architecture: str, place: Place) -> None:
    assert place_of(stem, architecture) == place


def test_layers_are_in_the_order_of_the_model_and_shares_add_up() -> None:
    stems = [f"lora_unet_up_blocks_1_attentions_0_{TO_Q}", f"lora_unet_mid_block_attentions_0_{TO_Q}",
             f"lora_unet_down_blocks_0_attentions_1_{TO_Q}", "lora_te_text_model_encoder_layers_0_mlp_fc1",
             f"lora_unet_down_blocks_0_attentions_0_{TO_Q.replace('attn1', 'attn2')}"]  # fmt: skip
    adapter = make_adapter(stems, trilora__architecture="sd15")
    found = anatomy(adapter, "style")
    assert [layer.stem for layer in found.layers] == [stems[3], stems[4], stems[2], stems[1], stems[0]]
    assert [layer.kind for layer in found.layers] == ["text", "cross", "self", "self", "self"]
    shares = found.shares(lambda layer: layer.kind)
    assert sum(shares.values()) == pytest.approx(1)
    norm = sum(float(layer.svd.s.square().sum()) for layer in adapter.layers.values())
    assert shares["cross"] == pytest.approx(float(adapter.layers[stems[4]].svd.s.square().sum()) / norm, rel=1e-5)
    assert "style: 5 layers, rank 3" in describe(found) and "mid" in describe(found)
    with pytest.raises(InputError, match="no layers"):
        anatomy(Adapter({}, {}), "none")


def test_overlap_is_the_mean_weighted_by_both_norms() -> None:
    a, b = make_adapter(["x", "y", "only_a"], seed=1), make_adapter(["x", "y"], seed=5)
    for side in ("in", "out"):
        table = overlaps([a, b, a], side)
        weights = {s: float(a.layers[s].svd.s.norm() * b.layers[s].svd.s.norm()) for s in "xy"}
        wanted = sum(
            weights[s] * overlap(a.layers[s].svd, b.layers[s].svd, side=side, weighted=True) for s in "xy"
        ) / sum(weights.values())
        assert float(table[0, 1]) == pytest.approx(wanted, rel=1e-5) == float(table[1, 2])
        assert float(table[0, 2]) == pytest.approx(1) and torch.equal(table, table.T)


def test_a_shared_down_shows_in_what_adapters_read_and_not_in_what_they_write() -> None:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(2, 40, generator=generator)
    both = [Adapter({"x": Layer(canonical(torch.randn(40, 2, generator=generator), down))}, {}) for _ in range(2)]
    reads, writes = (float(overlaps(both, side)[0, 1]) for side in ("in", "out"))
    assert reads > 0.7 and writes < 0.3
    assert overlap_lines(both, ["a", "b"]) == [
        f"a and b: {reads:.0%} of what they read and {writes:.0%} of what they write overlaps"
    ]
    assert overlap_lines(both[:1], ["a"]) == []


def test_strangers_zeros_and_unlike_shapes() -> None:
    a, b = make_adapter(["x"]), make_adapter(["y"])
    assert overlap_lines([a, b], ["a", "b"]) == ["a and b have no layer in common"]
    zero = Adapter({"x": Layer(SVD(torch.eye(16, 2), torch.zeros(2), torch.eye(2, 16)))}, {})
    assert overlaps([a, zero], "in")[0, 1].isnan()
    assert anatomy(zero, "zero").shares(lambda layer: layer.kind) == {"other": 0.0}
    with pytest.raises(InputError, match="x differs in shape"):
        overlaps([a, Adapter({"x": make_layer(8, 8, 2)}, {})], "in")
