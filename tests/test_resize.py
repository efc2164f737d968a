"""Resizing against the spectrum's tail, and what the file says afterwards."""

from __future__ import annotations

import json

import pytest
import torch

from tests.adapters import dense, make_adapter, make_layer
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, read_adapter, read_metadata, write_adapter
from trilora_core.resize import resize

STEMS = ["lora_unet_a_to_q", "lora_unet_b_to_q", "lora_unet_c_to_q"]


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_rank_keeps_the_strongest_directions_and_loses_the_tail(rank: int) -> None:
    adapter = make_adapter(STEMS, rank=6)
    small, report = resize(adapter, rank=rank)
    lost, whole = 0.0, 0.0
    for stem, layer in adapter.layers.items():
        tail = float((dense(layer) - dense(small.layers[stem])).square().sum())
        assert tail == pytest.approx(float(layer.svd.s[rank:].double().square().sum()), rel=1e-4)
        assert report.layer_energy[stem] == pytest.approx(1 - tail / float(dense(layer).square().sum()), rel=1e-5)
        lost, whole = lost + tail, whole + float(dense(layer).square().sum())
    assert report.kept_energy == pytest.approx(1 - lost / whole, rel=1e-5)
    assert report.before == dict.fromkeys(STEMS, 6) and report.after == dict.fromkeys(STEMS, rank)
    assert f"rank 6 to rank {rank} in 3 layers" in report.text()


@pytest.mark.parametrize(("share", "cap"), [(0.5, 0), (0.95, 0), (0.95, 2), (1.0, 3)])
def test_each_layer_gets_the_rank_that_its_energy_needs(share: float, cap: int) -> None:
    adapter = Adapter({stem: make_layer(20, 20, 8, seed=i) for i, stem in enumerate(STEMS)}, {})
    small, report = resize(adapter, rank=cap, energy=share)
    for stem, layer in adapter.layers.items():
        held = layer.svd.s.double().square().cumsum(0) / layer.svd.s.double().square().sum()
        wanted = int((held < share).sum()) + 1 if share < 1 else 8
        assert report.after[stem] == min(wanted, cap or wanted)
        assert torch.equal(small.layers[stem].svd.u, layer.svd.u[:, : report.after[stem]])


def test_what_needs_no_cut_stays_bit_for_bit(tmp_path) -> None:
    adapter = Adapter(
        {"lora_unet_a_to_q": make_layer(16, 16, 2), "lora_unet_b": make_layer(8, 36, 5, kernel=(3, 3))}, {}
    )
    small, report = resize(adapter, rank=4)
    assert small.layers["lora_unet_a_to_q"] is adapter.layers["lora_unet_a_to_q"]
    assert small.layers["lora_unet_b"].kernel == (3, 3)
    assert "rank 2 to 5 (median 3.5) to rank 2 to 4 (median 3)" in report.text()
    write_adapter(tmp_path / "small.safetensors", small, dtype=torch.float32)
    assert len(read_adapter(tmp_path / "small.safetensors").layers["lora_unet_b"].svd.s) == 4


def test_a_zero_adapter_and_extreme_ranks() -> None:
    zero = make_adapter(STEMS, rank=2)
    for layer in zero.layers.values():
        layer.svd.s.zero_()
    _, report = resize(zero, energy=0.5)
    assert report.kept_energy == 1 and set(report.after.values()) == {1}
    assert set(resize(zero, rank=256)[1].after.values()) == {2}


def test_the_file_still_tells_how_it_was_made_but_is_no_finished_run(tmp_path) -> None:
    told = {
        "modelspec.trigger_phrase": "sks",
        "trilora.fingerprint": "f",
        "sshs_model_hash": "h",
        "ss_network_dim": "6",
    }
    small, _ = resize(Adapter(make_adapter(STEMS, rank=6).layers, told), rank=2)
    write_adapter(tmp_path / "small.safetensors", small)
    found = read_metadata(tmp_path / "small.safetensors")
    assert found["ss_network_dim"] == "2" and found["ss_network_alpha"] == "2.0"
    assert found["modelspec.trigger_phrase"] == "sks" and "trilora.fingerprint" not in found
    assert json.loads(found["trilora.resize"])["from_sha256"] == "h" and found["sshs_model_hash"] != "h"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "keeps everything"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"energy": 0.0}, "energy is 0.0"),
        ({"energy": 1.5}, "energy is 1.5"),
        ({"energy": float("nan")}, "energy is nan"),
    ],
)
def test_bad_input_is_named(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resize(make_adapter(STEMS), **options)
    with pytest.raises(InputError, match="no layers"):
        resize(Adapter({}, {}), rank=1)
