"""Training the host's text encoders along: live captions, exact gradients, previews, a clip that is left as it was."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host
from .models import sd15_checkpoint

LAYERS = 3  # of each small text encoder
EACH = 6  # layers that can be adapted in each: q, k, v, out, fc1, fc2


@cache
def measured(host: Host) -> dict[str, Any]:
    """What text_training.py found, from one process for each host."""
    return run_in_host(host, "text_training", {"checkpoint": str(sd15_checkpoint())})


@pytest.fixture(params=["sd15", "sdxl"])
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    """The measures of one kind of model on one host."""
    return {"kind": request.param, **measured(host)[request.param]}


def test_live_captions_are_the_cached_ones_bit_for_bit(answer: dict[str, Any]) -> None:
    """With and without weights, clip skip, a long caption, and an adapter that changes nothing yet."""
    for skip, found in answer["bits"].items():
        assert {name for name, same in found.items() if not same} == set(), skip
    assert answer["device"] == "intermediate_device"  # of the host, given back


def test_gradients_of_text_encoders_equal_those_of_dense_weights(answer: dict[str, Any]) -> None:
    for skip, found in answer["gradients"].items():
        assert max(found["plain"], found["plain text"]) < 1e-4, skip
        assert max(found["recomputed"], found["recomputed text"]) < 1e-4, skip


def test_every_layer_of_the_file_can_learn(answer: dict[str, Any]) -> None:
    """Left out is what lies behind the hidden state that is taken, but not what CLIP-G's pooled caption needs."""
    assert {name for found in answer["gradients"].values() for name in found["silent"]} == set()
    counts = {skip: len(stems) for skip, stems in answer["stems"].items()}
    if answer["kind"] == "sd15":
        assert counts == {"default": EACH * LAYERS, "-1": EACH * LAYERS, "-2": EACH * (LAYERS - 1)}
        assert all(stem.startswith("lora_te_text_model_encoder_layers_") for stem in answer["stems"]["default"])
    else:
        assert counts == {"default": EACH * (LAYERS - 1 + LAYERS), "-1": EACH * 2 * LAYERS}
        first, last = answer["stems"]["default"][0], answer["stems"]["default"][-1]
        assert first == "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
        assert last == "lora_te2_text_model_encoder_layers_2_mlp_fc2"


def test_equal_captions_are_encoded_once(answer: dict[str, Any]) -> None:
    assert answer["once"] == 3


def test_model_and_clip_are_left_as_they_were(answer: dict[str, Any]) -> None:
    assert answer["restored"] and answer["restored_after_error"] and answer["clean"]


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_a_clip_in_fewer_bits_is_trained_on_as_it_is(host: Host, dtype: str) -> None:
    found = measured(host)["half"][dtype]
    assert found["dtypes"] == [f"torch.{dtype}"] and found["error"] < 1e-5
    assert found["blocks"] == [0, 2 * LAYERS] and found["kept"] < 0.5, "autograd keeps converted copies of the weights"


def test_a_patched_clip_trains_patched_and_is_another_data_set(host: Host) -> None:
    wanted = {"trains_patched": True, "sigma_from_base": True, "hashes": 3, "restored": True}
    assert measured(host)["patched"] == wanted


def test_previews_show_the_text_encoder_as_it_is_now(host: Host) -> None:
    assert {name for name, kept in measured(host)["previews"].items() if not kept} == set()


def test_the_estimate_of_memory_includes_the_text_encoder(host: Host) -> None:
    found = measured(host)["memory"]
    more = found["more"]
    assert more["model"] >= found["layers"] and more["activations"] > 0
    assert more["parameters"] == LAYERS * 4 * 4 * (2 * 768 * 16 + 16)  # up, down and Σ of q, k, v and out, float32


def test_what_cannot_be_trained_is_named(host: Host) -> None:
    said = measured(host)["refused"]
    assert said.pop("files") == ""
    assert said["no clip"].startswith("InputError: text_encoder_rate is set, but this data set has no clip to train;")
    assert "holds encoded captions without their text" in said["no texts"]
    assert "the text encoders of this model (sd3) cannot be trained, only those of SD 1.5 and SDXL" in said["sd3"]
    assert "is a SD1ClipModel of clip_l, while a model of this kind (sdxl) reads clip_l, clip_g;" in said["other clip"]
    assert "caption_weights is on for the data set, but not for the prior pictures" in said["weights"]
