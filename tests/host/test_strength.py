"""How much comes through, in every ComfyUI found: the controls of Apply, the hook node, and what the nodes say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import workflow
from .client import Graph
from .discovery import Host
from .in_process import run_in_host
from .server import Server

EXACT = 2e-6  # relative, float32
LORA = "trilora/strength.safetensors"
STRANGER = "trilora/stranger.safetensors"


@pytest.fixture(scope="module")
def figures(host: Host) -> dict[str, Any]:
    """Everything from one start of the host as a library."""
    return run_in_host(host, "bridge_strength")


def test_controls_reach_the_weights(figures: dict[str, Any]) -> None:
    found = figures["controls"]
    assert found["error"] < EXACT and found["ranks"] == [4] and found["restored"]
    assert figures["fp8"]["error"] < EXACT
    assert figures["off"], "without blocks the very same model passes"


def test_a_constant_schedule_is_apply(figures: dict[str, Any]) -> None:
    found = figures["constant"]
    assert found["error"] < 1e-5 and found["differs"] > 1e-2
    assert found["same_after"] and found["restored"] and found["clean"]


def test_a_schedule_begins_as_its_start_and_differs_from_both_ends(figures: dict[str, Any]) -> None:
    found = figures["schedule"]
    assert 3 <= found["equal_steps"] <= 5  # of 8: the range is halved by the model's times, not by steps
    assert found["to_full"] > 1e-4 and found["to_none"] > 1e-4
    assert found["repeats"] and found["restored"]


def test_rank_by_step(figures: dict[str, Any]) -> None:
    found = figures["ranks"]
    assert 3 <= found["equal_steps"] <= 5 and min(found["differs"]) > 1e-4
    assert found["sum"] < 1e-5 and found["restored"]


def test_the_hosts_own_keyframes(figures: dict[str, Any]) -> None:
    assert max(figures["keyframes"]) < 1e-5


def test_hooks_on_the_text_encoder_and_on_rows(figures: dict[str, Any]) -> None:
    found = figures["text"]
    assert found["error"] < 1e-6 and found["differs"] > 1e-5 and found["none"] == 0 and found["restored"]
    found = figures["rows"]
    assert max(found["q"], found["v"]) < EXACT and found["k"] == 0 and found["restored"]


def test_what_is_wrong_is_said(figures: dict[str, Any]) -> None:
    said = figures["complaints"]["said"]
    assert said["rank"].startswith("InputError: keep_rank is 7, but the adapter's highest rank is 6")
    assert said["blocks"].startswith("InputError: blocks, character 11: found 'MDI', expected one of TE1, IN00-11")
    assert said["ranks"].startswith("InputError: ranks, character 1: found '8', expected a rank from 0 to 6")
    assert said["model"].startswith("InputError: the adapter is for flux1, but the model is SD15")
    (line,) = figures["complaints"]["heard"]
    assert line.startswith("TriLoRA: 2 layers are fp8 or quantised; a hook merges")
    assert figures["complaints"]["usable_after"] == 0


def test_another_base_is_named(figures: dict[str, Any]) -> None:
    found = figures["bases"]
    assert found["same"] == [""] * 3 and found["nothing"] == [""] * 2 and found["same_name"] == ""
    assert found["content"] == "", "equal weights, whatever the program that trained and the name of the file"
    assert found["another"] == ('the adapter was trained on "photo", this model is "dream": it may look different here')
    assert found["kind"].startswith("the adapter was trained on another SD 1.5 model than this one")
    assert found["untrainable"].startswith('the adapter was trained on "dream", not on this SD15')


# Over the server, in pictures.


@pytest.fixture(scope="module")
def before(server: Server) -> np.ndarray:
    return picture(server, sampling())


@pytest.fixture(scope="module")
def lora(server: Server, before: np.ndarray) -> str:
    """A trained adapter, and the same one as if another base had made it."""
    server.client.run(workflow.training("strength", learning_rate=3e-2))
    path = server.loras / LORA
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    other = {"trilora.base_fingerprint": "0" * 64, "trilora.base_content": "0" * 64, "trilora.base_name": "photo"}
    strange = {**metadata, **other}
    save_file(load_file(path), server.loras / STRANGER, strange)
    return LORA


def picture(server: Server, graph: Graph) -> np.ndarray:
    (image,) = server.client.images(server.client.run(graph), "save")
    return image.astype(int)


def sampling() -> Graph:
    return workflow.sampling(steps=6)


def applied(name: str, strength: float, **controls: Any) -> Graph:
    graph = workflow.with_adapter(sampling(), name, strength)
    graph["apply"]["inputs"] |= controls
    return graph


def scheduled(name: str, **inputs: Any) -> Graph:
    """The hook on both prompts by the host's own node."""
    graph = sampling()
    graph["load"] = {"class_type": "LoadTriLoRA", "inputs": {"lora_name": name}}
    graph["hook"] = {"class_type": "TriLoRAHook", "inputs": {"trilora": ["load", 0], **inputs}}
    pair = {"positive_NEW": ["prompt", 0], "negative_NEW": ["nothing", 0], "strength": 1.0}
    graph["pair"] = {
        "class_type": "PairConditioningSetProperties",
        "inputs": {**pair, "set_cond_area": "default", "hooks": ["hook", 0]},
    }
    graph["sampler"]["inputs"] |= {"positive": ["pair", 0], "negative": ["pair", 1]}
    return graph


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def test_pictures_of_schedules(server: Server, before: np.ndarray, lora: str) -> None:
    steady = picture(server, scheduled(lora, strength=0.8))
    alone = picture(server, applied(lora, 0.8))
    assert distance(steady, alone) <= 1 and distance(steady, before) > 8
    full = picture(server, applied(lora, 1.0))
    falling = picture(server, scheduled(lora, strength=1.0, strength_end=0.0, curve="linear", keyframe_count=4))
    assert distance(falling, full) > 2 and distance(falling, before) > 2
    late = picture(server, scheduled(lora, strength=1.0, ranks="1@0, all@0.5"))
    low = picture(server, applied(lora, 1.0, keep_rank=1))
    assert distance(late, full) > 2 and distance(late, low) > 2
    assert distance(picture(server, scheduled(lora, strength=1.0, ranks="1@0")), low) <= 1
    again = picture(server, workflow.sampled_again(sampling(), 3))
    assert np.array_equal(again, before), "the base must be as it was"


