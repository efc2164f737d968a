"""A text encoder trained over ComfyUI's HTTP interface: its file, its clip, its previews, and a clip left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from . import workflow
from .client import Graph
from .server import Server
from .test_train_control import MONITOR, OPTIMIZER, under_way

LORA = "trilora/worded.safetensors"
LAYERS = 12 * 4  # q, k, v and out of CLIP-L
DENOISER = 32


def training(name: str, *, optimizer: dict[str, Any], monitor: dict[str, Any] | None = None, **train: Any) -> Graph:
    """The training graph with the optimizer options, and with those of the monitor if there are any."""
    graph = workflow.training(name, options=["monitor" if monitor else "optimizer", 0], **train)
    graph["optimizer"] = {"class_type": "TriLoRAOptimizerOptions", "inputs": OPTIMIZER | optimizer}
    if monitor:
        inputs = MONITOR | monitor | {"options": ["optimizer", 0]}
        graph["monitor"] = {"class_type": "TriLoRAMonitorOptions", "inputs": inputs}
    return graph


def sampled(server: Server, graph: Graph) -> np.ndarray:
    (image,) = server.client.images(server.client.run(graph), "save")
    return image.astype(int)


def of_text(path: Path) -> list[str]:
    return [key for key in load_file(path) if key.startswith("lora_te")]


def with_clip(graph: Graph, clip: list[Any]) -> Graph:
    """The sampling graph with its prompts encoded by another clip."""
    for node in ("prompt", "nothing"):
        graph[node]["inputs"]["clip"] = clip
    return graph


@pytest.fixture(scope="module")
def before(server: Server) -> np.ndarray:
    """What the base draws."""
    return sampled(server, workflow.sampling())


@pytest.fixture(scope="module")
def trained(server: Server, before: np.ndarray) -> np.ndarray:
    """What the outputs of a run that trained both draw at once."""
    graph = with_clip(workflow.sampling(model=["train", 1]), ["train", 3])
    return sampled(server, graph | training("worded", optimizer={"text_encoder_rate": 0.5}))


def base_now(server: Server, count: int) -> np.ndarray:
    outcome = server.client.run(with_clip(workflow.sampled_again(workflow.sampling(), count), ["checkpoint", 1]))
    assert "checkpoint" in outcome.cached, "the model was loaded anew, which shows nothing"
    return server.client.images(outcome, "save")[0].astype(int)


def applied(**strengths: Any) -> Graph:
    """Sampling through Load TriLoRA and Apply TriLoRA with model and clip."""
    graph = workflow.with_adapter(workflow.sampling(), LORA, 1.0)
    graph["apply"]["inputs"] |= {"clip": ["checkpoint", 1], **strengths}
    return with_clip(graph, ["apply", 1])


def test_the_file_holds_layers_of_both(server: Server, trained: np.ndarray) -> None:
    path = server.loras / LORA
    assert len(of_text(path)) == 3 * LAYERS and len(load_file(path)) == 3 * (LAYERS + DENOISER)
    tensors = load_file(path)
    assert all(tensors[key].any() for key in of_text(path) if "lora_up" in key), "a layer has learnt nothing"
    with safe_open(path, "np") as file:
        rate = json.loads(file.metadata()["trilora.config"])["optimizer"]["text_encoder_rate"]
    assert rate == 0.5


def test_the_text_encoders_part_changes_the_picture(server: Server, before: np.ndarray, trained: np.ndarray) -> None:
    both, without = sampled(server, applied()), sampled(server, applied(strength_clip=0.0))
    only_text = sampled(server, applied(strength=0.0))
    assert np.abs(both - trained).max() <= 1, "the outputs of the run are not what its file gives"
    assert (both != without).any() and (only_text != before).any() and (without != before).any()


def test_the_native_loader_draws_the_same(server: Server, trained: np.ndarray) -> None:
    inputs = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "lora_name": LORA}
    graph = with_clip(workflow.sampling(model=["native", 0]), ["native", 1])
    graph["native"] = {
        "class_type": "LoraLoader", "inputs": inputs | {"strength_model": 1.0, "strength_clip": 1.0}
    }  # fmt: skip
    assert np.abs(sampled(server, graph) - sampled(server, applied())).max() <= 1


def test_model_and_clip_are_the_same_bits_afterwards(server: Server, before: np.ndarray, trained: np.ndarray) -> None:
    assert np.array_equal(base_now(server, 6), before)


def test_an_interrupt_leaves_both_and_resume_equals_the_uninterrupted_run(
    server: Server, before: np.ndarray, trained: np.ndarray
) -> None:
    options = {"text_encoder_rate": 0.5}
    with under_way(server, training("words_resumed", optimizer=options, steps=5000)) as (prompt, _):
        server.client.interrupt()
        assert server.client.wait(prompt, timeout=120).status == "interrupted"
    folder = server.loras / "trilora"
    assert np.array_equal(base_now(server, 7), before)
    (stopped,) = folder.glob("words_resumed_stopped_at_*.safetensors")
    assert len(of_text(stopped)) == 3 * LAYERS
    steps = int(stopped.stem.rpartition("_")[2]) + 2
    server.client.run(training("words_resumed", optimizer=options, steps=steps, resume=True))
    server.client.run(training("words_at_once", optimizer=options, steps=steps))
    resumed, whole = (load_file(folder / f"{name}.safetensors") for name in ("words_resumed", "words_at_once"))
    assert resumed.keys() == whole.keys() and all((resumed[key] == whole[key]).all() for key in whole)


def test_previews_differ_when_only_the_text_encoder_learns(server: Server, before: np.ndarray) -> None:
    monitor = {"preview_every": 2, "preview_prompts": "a striped thing"}
    drawn = {}
    for name, rate in (("spoken", 1000.0), ("silent", 0.0)):
        options = {"text_encoder_rate": rate, "weight_decay": 0.0}
        server.client.run(training(name, optimizer=options, monitor=monitor, steps=2, learning_rate=1e-7))
        folder = server.loras / f"trilora/{name}_previews"
        drawn[name] = [np.asarray(Image.open(folder / f"step_0000{step}_0.png")).astype(int) for step in (0, 2)]
    moved = {name: np.abs(start - end).max() for name, (start, end) in drawn.items()}
    assert moved["silent"] <= 1, "the denoiser has learnt too, which shows nothing"
    assert (drawn["spoken"][0] == drawn["silent"][0]).all() and moved["spoken"] > 1
    assert np.array_equal(base_now(server, 8), before)


def test_without_training_it_the_clip_passes_as_it_is(server: Server, before: np.ndarray) -> None:
    graph = with_clip(workflow.sampling(), ["train", 3]) | workflow.training("unworded")
    assert np.array_equal(sampled(server, graph), before)


def test_a_data_set_without_a_clip_is_refused(server: Server) -> None:
    graph = training("wordless", optimizer={"text_encoder_rate": 0.5})
    graph["latents"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["words"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a thing", "clip": ["checkpoint", 1]}}
    inputs = {"latents": ["latents", 0], "conditioning": ["words", 0]}
    graph["data"] = {"class_type": "TriLoRADatasetFromLatents", "inputs": inputs}
    outcome = server.client.wait(server.client.queue(graph))
    assert outcome.status == "error"
    assert "text_encoder_rate is set, but this data set has no clip to train" in outcome.error
    assert not list((server.loras / "trilora").glob("wordless*"))
