"""Faults in the real host: interrupts, a full device, turns of training and drawing, and a server killed in mid-run.

A few of each here; TRILORA_FAULTS=100 makes as many interrupts and half as many turns, on every ComfyUI found.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
from safetensors.torch import load_file

from . import workflow
from .client import Client, Graph
from .discovery import Host, find_hosts
from .in_process import run_in_host
from .models import sd3_checkpoint, sd15_clip_checkpoint
from .server import Server, fill_base_directory, serve

COUNT = int(os.environ.get("TRILORA_FAULTS", "0"))
SAVE_EVERY = 2
PLACES = ("forward", "backward", "optimizer", "preview", "save") if COUNT else ("optimizer", "preview", "save")
GROWTH = 100_000  # bytes a round: one forgotten adapter with its optimizer and copies would be a million
HOSTS = find_hosts() if COUNT else find_hosts()[:1]

pytestmark = pytest.mark.timeout(900 + 200 * COUNT)


@pytest.fixture(scope="module", params=HOSTS or [None], ids=[host.name for host in HOSTS] or ["none"])
def chosen(request: pytest.FixtureRequest) -> Host:
    """The newest ComfyUI, all of them where faults are counted."""
    if request.param is None:
        pytest.skip("no ComfyUI found")
    return request.param


@pytest.fixture(scope="module")
def found(chosen: Host) -> dict[str, Any]:
    """What the script saw in that host."""
    counts = {"places": PLACES, "interrupts": COUNT or 2, "turns": COUNT // 2 or 2, "warm": 10 if COUNT else 2}
    answer = run_in_host(chosen, "faults", {"checkpoint": str(sd3_checkpoint()), **counts}, timeout=900 + 200 * COUNT)
    print(f"\nComfyUI {chosen.name}: {answer}")
    return answer


def test_an_interrupt_at_any_moment_leaves_the_model_and_the_work(found: dict[str, Any]) -> None:
    seen = found["interrupts"]
    assert seen["touched"] == 0 and seen["wrong"] == 0 and seen["found"]["resumed and compared"]
    assert seen["found"].get("kept", 0) or not COUNT
    assert seen["tensors_more"] <= 0, seen
    assert not COUNT or seen["bytes_a_round"] < GROWTH, seen


@pytest.mark.parametrize("place", PLACES)
def test_a_full_device_costs_no_work(found: dict[str, Any], place: str) -> None:
    seen = found["full"][place]
    assert seen["untouched"] and seen["same"]
    if place in ("preview", "save"):
        assert not seen["problem"], "the run goes on"
    else:
        assert seen["problem"].startswith("out of memory on cpu in step ") and len(seen["kept"]) == 1, seen


def test_models_trained_and_sampled_in_turn_do_not_change(found: dict[str, Any]) -> None:
    assert found["turns"]["wrong"] == 0, found["turns"]
    if COUNT:  # after two rounds the host still holds more or less of the adapters before
        assert found["turns"]["tensors_more"] <= 0, found["turns"]
        assert found["turns"]["bytes_a_round"] < GROWTH, found["turns"]


def tensors(base: Path, name: str) -> dict[str, Any]:
    return load_file(base / "models" / "loras" / "trilora" / f"{name}.safetensors")


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def two_trainings(first: str, second: str) -> Graph:
    """One graph in which the second Train node trains on the first one's model, on from its adapter."""
    graph = workflow.training(first)
    inputs = {**graph["train"]["inputs"], "name": second, "seed": 3, "start_from": ["train", 0]}
    graph["second"] = {"class_type": "TrainTriLoRA", "inputs": inputs}
    return graph


def saving(name: str, **train: Any) -> Graph:
    """The training graph with a state every other step."""
    graph = workflow.training(name, options=["often", 0], **train)
    optimizer = {"init": "svd-mean", "method": "trilora", "alpha": 0.0, "companion_rank": 0, "optimizer": "adamw"}
    optimizer |= {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01, "clip_norm": 1.0, "accumulation": 1}
    optimizer |= {"precision": "auto", "gradient_checkpointing": False, "save_every": SAVE_EVERY}
    graph["often"] = {"class_type": "TriLoRAOptimizerOptions", "inputs": optimizer}
    return graph


def test_a_killed_host_loses_at_most_the_steps_since_the_last_state(
    chosen: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """kill -9 in mid-run; the next host resumes to the bits of a run that nobody killed. Two nodes in one graph, two
    graphs in the queue and a change of the model go by the way."""
    base = fill_base_directory(tmp_path_factory.mktemp(f"killed-{chosen.name}"))
    other = base / "models" / "checkpoints" / "other.safetensors"
    other.symlink_to(sd15_clip_checkpoint())
    graph = saving("cut", steps=12)
    for _ in range(max(1, COUNT // 20)):
        with serve(chosen, base) as server:
            server.client.queue(graph)
            wait_for_step(server, SAVE_EVERY + 1)
            time.sleep(random.random())
            server.process.kill()
            server.process.wait(10)
        left = whole_files(base)
        # where it was at its end before the kill, the file is there and the state cleared away
        assert any(path.suffix == ".state" or path.name == "cut.safetensors" for path in left), left
        graph = saving("cut", steps=12, resume=True)
    with serve(chosen, base) as server:
        client = server.client
        queued = [client.queue(graph), client.queue(saving("whole", steps=12)), client.queue(two_trainings("a", "b"))]
        assert [client.wait(one).status for one in queued] == ["success"] * 3
        check_swap(client, base)
    assert equal(tensors(base, "cut"), tensors(base, "whole"))
    assert not list((base / "models/loras/trilora").glob(".*.part"))
    assert not list((base / "models/loras/trilora").glob("*.state"))


def check_swap(client: Client, base: Path) -> None:
    """Another checkpoint between two runs of one; both nodes of the graph before did what they do alone."""
    for name, checkpoint in (("c", "other.safetensors"), ("d", "sd15.safetensors")):
        graph = workflow.changed(workflow.training(name), {"CheckpointLoaderSimple": {"ckpt_name": checkpoint}})
        client.run(graph)
    assert equal(tensors(base, "a"), tensors(base, "d")) and equal(tensors(base, "a"), tensors(base, "c"))
    assert not equal(tensors(base, "a"), tensors(base, "b"))


def wait_for_step(server: Server, step: int) -> None:
    """Wait until the run that goes on has done so many steps, or ended."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        runs = server.client.get("/trilora/runs")
        if runs and (runs[-1]["step"] >= step or runs[-1]["ended"]):
            return
        time.sleep(0.05)
    raise AssertionError(server.log()[-3000:])


def whole_files(base: Path) -> list[Path]:
    """Adapters and states under names of their own; each must be readable to its end."""
    folder = base / "models" / "loras" / "trilora"
    paths = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".state") and path.name[0] != "."]
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            assert [file.get_tensor(name) for name in file.keys()], path  # noqa: SIM118 - not a dict
    return paths