def test_pictures_of_controls(server: Server, before: np.ndarray, lora: str) -> None:
    full = picture(server, applied(lora, 1.0))
    assert np.array_equal(picture(server, applied(lora, 1.0, block_preset="NONE")), before)
    assert distance(picture(server, applied(lora, 1.0, keep_rank=4, keep_energy=1.0, normalize=True)), full) <= 1
    assert distance(picture(server, applied(lora, 1.0, blocks="*:0.5")), picture(server, applied(lora, 0.5))) <= 1
    for controls in ({"tone": 3.0}, {"keep_rank": 1}, {"blocks": "OUT:0"}):
        assert distance(picture(server, applied(lora, 1.0, **controls)), full) > 1, controls


def test_what_nodes_show(server: Server, lora: str) -> None:
    with server.client.listen() as events:
        outcome = server.client.run(applied(STRANGER, 0.7))
        events.wait_for("text", 1)
    shown = workflow.text(outcome.outputs, "load")
    assert shown.splitlines()[0].startswith("base model: ") and "(sd15)" in shown
    assert "rank 4 (effective " in shown and "in 32 layers" in shown and shown.endswith("trigger words: stripes")
    assert outcome.outputs["load"]["trilora_adapter"][0]["words"] == ["stripes"]  # the card that shows it
    said = dict(events.of("text"))
    assert said["apply"].startswith("32 layers at 0.7\nthe adapter was trained on ")
    assert 'the adapter was trained on "photo"' in server.log()
    with server.client.listen() as events:
        server.client.run(applied(lora, 0.7))
        events.wait_for("text", 1)
    assert dict(events.of("text"))["apply"] == "32 layers at 0.7"


def test_errors_over_the_server(server: Server, lora: str) -> None:
    cases = {
        "keep_rank is 5, but the adapter's highest rank is 4": applied(lora, 1.0, keep_rank=5),
        "blocks, character 3: found '12'": applied(lora, 1.0, blocks="IN12:1"),
        "ranks, character 1: found '5'": scheduled(lora, strength=1.0, ranks="5@0"),
    }
    for said, graph in cases.items():
        outcome = server.client.wait(server.client.queue(graph))
        assert outcome.status == "error" and said in outcome.error
