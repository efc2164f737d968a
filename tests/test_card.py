"""What a node shows of an adapter and of a merge: the numbers of the core, in plain data of bounded size."""

from __future__ import annotations

import json

import pytest
import torch

from tests.adapters import make_adapter, make_layer
from trilora_core.card import adapter_card, merge_card
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer
from trilora_core.merge import MergeOptions, merge
from trilora_core.metadata import rank_summary
from trilora_core.shaping import Shape, shape
from trilora_core.spectral import canonical

IN, DEEP, MID = (
    f"lora_unet_{place}_attentions_0_transformer_blocks_0_attn1_to_q"
    for place in ("down_blocks_0", "down_blocks_1", "mid_block")
)


def unlike() -> Adapter:
    """Layers of rank 6, 3 and zero."""
    zero = Layer(canonical(torch.zeros(16, 2), torch.ones(2, 16)))
    layers = {IN: make_layer(24, 20, 6), DEEP: make_layer(16, 16, 3, seed=1), MID: zero}
    return Adapter(layers, {"modelspec.trigger_phrase": "ohwx, a <b>stripe</b>", "ss_sd_model_name": "photon"})


def test_a_card_tells_what_the_core_measures() -> None:
    adapter = unlike()
    card = json.loads(json.dumps(adapter_card(adapter)))
    summary = rank_summary(adapter)
    assert (card["layers"], card["rank"]) == (summary.layers, [summary.least, summary.most])
    assert card["effective"] == pytest.approx(summary.effective, rel=1e-3)
    assert (card["base"], card["architecture"]) == ("photon", "sd15")
    assert card["words"] == ["ohwx", "a <b>stripe</b>"]
    first, second = (adapter.layers[stem].svd.s / adapter.layers[stem].svd.s[0] for stem in (IN, DEEP))
    wanted = torch.cat([(first[:3] + second) / 2, first[3:] / 2])
    assert card["spectrum"] == pytest.approx(wanted.tolist(), rel=1e-3)


@pytest.mark.parametrize("energy", [0.01, 0.5, 0.83, 0.95, 0.99, 1.0])
def test_the_kept_part_is_what_apply_keeps(energy: float) -> None:
    adapter = unlike()
    found = shape(adapter, Shape(keep_energy=energy))
    mean = sum(layer.svd.s.numel() for layer in found.layers.values()) / len(found.layers)
    assert adapter_card(adapter)["kept"][round(energy * 100) - 1] == pytest.approx(mean, rel=1e-3)


def test_a_card_is_small_whatever_the_file_says() -> None:
    layers = {IN: make_layer(200, 200, 150)}
    hostile = {"modelspec.trigger_phrase": ",".join(f"{n}" * 5000 for n in range(300)), "ss_sd_model_name": "x" * 10**6}
    text = json.dumps(adapter_card(Adapter(layers, hostile)))
    assert len(text) < 20_000
    card = json.loads(text)
    assert len(card["spectrum"]) == 64 and len(card["kept"]) == 100 and card["rank"] == [150, 150]
    with pytest.raises(InputError, match="no layers"):
        adapter_card(Adapter({}, {}))


def test_a_merge_is_told_by_block_in_the_order_of_the_model() -> None:
    first = make_adapter([IN, DEEP, MID], seed=0, modelspec__title="one")
    second = make_adapter([MID, DEEP], seed=1, modelspec__title="two")
    _, report = merge([first, second], [1.0, 1.0], method="tsv", options=MergeOptions(rank=2))
    card = json.loads(json.dumps(merge_card(report, "sd15")))
    assert [block["name"] for block in card["blocks"]] == ["IN01", "IN04", "MID"]
    alone, deep, _ = card["blocks"]
    assert alone["interference"] is None
    layer = report.layers[DEEP]
    assert deep["interference"] == pytest.approx((layer.write * layer.read) ** 0.5, rel=1e-3)
    assert deep["energy_kept"] == pytest.approx(layer.kept_energy, rel=1e-3) and deep["energy_kept"] < 1
    assert (card["names"], card["method"], card["warnings"]) == (["one", "two"], "tsv", [])
    assert card["energy_kept"] == pytest.approx(report.kept_energy, rel=1e-3)


def test_an_unknown_model_of_many_blocks_stays_small() -> None:
    stems = [f"lora_unet_joint_blocks_{number}_x" for number in range(130)]
    _, report = merge([make_adapter(stems, size=8), make_adapter(stems, size=8, seed=500)], [1.0, 1.0])
    card = merge_card(report)
    assert len(card["blocks"]) == 96 and card["more_blocks"] == 34
    assert len(json.dumps(card)) < 20_000
