"""Control of a run over ComfyUI's HTTP interface: options in a chain, previews, validation, stop and keep, resume."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
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

OPTIMIZER = {
    "init": "svd-mean",
    "method": "trilora",
    "alpha": 0.0,
    "companion_rank": 0,
    "optimizer": "adamw",
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "accumulation": 1,
    "precision": "auto",
    "gradient_checkpointing": False,
    "save_every": 0,
}
LAYERS = {"which": "attention", "include": "", "exclude": "", "rank_dropout": 0.0}
MONITOR = {
    "validation_share": 0.0,
    "validate_every": 50,
    "patience": 0,
    "preview_every": 0,
    "preview_prompts": "",
    "preview_seed": 0,
    "keep_adapters": 0,
    "keep_best": False,
    "keep_state": False,
}


def trained(
    name: str, *, optimizer: dict[str, Any], layers: dict[str, Any], monitor: dict[str, Any], **train: Any
) -> Graph:
    """The training graph with all three options nodes before Train TriLoRA."""
    graph = workflow.training(name, options=["monitor", 0], **train)
    chain = (("optimizer", "Optimizer", OPTIMIZER | optimizer), ("layers", "Layer", LAYERS | layers))
    before: dict[str, Any] = {}
    for node, kind, inputs in (*chain, ("monitor", "Monitor", MONITOR | monitor)):
        graph[node] = {"class_type": f"TriLoRA{kind}Options", "inputs": inputs | before}
        before = {"options": [node, 0]}
    return graph


def watched(name: str, *, monitor: dict[str, Any], **train: Any) -> Graph:
    """The training graph with the monitor options alone."""
    graph = workflow.training(name, options=["monitor", 0], **train)
    graph["monitor"] = {"class_type": "TriLoRAMonitorOptions", "inputs": MONITOR | monitor}
    return graph


def log_of(server: Server, name: str) -> list[dict[str, Any]]:
    lines = (server.loras / f"trilora/{name}.log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return file.metadata()


def status_of(server: Server, body: Any) -> int:
    """The status of the answer to a post to the stop route."""
    try:
        server.client.post("/trilora/stop", body)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@contextmanager
def under_way(server: Server, graph: Graph) -> Iterator[tuple[str, dict[str, Any]]]:
    """Queue a graph and wait until its run has done a step: the prompt's id and what the runs route says of the run."""
    prompt, end = server.client.queue(graph), time.monotonic() + 120
    try:
        runs: list[dict[str, Any]] = []
        while not (runs and runs[0]["step"]):
            assert time.monotonic() < end, f"no run has begun: {server.log()[-3000:]}"
            time.sleep(0.05)
            runs = [run for run in server.client.get("/trilora/runs") if run["state"] == "training"]
        yield prompt, runs[0]
    finally:
        server.client.interrupt()


@pytest.fixture(scope="module")
def before(server: Server) -> np.ndarray:
    """What the base model draws."""
    (image,) = server.client.images(server.client.run(workflow.sampling()), "save")
    return image


def base_now(server: Server, count: int) -> np.ndarray:
    outcome = server.client.run(workflow.sampled_again(workflow.sampling(), count))
    assert "checkpoint" in outcome.cached, "the model was loaded anew, which shows nothing"
    return server.client.images(outcome, "save")[0]


