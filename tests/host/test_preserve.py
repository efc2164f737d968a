"""preserve_base in the real host: the model is asked before it is trained, and is left bit for bit as it was."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest

from . import workflow
from .discovery import Host
from .in_process import run_in_host
from .server import Server
from .test_train_control import OPTIMIZER, log_of, metadata

KINDS = ("sd15", "sd3")  # one that predicts the noise, one that predicts the flow


@cache
def measured(host: Host) -> dict[str, Any]:
    """What scripts/preserve.py found, from one process for each host."""
    return run_in_host(host, "preserve", {"kinds": KINDS})


@pytest.fixture(params=KINDS)
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    """The measures of one kind of model on one host."""
    return measured(host)[request.param]


def test_the_model_is_left_as_it_was(answer: dict[str, Any]) -> None:
    assert answer["untouched"]


def test_an_interrupt_while_it_is_asked_leaves_it_as_it_was(answer: dict[str, Any]) -> None:
    assert answer["untouched_after_interrupt"]


def test_what_is_kept_is_what_the_model_predicts(answer: dict[str, Any]) -> None:
    assert answer["points"] == 18 and answer["finite"]
    assert answer["wrong"] < 2e-3 and answer["back"] < 1e-4


def test_a_resumed_run_equals_the_uninterrupted_one(answer: dict[str, Any]) -> None:
    assert answer["resumed_equals"]
    assert all(math.isfinite(loss) for loss in answer["losses"])


def preserving(name: str, **train: Any) -> dict[str, Any]:
    """The training graph with preserve_base on."""
    graph = workflow.training(name, options=["options", 0], **train)
    inputs = OPTIMIZER | {"preserve_base": "light", "preserve_prompts": "a house\na cat at night\n"}
    graph["options"] = {"class_type": "TriLoRAOptimizerOptions", "inputs": inputs}
    return graph


def test_the_node_preserves_and_says_so(server: Server) -> None:
    base = server.client.images(server.client.run(workflow.sampling()), "save")
    outputs = server.client.run(preserving("preserved")).outputs
    assert "Trained: saved as" in workflow.text(outputs, "train")
    config = metadata(server.loras / "trilora/preserved.safetensors")["trilora.config"]
    assert '"preserve": {"base": "light", "prompts": ["a house", "a cat at night"]}' in config
    assert [line["step"] for line in log_of(server, "preserved") if line["event"] == "step"] == [1, 2, 3]
    again = server.client.images(server.client.run(workflow.sampled_again(workflow.sampling(), 1)), "save")
    assert (base[0] == again[0]).all()


def test_the_node_explains_what_is_missing(server: Server) -> None:
    """A data set of latents has no text encoder."""
    graph = preserving("latents")
    graph["data"] = {
        "class_type": "TriLoRADatasetFromLatents",
        "inputs": {"latents": ["latents", 0], "conditioning": ["caption", 0]},
    }
    graph["latents"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["caption"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a thing", "clip": ["checkpoint", 1]}}
    outcome = server.client.wait(server.client.queue(graph))
    assert outcome.status == "error" and "preserve_base is on, but this data set has no clip" in outcome.error
