"""Training on the host's own models: gradients, batches of unlike captions, and a model that is left as it was."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host
from .models import sd15_clip_checkpoint

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
    return run_in_host(host, "bridge_training", {"kinds": kinds})


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


@cache
def bounds(host: Host) -> dict[str, Any]:
    """What bridge_training_bounds.py found, from one process for each host."""
    return run_in_host(host, "bridge_training_bounds", {"checkpoint": str(sd15_clip_checkpoint())})


def test_models_that_cannot_be_trained_are_refused(host: Host) -> None:
    refused = bounds(host)["refused"]
    assert refused["sd2"] == (
        "InputError: this model is a BaseModel (SD20); known kinds are SD 1.5, SDXL, SD3, Flux: give a model of one of"
        " these"
    )
    assert "takes 9 channels where a text-to-image model takes 4" in refused["inpainting"]


def test_data_of_another_model_is_refused(host: Host) -> None:
    refused = bounds(host)["refused"]
    assert refused["latents"] == (
        "InputError: latents of shape (1, 4, 8, 8) do not fit this model, which wants (pictures, 16, h, w): make the"
        " data set with the VAE that belongs to the model"
    )
    assert "2 latents came with 1 conditions" in refused["conditions"]


def test_a_patched_base_trains_patched_and_sigma_sees_the_unpatched(host: Host) -> None:
    assert bounds(host)["patched"] == {
        "trains_patched": True,
        "sigma_from_base": True,
        "others_plain": 1,
        "same_loaded_or_not": True,
        "own_fingerprint": True,
        "restored": True,
    }


def test_times_are_the_models_own(host: Host) -> None:
    for kind, found in bounds(host)["times"].items():
        times, (low, high) = found["times"], found["ends"]
        assert times == sorted(times)
        assert times[0] == pytest.approx(low) and times[-1] == pytest.approx(high)
        signal = [1.0] * 4 if kind == "sd15" else [1 - time for time in times]
        wanted = [(level / time) ** 2 for level, time in zip(signal, times, strict=True)]
        assert found["snr"] == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert bounds(host)["times"]["sd15"]["step"] == 500
    assert bounds(host)["times"]["sd3"]["times"][2] == pytest.approx(3 * 0.501 / (1 + 2 * 0.501), rel=1e-5)  # shift 3


def test_a_v_model_regresses_on_v(host: Host) -> None:
    assert bounds(host)["v_target"] < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_a_base_in_fewer_bits_is_trained_on_as_it_is(host: Host, dtype: str) -> None:
    half = bounds(host)["half"][dtype]
    assert half["weights"] == [f"torch.{dtype}"]
    assert math.isfinite(half["gradient"]) and half["gradient"] != 0.0


def test_pictures_and_captions_are_encoded_for_training(host: Host) -> None:
    found = bounds(host)["encoder"]
    assert found["latents"] == [2, 4, 8, 8] and found["dtype"] == "torch.float32"
    assert found["tokens"] == [[1, 77, 768], [1, 77, 768]]
    assert found["repeatable"] and found["unlike"] and not found["inference"]


def test_the_encoders_fingerprint_is_of_its_content(host: Host) -> None:
    found = bounds(host)["encoder"]
    assert found["same_fingerprint"] and found["other_fingerprint"]
    assert found["without_vae"].startswith("InputError: the vae input is empty")
