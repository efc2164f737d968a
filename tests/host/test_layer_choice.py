"""Choices of layers on the host's own models: which layers, exact gradients, and a file that every reader knows."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host

FLUX_SINCE = (0, 14)  # older hosts fix Flux's width at 3072, which is too large for a test
FP16 = 1e-3  # relative: what half precision in the file costs
KINDS = {
    "sd15": {"self": 16, "cross": 16, "ff": 8, "proj": 8, "conv": 17},
    "sdxl": {"self": 40, "cross": 40, "ff": 20, "proj": 10, "conv": 43},
    "sd3": {"joint": 15, "self": 4, "ff": 6},
    "flux": {"joint": 12, "ff": 8},
}
COUNTS = {  # attention, self-attention, attention+ff, attention+ff+conv
    "sd15": [32, 16, 48, 65],
    "sdxl": [80, 40, 110, 153],
    "sd3": [19, 19, 25, 25],
    "flux": [12, 12, 20, 20],
}
SAMPLES = {
    "sd15": ["lora_unet_mid_block_resnets_1_conv2", "lora_unet_up_blocks_0_resnets_0_conv_shortcut"],
    "sdxl": ["lora_unet_input_blocks_2_0_op", "lora_unet_output_blocks_3_1_conv"],
    "sd3": ["transformer.transformer_blocks.0.ff_context.net.0.proj", "transformer.transformer_blocks.0.attn2.to_v"],
    "flux": ["lora_unet_double_blocks_1_txt_mlp_2", "lora_unet_single_blocks_0_linear1"],
}


@cache
def measured(host: Host) -> dict[str, Any]:
    """What layer_choice.py found, from one process for each host."""
    kinds = ["sd15", "sdxl", "sd3"] + ["flux"] * (host.version >= FLUX_SINCE)
    return run_in_host(host, "layer_choice", {"kinds": kinds})


@pytest.fixture(params=list(KINDS))
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    """The measures of one kind of model on one host."""
    if request.param not in measured(host):
        pytest.skip(f"{request.param} is checked on newer hosts")
    return {"kind": request.param, **measured(host)[request.param]}


def test_each_choice_has_its_layers(answer: dict[str, Any]) -> None:
    assert answer["kinds"] == KINDS[answer["kind"]]
    assert list(answer["counts"].values()) == COUNTS[answer["kind"]]
    assert set(SAMPLES[answer["kind"]]) <= set(answer["stems"])


def test_the_host_knows_every_name(answer: dict[str, Any]) -> None:
    assert answer["unknown"] == []


def test_gradients_of_all_layers_equal_those_of_dense_weights(answer: dict[str, Any]) -> None:
    assert answer["plain"] < 1e-4
    # the last text block of SD3 has no output, so its queries have no effect
    dead = ["transformer.transformer_blocks.1.attn.add_q_proj.up"] if answer["kind"] == "sd3" else []
    assert answer["silent"] == dead


def test_recomputed_blocks_give_the_same_gradients(answer: dict[str, Any]) -> None:
    assert answer["recomputed"] < 1e-4


def test_the_native_loader_applies_the_saved_file_as_we_do(answer: dict[str, Any]) -> None:
    assert answer["weights"] == {"ours": True, "native": True}
    assert answer["between"] < 1e-5 and answer["to_exact"] < FP16


def test_the_model_is_left_as_it_was(answer: dict[str, Any]) -> None:
    assert answer["restored"]


def test_patterns_that_leave_nothing_are_explained(answer: dict[str, Any]) -> None:
    first = next(stem for stem in answer["stems"] if "attn" in stem)
    said = f"include *attn9*. Of self-attention this model has {answer['counts']['self-attention']} layers: {first}, "
    assert said in answer["nothing"]


def test_the_node_sets_its_own_options(host: Host) -> None:
    assert measured(host)["node"] == {
        "widgets": ["which", "include", "exclude", "rank_dropout"],
        "untouched": True,
        "kept": [77, "svd"],
        "set": ["attention+ff", "*attn*", "*_ff_*", "-", "*to_k"],
        "rank_dropout": 0.25,
    }


def test_a_run_trains_the_chosen_layers_and_says_so(host: Host) -> None:
    found = measured(host)["trained"]
    assert found["kinds"] == {"cross": 12, "ff": 6, "proj": 6, "conv": 14} and found["others"] == []
    assert found["learnt"] == 38 and found["untouched"]
    said = json.loads(found["arguments"])
    assert (said["layers"], said["layers_include"], said["layers_exclude"], said["conv_dim"]) == (
        "attention+ff+conv",
        "*_mid_* *_up_*",
        "*attn1*",
        "2",
    )