def test_all_options_reach_the_run_and_its_files(server: Server, before: np.ndarray) -> None:
    optimizer = {
        "save_every": 1,
        "up_rate": 2.0,
        "sigma_rate": 0.5,
        "down_rate": 0.25,
        "ema": 0.5,
        "timesteps": "logit-normal",
        "logit_mean": 0.5,
        "logit_std": 0.75,
        "shift": 2.0,
        "min_snr_gamma": 5.0,
        "noise_offset": 0.05,
        "orthogonality": 0.01,
    }
    monitor = {
        "validation_share": 0.25,
        "validate_every": 2,
        "preview_every": 3,
        "preview_prompts": "a striped thing\n\n  a thing ",
        "preview_seed": 7,
        "keep_adapters": 1,
        "keep_best": True,
    }
    graph = trained("controlled", optimizer=optimizer, layers={"exclude": "*attn2*"}, monitor=monitor)
    with server.client.listen() as events:
        outcome = server.client.run(graph)
    said = workflow.text(outcome.outputs, "train")
    folder = server.loras / "trilora"
    assert f"Trained: saved as {folder / 'controlled.safetensors'}" in said
    assert "the best by validation, is " in said and f"Previews are in {folder / 'controlled_previews'}" in said
    assert any("\nvalidation " in text and " · drift " in text for _, text in events.of("text")), events.of("text")

    facts, *lines = log_of(server, "controlled")
    config = facts["config"]
    assert [facts["data"]["pictures"], facts["data"]["held_out"]] == [3, 1]
    rates = {name: config["optimizer"][name] for name in ("up_rate", "sigma_rate", "down_rate")}
    given = {name: value for name, value in optimizer.items() if name not in (*rates, "save_every", "ema")}
    assert (rates | config["loss"] | {"save_every": config["save_every"], "ema": config["ema"]}) == (
        optimizer | {name: config["loss"][name] for name in given}
    )
    assert {name: config["loss"][name] for name in given} == given
    assert config["adapter"]["layers"]["exclude"] == ["*attn2*"]
    assert config["monitor"]["preview_prompts"] == ["a striped thing", "a thing"]
    assert [line["step"] for line in lines if line["event"] == "measure"] == [0, 2, 3]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3]

    names = workflow.files_below(folder / "controlled_previews")
    assert names == {*(f"step_0000{step}_{index}.png" for step in (0, 3) for index in (0, 1)), "strip.png"}
    for name in sorted(names - {"strip.png"}):
        picture = np.asarray(Image.open(folder / "controlled_previews" / name))
        assert picture.shape == (workflow.SIDE, workflow.SIDE, 3) and picture.std() > 1
    start, end = (np.asarray(Image.open(folder / f"controlled_previews/step_0000{n}_0.png")) for n in (0, 3))
    assert (start != end).any(), "what was trained is not in the preview"
    assert metadata(folder / "controlled_best.safetensors")["trilora.kept"] == "best"
    assert sorted(path.name for path in folder.glob("controlled_step_*")) == ["controlled_step_00002.safetensors"]
    assert not list(folder.glob("controlled*.state"))
    assert np.array_equal(base_now(server, 3), before)


def test_watching_changes_no_result(server: Server) -> None:
    """Bit for bit, and the run counts as the same one."""
    server.client.run(workflow.training("unwatched", seed=11))
    drawn = {"preview_every": 1, "preview_prompts": "a thing"}
    told = workflow.text(server.client.run(watched("unwatched", monitor=drawn, seed=11)).outputs, "train")
    assert "Already trained" in told
    server.client.run(watched("looked_at", monitor=drawn, seed=11))
    plain, seen = (load_file(server.loras / f"trilora/{name}.safetensors") for name in ("unwatched", "looked_at"))
    assert plain.keys() == seen.keys() and all((plain[key] == seen[key]).all() for key in plain)
    assert len(workflow.files_below(server.loras / "trilora/looked_at_previews")) == 4 + 1


def test_validation_can_end_a_run(server: Server) -> None:
    """At a rate that ruins the model the start of the run stays the best measure."""
    monitor = {"validation_share": 0.25, "validate_every": 1, "patience": 2}
    outcome = server.client.run(watched("ended", monitor=monitor, steps=60, learning_rate=0.5))
    told = metadata(server.loras / "trilora/ended.safetensors")
    assert told["trilora.ended"] == "validation" and int(told["ss_steps"]) < 60
    said = workflow.text(outcome.outputs, "train")
    assert "Trained: saved as" in said and f"Ended after step {told['ss_steps']}" in said


def test_a_kept_state_goes_on_with_more_steps(server: Server) -> None:
    """From the finished run's last step, under a new name; the finished file keeps its bytes."""
    folder, monitor = server.loras / "trilora", {"keep_state": True}
    server.client.run(watched("longer", monitor=monitor))
    short = (folder / "longer.safetensors").read_bytes()
    assert (folder / "longer.state").is_file()
    outcome = server.client.run(watched("longer", monitor=monitor, steps=5, resume=True))
    assert f"saved as {folder / 'longer_2.safetensors'}" in workflow.text(outcome.outputs, "train")
    assert [line["step"] for line in log_of(server, "longer_2") if line["event"] == "step"] == [4, 5]
    assert (folder / "longer.safetensors").read_bytes() == short
    server.client.run(workflow.training("at_once", steps=5))
    resumed, whole = (load_file(folder / f"{name}.safetensors") for name in ("longer_2", "at_once"))
    assert all((resumed[key] == whole[key]).all() for key in whole)


