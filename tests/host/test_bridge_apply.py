"""Applying adapters and the nodes around it, in every ComfyUI found."""

from __future__ import annotations

from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host

EXACT = 2e-6  # relative, float32


@pytest.fixture(scope="module")
def figures(host: Host) -> dict[str, Any]:
    """Everything from one start of the host."""
    return run_in_host(host, "bridge_apply")


@pytest.fixture
def merged(figures: dict[str, Any]) -> dict[str, Any]:
    """The path that patches weights."""
    return figures["merged"]


@pytest.fixture
def runtime(figures: dict[str, Any]) -> dict[str, Any]:
    """The path that leaves fp8 and quantised weights alone."""
    return figures["runtime"]


@pytest.fixture
def nodes(figures: dict[str, Any]) -> dict[str, Any]:
    """What the node classes did and said."""
    return figures["nodes"]


def test_strengths(merged: dict[str, Any]) -> None:
    found = merged["strengths"]
    assert found["zero"] and found["zero_model_only"] and found["zero_ignores_misfits"] and found["no_clip"]
    assert found["exact"] < EXACT and found["negative"] < EXACT and found["text"] < EXACT
    assert found["only_named"] == 4
    assert found["restored"] and found["restored_text"] and found["originals_unpatched"]


def test_the_models_answer_changes_and_comes_back(merged: dict[str, Any]) -> None:
    assert merged["forward"]["differs"] > 1e-3
    assert merged["forward"]["same_after"]


def test_several_applies_add_up(merged: dict[str, Any]) -> None:
    assert merged["stacked"] < EXACT


def test_same_change_as_the_native_loader(merged: dict[str, Any]) -> None:
    assert merged["native"]["to_native"] < EXACT
    assert merged["native"]["to_trained"] < 1e-3  # the file is fp16


def test_low_vram(merged: dict[str, Any]) -> None:
    found = merged["low_vram"]
    assert found["delayed"] == 4 and found["untouched"] and found["error"] < EXACT and found["restored"]


def test_beside_a_hosts_hooks(merged: dict[str, Any]) -> None:
    found = merged["hooks"]
    assert found["error"] < 1e-5 and found["differs"] > 1e-4 and found["restored"]


def test_save_checkpoint_holds_the_change(merged: dict[str, Any]) -> None:
    assert merged["checkpoint"]["error"] < EXACT and merged["checkpoint"]["restored"]


def test_rows_of_a_fused_layer(merged: dict[str, Any]) -> None:
    found = merged["sd3"]
    assert found["to_native"] < EXACT and found["k_untouched"] == 0 and max(found["q"], found["v"]) < 1e-3


def test_what_does_not_fit_is_said(merged: dict[str, Any]) -> None:
    said = merged["complaints"]["said"]
    assert said["wrong model"].startswith("InputError: the adapter is for flux1, but the model is SD15: it has none")
    assert "the adapter changes a weight of 32 x 48, but in SD15 it is 32 x 24" in said["wrong shape"]
    assert "stable-diffusion-v2/lora" in said["wrong shape"] and "attn2_to_k" in said["wrong shape"]
    assert said["text without clip"].endswith("they belong to a text encoder: connect clip")
    assert said["not a number"] == "InputError: strength is nan; wanted a finite number, such as 1.0"
    left_out, for_text = merged["complaints"]["heard"]
    assert left_out == "TriLoRA: 1 of 2 layers are not in this SD15 and are left out: lora_unet_nowhere"
    assert "connect clip" in for_text
    assert merged["complaints"]["text_only"]


def test_fp8_layers_get_the_whole_change(runtime: dict[str, Any]) -> None:
    found = runtime["exact"]
    assert found["cosine"] > 0.999999 and found["error"] < EXACT and found["negative"] < EXACT
    assert found["merged_cosine"] < 0.95  # what merging would have given
    assert found["zero"] and found["patches"] == 0 and found["restored"] and found["hooks_left"] == 0


def test_fp8_adapters_stack_in_any_order(runtime: dict[str, Any]) -> None:
    found = runtime["stacked"]
    assert found["error"] < EXACT and found["orders"] < 1e-5 and found["off"] and found["hooks_left"] == 0


def test_fp8_rows_of_a_fused_layer(runtime: dict[str, Any]) -> None:
    assert max(runtime["rows"]["q"], runtime["rows"]["v"]) < EXACT and runtime["rows"]["k"] == 0


def test_fp8_text_encoder(runtime: dict[str, Any]) -> None:
    found = runtime["text"]
    assert found["error"] < EXACT and found["differs"] > 1e-5 and found["off"] and found["restored"]


def test_fp8_low_vram(runtime: dict[str, Any]) -> None:
    assert runtime["lowvram"] == {"error": 0.0, "hooks_left": 0}


def test_fp8_hooks_come_and_go_with_the_model(runtime: dict[str, Any]) -> None:
    # not loaded, first, first again, base, first, a clone of it, first with a second adapter, base, all unloaded
    assert runtime["lives"]["counts"] == [0, 4, 4, 0, 4, 4, 5, 0, 0]


def test_fp8_clones_of_a_loaded_model_do_no_harm(runtime: dict[str, Any]) -> None:
    found = runtime["clones"]
    assert found["same"] and found["again"] and found["counts"] == [4, 4, 0]
    assert found["base"] > 1e-3 and found["base_hooks"] == 0


def test_fp8_beside_the_hosts_own_patches_and_hooks(runtime: dict[str, Any]) -> None:
    assert max(runtime["beside_native"].values()) < EXACT
    found = runtime["beside_hooks"]
    assert found["error"] < 1e-5 and found["differs"] > 1e-4 and found["restored"]


