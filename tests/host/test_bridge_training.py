"""Training on the host's own models: gradients, batches of unlike captions, and a model that is left as it was."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host

FLUX_SINCE = (0, 14)  # older hosts fix Flux's width at 3072, which is too large for a test
LAYERS = {"sd15": 32, "sdxl": 80, "sd3": 19, "flux": 12}
SAMPLE_STEMS = {
    "sd15": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "sdxl": "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
    "sd3": "transformer.transformer_blocks.0.attn.to_add_out",
    "flux": "lora_unet_single_blocks_1_linear2",
}


@cache
def measured(host: Host) -> dict[str, Any]:
    """What bridge_training.py found, from one process for each host."""
    kinds = ["sd15", "sdxl", "sd3"] + ["flux"] * (host.version >= FLUX_SINCE)
    return run_in_host(host, "bridge_training", {"kinds": kinds}, timeout=900)


@pytest.fixture(params=["sd15", "sd3", "flux", "sdxl"])
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    """The measures of one kind of model on one host."""
    if request.param not in measured(host):
        pytest.skip(f"{request.param} is checked on newer hosts")
    return {"kind": request.param, **measured(host)[request.param]}


def test_layers_are_named_as_in_files(answer: dict[str, Any]) -> None:
    assert answer["architecture"] == answer["kind"]
    assert len(answer["stems"]) == LAYERS[answer["kind"]]
    assert SAMPLE_STEMS[answer["kind"]] in answer["stems"]


def test_gradients_equal_those_of_dense_weights(answer: dict[str, Any]) -> None:
    assert answer["plain"] < 1e-4
    assert answer["trained"] == ["down", "sigma", "up"]


def test_recomputed_blocks_give_the_same_gradients(answer: dict[str, Any]) -> None:
    assert answer["recomputed"] < 1e-4
    assert answer["recomputed_calls"] == 2 * answer["plain_calls"] > 0


def test_a_batch_of_unlike_captions_equals_single_ones(answer: dict[str, Any]) -> None:
    assert answer["one_by_one"] < 1e-5


def test_the_native_trainer_mixes_captions(host: Host) -> None:
    """The reason why training does not go through calc_cond_batch: every caption sees every picture there."""
    assert measured(host)["sd15"]["native"] > 0.1


def test_every_layer_learns(answer: dict[str, Any]) -> None:
    # the last text block of SD3 has no output, so its queries have no effect
    dead = ["transformer.transformer_blocks.1.attn.add_q_proj.up"] if answer["kind"] == "sd3" else []
    assert answer["untouched_layers"] == dead


def test_the_model_is_left_as_it_was(answer: dict[str, Any]) -> None:
    assert answer["bit_identical"] and answer["same_objects"] and answer["clean"]


def test_an_interrupt_leaves_the_model_as_it_was(answer: dict[str, Any]) -> None:
    assert answer["clean_after_error"]


def test_the_host_knows_that_it_trains(host: Host, answer: dict[str, Any]) -> None:
    assert answer["in_training"] is (True if host.version >= FLUX_SINCE else None)


def test_a_base_has_one_fingerprint_on_all_hosts(host: Host, newest_host: Host) -> None:
    assert measured(host)["sd15"]["fingerprint"] == measured(newest_host)["sd15"]["fingerprint"]
