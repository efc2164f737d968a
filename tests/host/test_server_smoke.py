"""ComfyUI starts with the pack, and offers its nodes under the names that saved workflows hold."""

from __future__ import annotations

from typing import Any

import pytest

from .server import Server

# Inputs in order, as saved: (required, optional). Widgets are positional in a saved workflow, so that this order is
# for ever; a new one goes to the end of its node's optional inputs.
INPUTS: dict[str, tuple[list[str], list[str]]] = {
    "TriLoRADataset": (["folder", "clip", "vae", "resolution", "trigger_word"], ["skip_unreadable", "options"]),
    "TriLoRADatasetFromImages": (
        ["images", "clip", "vae", "captions", "trigger_word"],
        ["resolution", "masks", "options"],
    ),
    "TriLoRADatasetFromLatents": (["latents", "conditioning"], ["trigger_word"]),
    "TriLoRADatasetOptions": (
        [
            "buckets",
            "bucket_step",
            "upscale",
            "crop",
            "crops",
            "flip",
            "caption_prefix",
            "caption_suffix",
            "shuffle_tags",
            "keep_tags",
            "caption_variants",
            "caption_dropout",
            "caption_weights",
            "masks",
            "mask_floor",
            "max_train_samples",
            "cache",
        ],
        [],
    ),
    "TriLoRADatasetReport": (["dataset"], []),
    "TriLoRAPriorPictures": (
        ["model", "clip", "vae", "prompts", "count", "resolution", "seed"],
        ["steps", "cfg", "negative", "cache"],
    ),
    "TriLoRAPreset": (["model", "dataset", "goal"], ["options"]),
    "TriLoRAOptimizerOptions": (
        [
            "init",
            "method",
            "alpha",
            "companion_rank",
            "optimizer",
            "schedule",
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "accumulation",
            "precision",
            "gradient_checkpointing",
            "save_every",
        ],
        [
            "rank_energy",
            "options",
            "epochs",
            "prior_weight",
            "prior_batch_size",
            "up_rate",
            "sigma_rate",
            "down_rate",
            "ema",
            "timesteps",
            "logit_mean",
            "logit_std",
            "shift",
            "min_snr_gamma",
            "noise_offset",
            "orthogonality",
            "text_encoder_rate",
            "preserve_base",
            "preserve_prompts",
        ],
    ),
    "TriLoRALayerOptions": (["which", "include", "exclude", "rank_dropout"], ["options"]),
    "TriLoRAMonitorOptions": (
        [
            "validation_share",
            "validate_every",
            "patience",
            "preview_every",
            "preview_prompts",
            "preview_seed",
            "keep_adapters",
            "keep_best",
            "keep_state",
        ],
        ["options", "spectrum_every", "preview_steps", "preview_cfg", "preview_resolution"],
    ),
    "TriLoRACalibrate": (["model", "dataset"], ["prior_prompts", "name", "options", "seed"]),
    "TrainTriLoRA": (
        ["model", "dataset", "name", "rank", "steps", "learning_rate", "batch_size", "seed", "resume"],
        ["options", "start_from", "prior", "calibration"],
    ),
    "SaveTriLoRA": (["trilora", "filename_prefix", "dtype"], ["cover"]),
    "LoadTriLoRA": (["lora_name"], []),
    "ApplyTriLoRA": (
        ["model", "trilora", "strength"],
        ["clip", "strength_clip", "keep_rank", "keep_energy", "tone", "normalize", "block_preset", "blocks"],
    ),
    "TriLoRAHook": (
        ["trilora", "strength"],
        ["strength_end", "curve", "keyframe_count", "ranks", "strength_clip", "keyframes"],
    ),
    "MergeTriLoRA": (
        ["trilora_a", "trilora_b", "weight_a", "weight_b", "method", "rank"],
        ["density", "keep_energy", "seed", "prior_weight", "calibration_a", "calibration_b"],
    ),
    "ResizeTriLoRA": (["trilora", "rank", "energy"], []),
    "ExtractTriLoRA": (["model_tuned", "model_base", "rank"], ["energy", "layers", "clip_tuned", "clip_base"]),
    "TriLoRASpectrum": (["trilora"], ["trilora_b", "trilora_c"]),
    "TriLoRAGrid": (
        [
            "model",
            "clip",
            "vae",
            "trilora",
            "prompts",
            "strengths",
            "seed",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "width",
            "height",
        ],
        ["negative", "columns", "cell", "training_steps", "trilora_b", "trilora_c", "trilora_d"],
    ),
}
OUTPUTS = {
    "TriLoRADataset": ["dataset"],
    "TriLoRADatasetFromImages": ["dataset"],
    "TriLoRADatasetFromLatents": ["dataset"],
    "TriLoRADatasetOptions": ["options"],
    "TriLoRADatasetReport": ["image", "report"],
    "TriLoRAPriorPictures": ["dataset"],
    "TriLoRAPreset": ["options", "rank", "steps", "learning_rate", "batch_size", "report"],
    "TriLoRAOptimizerOptions": ["options"],
    "TriLoRALayerOptions": ["options"],
    "TriLoRAMonitorOptions": ["options"],
    "TriLoRACalibrate": ["calibration"],
    "TrainTriLoRA": ["trilora", "model", "loss", "clip"],
    "SaveTriLoRA": [],
    "LoadTriLoRA": ["trilora"],
    "ApplyTriLoRA": ["model", "clip"],
    "TriLoRAHook": ["hooks"],
    "MergeTriLoRA": ["trilora"],
    "ResizeTriLoRA": ["trilora", "report"],
    "ExtractTriLoRA": ["trilora", "report"],
    "TriLoRASpectrum": ["image", "report"],
    "TriLoRAGrid": ["image"],
}
OUTPUT_NODES = {"TrainTriLoRA", "SaveTriLoRA", "TriLoRADatasetReport", "TriLoRASpectrum", "TriLoRAGrid"}


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    return server.client.object_info()