def test_layers_that_the_host_calls_past_are_left_to_its_patches(runtime: dict[str, Any]) -> None:
    found = runtime["called_past"]
    assert found["hooked"] == ([False, False, True] if found["known"] else [True, True, True])


def test_quantised_weights(host: Host, runtime: dict[str, Any]) -> None:
    found = runtime["quantised"]
    if found is None:
        pytest.skip(f"ComfyUI {host.name} has no quantised tensors")
    assert found["class"] == "QuantizedTensor" and found["error"] < EXACT
    assert found["merged"] == 3 and found["off"] == 0 and found["saved"] > 0.98


def test_fp8_save_checkpoint_holds_the_change(runtime: dict[str, Any]) -> None:
    found = runtime["saved"]
    assert found["cosine"] > 0.98 and found["dtype"] == "torch.float8_e4m3fn" and found["changed"] == 4
    assert found["same_after"] and found["differs"] > 1e-3 and found["restored"]


def test_sockets_and_tooltips(nodes: dict[str, Any]) -> None:
    """The names and the order of widgets, which saved workflows hold, are in test_server_smoke.py."""
    told = nodes["schema"]
    assert [told[name]["types"] for name in OUTPUTS] == list(OUTPUTS.values())
    assert {node["category"] for node in told.values()} == {"TriLoRA"}
    assert [name for name, node in told.items() if node["without_tooltip"]] == []


OUTPUTS = {
    "TriLoRADataset": ["TRILORA_DATASET"],
    "TriLoRADatasetFromImages": ["TRILORA_DATASET"],
    "TriLoRAOptimizerOptions": ["TRILORA_OPTIONS"],
    "SaveTriLoRA": [],
    "LoadTriLoRA": ["TRILORA"],
    "ApplyTriLoRA": ["MODEL", "CLIP"],
    "TriLoRAHook": ["HOOKS"],
    "MergeTriLoRA": ["TRILORA"],
}


def test_save_numbers_its_files_and_stays_in_loras(nodes: dict[str, Any]) -> None:
    found = nodes["save"]
    kinds = ["torch.float16", "torch.bfloat16", "torch.float32"]
    assert found["files"] == [[f"style_{n + 1:05}_.safetensors", kind] for n, kind in enumerate(kinds)]
    assert len(found["text"]) == 1 and found["text"][0].endswith("style_00003_.safetensors")
    blocked = found["refused"].pop("file")
    assert blocked.startswith("InputError: cannot write below")
    assert all("wanted a name below models/loras" in said for said in found["refused"].values())
    assert found["outside"] == []


def test_load_reads_only_loras(nodes: dict[str, Any]) -> None:
    found = nodes["load"]
    assert found["error"] < 1e-3 and found["listed"]
    assert found["valid"] == [True, True] and "is not in models/loras" in found["invalid"]
    assert found["fingerprint"] == [True, True] and found["never_raises"] == ["str"] * 3
    said = found["said"]
    assert "damaged or cut off" in said["cut.safetensors"]
    assert "pickle" in said["old.pt"] and "LoHa" in said["loha.safetensors"]
    assert "is not in models/loras" in said["missing.safetensors"]
    assert "is not in models/loras" in said["../../input/x.safetensors"]


def test_merge(nodes: dict[str, Any]) -> None:
    assert nodes["merge"]["error"] < EXACT and nodes["merge"]["ranks"] == [2]


def test_folders_of_the_data_set(nodes: dict[str, Any]) -> None:
    found = nodes["folders"]
    assert len(found["empty"]) == 1 and found["empty"][0].startswith("(no folder")
    assert found["told"].startswith("there is no folder of pictures yet")
    assert found["names"] == ["cats", "cats [datasets]", "cats/black", "dogs [datasets]"]
    assert found["resolved"] == ["input/cats/black", "elsewhere/dogs"]
    inside = found["refused"].pop("../elsewhere/dogs [datasets]")
    assert inside is True  # a detour that ends in the registered place
    assert found["refused"].pop("5").startswith("folder is 5; wanted a name")
    assert all("there is no folder" in said for said in found["refused"].values())
    assert found["fingerprint"] == [True, True] and found["stable"] and found["never_raises"] == "str"
    assert found["unique"][0] == "job.safetensors" and "is not a file name" in found["unique"][1]
    assert all("is not a file name" in said for said in found["no_names"])
    assert found["numbered"] == "plain_2.safetensors" and found["output"] == "models/loras/trilora"


def test_options(nodes: dict[str, Any]) -> None:
    found = nodes["options"]
    assert found["defaults"] and found["kept"] == 77
    assert found["changed"] == ["svd", 8.0, "energy:0.9", "cosine", "bf16"]
    assert "multiplies the effective learning rate" in found["svd_tip"]
    assert found["bad"] == "InputError: weight_decay is nan; wanted a finite number from 0 up"


def test_data_sets(nodes: dict[str, Any]) -> None:
    found = nodes["datasets"]
    assert "has no pictures" in found["said"]["empty"]
    assert found["said"]["broken"].startswith("InputError: picture broken.png cannot be read")
    assert found["said"]["gone"].startswith('InputError: there is no folder "nowhere"')
    assert found["said"]["captions"].startswith("InputError: 3 captions for 2 pictures")
    assert found["shapes"] == [[72, 56]] * 3 and found["latents"] == [4, 7, 9]  # 80x64 pixels at the area of 64x64
    assert found["captions"] == ["sks", "a blue wall", "sks"]
    assert found["carries"] and found["normal"]
    assert found["skipped"][0] == 3 and "broken.png" in found["skipped"][1][0]
    assert found["from_images"] == [["first", "sks"], ["sks", "sks"]]
