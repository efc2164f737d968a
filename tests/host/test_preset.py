"""A preset wired into Train TriLoRA, a start from another adapter, and what is watched of both, over the host's API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from . import workflow
from .client import Graph
from .server import Server
from .test_train_control import MONITOR, log_of, watched

STEPS = 2


def with_preset(name: str, goal: str, **train: Any) -> Graph:
    """The training graph with TriLoRA Preset before it, its numbers wired into the widgets of Train TriLoRA."""
    wired = {name: ["preset", place] for place, name in enumerate(("options", "rank", "steps", "learning_rate"))}
    graph = workflow.training(name, **{**wired, "batch_size": ["preset", 4], **train})
    inputs = {"model": ["checkpoint", 0], "dataset": ["data", 0], "goal": goal}
    graph["preset"] = {"class_type": "TriLoRAPreset", "inputs": inputs}
    graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["preset", 5]}}
    return graph


def delta(path: Path, stem: str) -> np.ndarray:
    file = load_file(path)
    up, down = (file[f"{stem}.lora_{side}.weight"].float().numpy() for side in ("up", "down"))
    return up @ down * float(file[f"{stem}.alpha"]) / down.shape[0]


def test_a_preset_is_wired_into_the_widgets(server: Server) -> None:
    graph = with_preset("chosen", "subject", steps=STEPS)
    outcome = server.client.run(graph)
    assert f"saved as {server.loras / 'trilora/chosen.safetensors'}" in workflow.text(outcome.outputs, "train")
    said = workflow.text(outcome.outputs, "shown")
    assert said.startswith("subject for sd15, 4 pictures: 480 steps, batch 1, rank 16, learning rate 0.0001 (constant")
    facts = log_of(server, "chosen")[0]
    config = facts["config"]
    assert (config["steps"], config["batch_size"], config["adapter"]["rank"]) == (STEPS, 1, 16)
    assert config["optimizer"]["learning_rate"] == 1e-4 and config["optimizer"]["warmup_steps"] == 24
    assert (config["loss"]["min_snr_gamma"], config["adapter"]["rank_dropout"]) == (5.0, 0.1)
    assert config["loss"]["timesteps"] == "uniform", "auto, on a model that predicts noise"


def test_all_outputs_of_a_preset_may_be_wired(server: Server) -> None:
    """The steps too; stopped at once, because they are many."""
    graph = with_preset("whole_preset", "collection")
    with server.client.listen() as events:
        prompt = server.client.queue(graph)
        while not any(said.startswith("step ") for node, said in events.of("text") if node == "train"):
            events.wait_for("text", len(events.of("text")) + 1)
        server.client.interrupt()
        assert server.client.wait(prompt, timeout=60).status == "interrupted"
    config = log_of(server, "whole_preset")[0]["config"]
    assert (config["steps"], config["batch_size"], config["adapter"]["rank"], config["ema"]) == (2000, 4, 32, 0.99)
    assert config["optimizer"]["schedule"] == "cosine"


def test_options_before_and_behind_a_preset(server: Server) -> None:
    """Those before it stay but for what it sets; those behind it win."""
    graph = with_preset("between", "style", steps=STEPS)
    graph["before"] = {"class_type": "TriLoRAMonitorOptions", "inputs": MONITOR | {"keep_state": True}}
    graph["preset"]["inputs"]["options"] = ["before", 0]
    layers = {"which": "self-attention", "include": "", "exclude": "", "rank_dropout": 0.25, "options": ["preset", 0]}
    graph["behind"] = {"class_type": "TriLoRALayerOptions", "inputs": layers}
    graph["train"]["inputs"]["options"] = ["behind", 0]
    server.client.run(graph)
    config = log_of(server, "between")[0]["config"]
    assert config["monitor"]["keep_state"] and config["loss"]["min_snr_gamma"] == 5.0
    assert config["adapter"]["layers"]["which"] == "self-attention" and config["adapter"]["rank_dropout"] == 0.25


def test_a_run_starts_from_another_ones_adapter(server: Server) -> None:
    """Through Load TriLoRA into start_from: at a rate of nothing the change stays, and another start is another run."""
    server.client.run(workflow.training("origin", steps=6))
    graph = workflow.training("onward", start_from=["load", 0], learning_rate=1e-8, rank=8)
    graph["load"] = {"class_type": "LoadTriLoRA", "inputs": {"lora_name": "trilora/origin.safetensors"}}
    server.client.run(graph)
    origin, onward = (server.loras / f"trilora/{name}.safetensors" for name in ("origin", "onward"))
    names = sorted(load_file(origin))
    stems = [name.removesuffix(".lora_up.weight") for name in names if name.endswith(".lora_up.weight")]
    for stem in stems[:4]:
        before, after = delta(origin, stem), delta(onward, stem)
        assert np.linalg.norm(after - before) < 5e-3 * np.linalg.norm(before)
    graph["train"]["inputs"] |= {"learning_rate": 1e-2}
    server.client.run(graph)
    moved = delta(server.loras / "trilora/onward_2.safetensors", stems[0])
    assert np.linalg.norm(moved - delta(origin, stems[0])) > 1e-2 * np.linalg.norm(moved)
    fresh = workflow.training("onward", learning_rate=1e-2, rank=8)
    assert "Already trained" not in workflow.text(server.client.run(fresh).outputs, "train")
    again = workflow.text(server.client.run(graph).outputs, "train")
    assert "Already trained" in again and "onward_2.safetensors" in again
    graph["train"]["inputs"] |= {"rank": 1}
    outcome = server.client.wait(server.client.queue(graph))
    assert outcome.status == "error" and "set rank to" in outcome.error


def test_the_spectrum_is_shown_and_changes_nothing(server: Server) -> None:
    graph = watched("seen", monitor={"spectrum_every": 2}, seed=3)
    with server.client.listen() as events:
        server.client.run(graph)
    assert any("effective rank " in said and " · norm " in said for node, said in events.of("text") if node == "train")
    looks = [line for line in log_of(server, "seen") if line["event"] == "spectrum"]
    assert [line["step"] for line in looks] == [0, 2, 3] and len(looks[-1]["layers"]) == 32
    told = workflow.text(server.client.run(workflow.training("seen", seed=3)).outputs, "train")
    assert "Already trained" in told


def test_previews_have_their_own_settings(server: Server) -> None:
    drawn = {"preview_every": 3, "preview_prompts": "a thing", "preview_steps": 2, "preview_resolution": 96}
    for name, cfg in (("usual", 0.0), ("free", 1.0)):
        server.client.run(watched(name, monitor={**drawn, "preview_cfg": cfg}, seed=4 + int(cfg)))
    pictures = [
        np.asarray(Image.open(server.loras / f"trilora/{name}_previews/step_00000_0.png")) for name in ("usual", "free")
    ]
    assert [picture.shape for picture in pictures] == [(96, 96, 3)] * 2
    assert (pictures[0] != pictures[1]).any(), "guidance is seen, on the model without an adapter"