def test_stop_and_keep_lets_the_graph_go_on(server: Server, before: np.ndarray) -> None:
    graph = workflow.sampling(model=["train", 1]) | workflow.training("kept", steps=5000)
    with under_way(server, graph) as (prompt, run):
        assert run["node"] == "train" and run["steps"] == 5000
        assert status_of(server, {"run": run["run"]}) == 200
        outcome = server.client.wait(prompt, timeout=60)
    assert outcome.status == "success", outcome.error
    (file,) = (server.loras / "trilora").glob("kept_stopped_at_*.safetensors")
    step = int(file.stem.rpartition("_")[2])
    said = workflow.text(outcome.outputs, "train")
    assert f"Stopped early, at step {step} of 5000: saved as {file}" in said
    told = metadata(file)
    assert told["trilora.finished"] == "false" and told["trilora.ended"] == "stop" and int(told["ss_steps"]) == step
    assert not (server.loras / "trilora/kept.safetensors").exists()
    assert (server.loras / "trilora/kept.state").is_file(), "a stopped run can be resumed"
    (image,) = server.client.images(outcome, "save")
    assert image.shape == before.shape and (image != before).any(), "the adapter so far is not on the model"
    assert {run["state"] for run in server.client.get("/trilora/runs")} == {"ended"}
    assert np.array_equal(base_now(server, 4), before)


def test_the_same_graph_goes_on_after_stop_and_keep_where_resume_is_on(server: Server) -> None:
    """The host runs a node again only where an input of it changed: what a stopped run left is one."""
    graph = workflow.training("again", steps=60, resume=True)
    with under_way(server, graph) as (prompt, run):
        assert status_of(server, {"run": run["run"]}) == 200
        assert server.client.wait(prompt, timeout=60).status == "success"
    assert not (server.loras / "trilora/again.safetensors").exists()
    outcome = server.client.run(graph)
    assert "train" not in outcome.cached and (server.loras / "trilora/again.safetensors").is_file()
    server.client.run(graph)  # its state is gone now, so that this is one more input that changed
    assert "train" in server.client.run(graph).cached


def test_only_a_run_that_goes_on_can_be_stopped(server: Server) -> None:
    with under_way(server, workflow.training("refusing", steps=5000)) as (prompt, run):
        assert status_of(server, {"run": "0123456789abcdef"}) == 404
        assert status_of(server, {"run": "../kept.state"}) == 404
        assert [status_of(server, body) for body in ({}, {"run": 3}, [run["run"]], None)] == [400] * 4
        server.client.interrupt()
        outcome = server.client.wait(prompt, timeout=60)
    assert outcome.status == "interrupted"
    (file,) = (server.loras / "trilora").glob("refusing_stopped_at_*.safetensors")
    assert metadata(file)["trilora.ended"] == "interrupt"
    assert status_of(server, {"run": run["run"]}) == 404, "it has ended"


def test_an_interrupt_between_previews_keeps_the_work(server: Server, before: np.ndarray) -> None:
    monitor = {"preview_every": 1, "preview_prompts": "a thing"}
    with under_way(server, watched("torn", monitor=monitor, steps=5000)) as (prompt, _):
        server.client.interrupt()
        assert server.client.wait(prompt, timeout=60).status == "interrupted"
    assert list((server.loras / "trilora").glob("torn_stopped_at_*.safetensors"))
    assert np.array_equal(base_now(server, 5), before)


def test_what_cannot_be_watched_is_refused(server: Server) -> None:
    """Before anything is trained."""
    for monitor, expected in (
        ({"preview_every": 1}, "preview_prompts is empty"),
        ({"keep_best": True}, "need monitor.validation_share above 0"),
        ({"keep_adapters": 1}, "save_every is 0"),
    ):
        outcome = server.client.wait(server.client.queue(watched("refused", monitor=monitor)))
        assert outcome.status == "error" and expected in outcome.error
    graph = watched("refused", monitor={"preview_every": 1, "preview_prompts": "a thing"})
    encoded = {"samples": ["latents", 0]}
    graph["latents"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["words"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a thing", "clip": ["checkpoint", 1]}}
    inputs = {"latents": encoded["samples"], "conditioning": ["words", 0]}
    graph["data"] = {"class_type": "TriLoRADatasetFromLatents", "inputs": inputs}
    outcome = server.client.wait(server.client.queue(graph))
    assert outcome.status == "error" and "has no clip and vae to draw them with" in outcome.error
    assert not list((server.loras / "trilora").glob("refused*.safetensors"))