def test_log_names_no_failure(server: Server) -> None:
    assert "IMPORT FAILED" not in server.start_log, server.start_log
    assert "Traceback" not in server.start_log, server.start_log


def test_all_nodes_are_there(info: dict[str, Any]) -> None:
    ours = {name for name, node in info.items() if node["category"].startswith("TriLoRA")}
    assert ours >= set(OUTPUTS)


@pytest.mark.parametrize("node", INPUTS)
def test_input_order(info: dict[str, Any], node: str) -> None:
    order = info[node]["input_order"]
    assert (order["required"], order.get("optional", [])) == INPUTS[node]


@pytest.mark.parametrize("node", OUTPUTS)
def test_outputs(info: dict[str, Any], node: str) -> None:
    assert info[node]["output_name"] == OUTPUTS[node]
    assert info[node]["output_node"] == (node in OUTPUT_NODES)


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("TrainTriLoRA", "seed"),
        ("TriLoRAPriorPictures", "seed"),
        ("TriLoRAMonitorOptions", "preview_seed"),
        ("MergeTriLoRA", "seed"),
        ("TriLoRAGrid", "seed"),
    ],
)
def test_seed_stays(info: dict[str, Any], node: str, name: str) -> None:
    """Else every press of Queue trains, or draws, anew."""
    inputs = info[node]["input"]
    seed = (inputs["required"] | inputs.get("optional", {}))[name]
    assert not seed[1].get("control_after_generate")


def test_pictures_are_offered(info: dict[str, Any], server: Server) -> None:
    folder = info["TriLoRADataset"]["input"]["required"]["folder"]
    options = folder[1]["options"] if folder[0] == "COMBO" else folder[0]
    assert "pictures" in options


def test_every_input_is_explained(info: dict[str, Any]) -> None:
    for node in OUTPUTS:
        for group in ("required", "optional"):
            for name, spec in info[node]["input"].get(group, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{node}.{name} has no tooltip"
