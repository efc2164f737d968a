"""Extract TriLoRA on models of every architecture: the known change of each layer, and models left as they were."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host
from .test_bridge_quantised import SINCE

FLUX_SINCE = (0, 14)  # older hosts fix Flux's width at 3072, which is too large for a test
FLOAT32 = 1e-4  # relative to the change, which is 3% of the weights
LAYERS = {"sd15": 65, "sdxl": 153, "sd3": 25, "flux": 20}  # attention, feed-forward and convolutions
TEXT = {"sd15": 18, "sdxl": 36, "sd3": 0, "flux": 0}
RANK = 3
WAYS = ("patched", "loaded", "own_weights", "mixed")
"""As a patch that is not merged, as one that is merged into the base's own weights just now, as a model with weights of
its own, and as the host's mix of that one and the base."""


@cache
def measured(host: Host) -> dict[str, Any]:
    """What extract_models.py found, from one process for each host."""
    kinds = ["sd15", "sdxl", "sd3"] + ["flux"] * (host.version >= FLUX_SINCE)
    return run_in_host(host, "extract_models", {"kinds": kinds})


@pytest.fixture(params=list(LAYERS))
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    """The measures of one kind of model on one host."""
    if request.param == "flux" and host.version < FLUX_SINCE:
        pytest.skip("this host has no small Flux")
    return {"kind": request.param, **measured(host)[request.param]}


@pytest.mark.parametrize("way", WAYS)
def test_the_known_change_comes_back(answer: dict[str, Any], way: str) -> None:
    if way not in answer:
        pytest.skip("SDXL is slow, and as SD 1.5 in this")
    found = answer[way]
    assert found["missing"] == found["more"] == []
    assert found["error"] < FLOAT32
    assert found["ranks"] == [RANK]
    assert found["text"] == (0 if way == "mixed" else TEXT[answer["kind"]])


def test_layers_without_a_change_are_counted(answer: dict[str, Any]) -> None:
    """Among them rows of SD3's fused q, k and v whose neighbours change."""
    kind, same = answer["kind"], len(answer["skipped"])
    for way in ("patched", "own_weights"):
        first, second, *_ = answer[way]["report"].splitlines()
        changed = LAYERS[kind] - same + answer[way]["text"]
        assert first.startswith(f"{changed} layers, rank {RANK}; 100.0% of the difference's energy")
        assert second == f"{same} of the chosen layers are the same in both models"
    if kind == "sd3":
        assert "transformer.transformer_blocks.0.attn.add_k_proj" in answer["skipped"]


def test_models_stay_as_they_are(answer: dict[str, Any]) -> None:
    """Every number, object and patch, and which models the host has loaded."""
    assert answer["unchanged"] and answer["unloaded"]
    assert all(answer[way]["unchanged"] for way in WAYS[1:] if way in answer)


def test_equal_models_are_named(answer: dict[str, Any]) -> None:
    assert answer["equal"].startswith("InputError: the tuned model ")
    assert f"are the same in all {LAYERS[answer['kind']]} chosen layers" in answer["equal"]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("architectures", ["are sd3 and sd15: models of two architectures have no difference"]),
        ("text_fp8", ["lora_te_text_model_encoder_layers_0_", "is stored in fp8 or quantised"]),
        ("one_clip", ["clip_tuned is connected, clip_base is not", "connect both, or neither"]),
        ("unknown", ["this model is a BaseModel (SD15)", "known kinds are SD 1.5, SDXL"]),
        ("other_clips", ["clips are connected", "(sd3) cannot be compared", "disconnect both clips"]),
    ],
)
def test_complaints(host: Host, case: str, parts: list[str]) -> None:
    said = measured(host)["refused"][case]
    assert said.startswith("InputError: ")
    for part in parts:
        assert part in said


@pytest.mark.parametrize("name", ["fp8", *SINCE])
def test_weights_of_few_bits_are_named(host: Host, name: str) -> None:
    if host.version < SINCE.get(name, (0,)):
        pytest.skip(f"hosts know {name} from {'.'.join(map(str, SINCE[name]))} on")
    found = measured(host)["few_bits"][name]
    assert found["unchanged"]
    for said in (found["tuned"], found["base"]):
        if said:
            assert said.startswith("InputError: lora_unet_")
            assert "is stored in fp8 or quantised, whose rounding is larger than what fine-tuning changes" in said
