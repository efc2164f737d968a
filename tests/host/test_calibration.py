"""Calibration in ComfyUI: exact sums on every kind of model, the node, its file, and what does not fit."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from . import workflow
from .client import Graph
from .discovery import Host
from .in_process import run_in_host
from .server import Server
from .test_train_control import LAYERS, MONITOR, OPTIMIZER

FLUX_SINCE = (0, 14)  # older hosts fix Flux's width at 3072, which is too large for a test
INPUTS = {"sd15": (32, 17), "sdxl": (80, 41), "sd3": (19, 9), "flux": (12, 12)}  # layers, distinct inputs


@cache
def measured(host: Host) -> dict[str, Any]:
    """What calibration.py found, from one process for each host."""
    kinds = ["sd15", "sdxl", "sd3"] + ["flux"] * (host.version >= FLUX_SINCE)
    return run_in_host(host, "calibration", {"kinds": kinds})


@pytest.fixture(params=list(INPUTS))
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    """The measures of one kind of model on one host."""
    if request.param not in measured(host):
        pytest.skip(f"{request.param} is checked on newer hosts")
    return {"kind": request.param, **measured(host)[request.param]}


def test_the_sums_are_those_of_a_float64_pass(answer: dict[str, Any]) -> None:
    """Half precision in what is kept: 2^-11 of an entry at most."""
    assert answer["error"] < 6e-4


def test_layers_with_one_input_share_it(answer: dict[str, Any]) -> None:
    assert (answer["layers"], answer["inputs"]) == INPUTS[answer["kind"]]


def test_the_model_is_as_it_was(answer: dict[str, Any]) -> None:
    assert answer["stopped"], "an interrupt passes through"
    assert answer["bit_identical"] and answer["same_objects"] and answer["clean"]


def test_a_run_starts_from_it(answer: dict[str, Any]) -> None:
    assert answer["started"]
    assert answer["learnt"] > 0


def test_what_does_not_fit_is_refused(answer: dict[str, Any]) -> None:
    resolution, model, layers, missing = answer["refused"]
    assert "made at resolution 64, the data set has 128" in resolution
    assert "calibrate this model" in model
    assert "lacks" in layers and "of the layers to train" in layers
    assert "connect TriLoRA Calibrate" in missing


def contrasted(name: str, *, calibrate: dict[str, Any], layers: str = "attention", **train: Any) -> Graph:
    """Options with init = contrast and a choice of layers, Calibrate, and Train TriLoRA as "train"."""
    graph = workflow.training(name, options=["layers", 0], calibration=["calibrate", 0], **train)
    graph["optimizer"] = {"class_type": "TriLoRAOptimizerOptions", "inputs": OPTIMIZER | {"init": "contrast"}}
    inputs = LAYERS | {"which": layers, "options": ["optimizer", 0]}
    graph["layers"] = {"class_type": "TriLoRALayerOptions", "inputs": inputs}
    links = {"model": ["checkpoint", 0], "dataset": ["data", 0]}
    graph["calibrate"] = {"class_type": "TriLoRACalibrate", "inputs": links | calibrate}
    return graph


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return file.metadata()


PROMPTS = {"prior_prompts": "a dog\n\n a red car ", "name": "mine"}


def test_the_node_calibrates_once_and_training_starts_from_it(server: Server) -> None:
    server.client.run(contrasted("from_contrast", calibrate=PROMPTS))
    kept, adapter = (
        server.loras / "trilora/mine.calibration.safetensors",
        server.loras / "trilora/from_contrast.safetensors",
    )
    assert metadata(adapter)["trilora.calibration_key"]
    assert metadata(adapter)["trilora.init"] == "contrast"
    before = kept.stat().st_mtime_ns

    spec = server.client.object_info()["LoadTriLoRA"]["input"]["required"]["lora_name"]
    options = spec[1]["options"] if spec[0] == "COMBO" else spec[0]
    assert "trilora/from_contrast.safetensors" in [name.replace("\\", "/") for name in options]
    assert not any(name.endswith(".calibration.safetensors") for name in options), "it is no adapter to load"

    again = contrasted("from_contrast_again", calibrate={**PROMPTS, "prior_prompts": "a dog\na red car"}, seed=3)
    server.client.run(again)
    assert kept.stat().st_mtime_ns == before
    assert not kept.with_name("mine_2.calibration.safetensors").exists()
    server.client.run(contrasted("with_other_prompts", calibrate={**PROMPTS, "prior_prompts": "a cat"}))
    assert kept.with_name("mine_2.calibration.safetensors").is_file()
    assert kept.stat().st_mtime_ns == before


def test_what_training_holds_out_is_not_looked_at(server: Server) -> None:
    """With the same options and seed, the calibration is of the very pictures that the adapter says it learned from."""
    graph = contrasted("held_out", calibrate={"prior_prompts": "a dog", "name": "part", "seed": 7}, seed=7)
    inputs = MONITOR | {"validation_share": 0.4, "options": ["layers", 0]}
    graph["monitor"] = {"class_type": "TriLoRAMonitorOptions", "inputs": inputs}
    for node in ("calibrate", "train"):
        graph[node]["inputs"]["options"] = ["monitor", 0]
    server.client.run(graph)
    facts = json.loads(metadata(server.loras / "trilora/part.calibration.safetensors")["trilora.calibration"])["facts"]
    assert facts["data_hash"] == metadata(server.loras / "trilora/held_out.safetensors")["trilora.data_hash"]
    whole = json.loads(metadata(server.loras / "trilora/mine.calibration.safetensors")["trilora.calibration"])["facts"]
    assert facts["data_hash"] != whole["data_hash"]


def error(server: Server, graph: Graph) -> str:
    with pytest.raises(AssertionError) as raised:
        server.client.run(graph)
    return str(raised.value)


def test_bad_input(server: Server) -> None:
    """Refused before anything is calibrated; what a run refuses is tested above, without a server."""
    alone = contrasted("refused", calibrate=PROMPTS)
    del alone["train"]["inputs"]["calibration"]
    assert "connect TriLoRA Calibrate" in error(server, alone)
    away = contrasted("refused", calibrate={**PROMPTS, "name": "../mine"})
    assert "is not a file name" in error(server, away)
    latents = contrasted("refused", calibrate=PROMPTS)
    latents["empty"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    latents["text"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["checkpoint", 1]}}
    inputs = {"latents": ["empty", 0], "conditioning": ["text", 0], "trigger_word": ""}
    latents["data"] = {"class_type": "TriLoRADatasetFromLatents", "inputs": inputs}
    assert "this data set has no clip" in error(server, latents)
