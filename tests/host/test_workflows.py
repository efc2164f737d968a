"""The whole path in the real ComfyUI, over its HTTP interface: train, save, load, apply, merge, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import workflow
from .client import Graph, Outcome, Refused
from .discovery import PACK
from .models import sd15_checkpoint
from .server import PACK_NAME, Server

LORA = "trilora/my_style.safetensors"
TUNED = "my_finetuned_model.safetensors"  # as the workflow that extracts names it
OTHERS = ("continue_training", "strength_grid", "merge_style_subject", "extract_resize", "compare_lora_trilora")


def picture(server: Server, graph: Graph, node: str = "save") -> np.ndarray:
    (image,) = server.client.images(server.client.run(graph), node)
    return image.astype(int)


@pytest.fixture(scope="module")
def before(server: Server) -> np.ndarray:
    """What the base model draws before anything of ours has run."""
    return picture(server, workflow.sampling())


@pytest.fixture(scope="module")
def trained(server: Server, before: np.ndarray) -> tuple[Graph, Outcome]:
    """The shipped training workflow, run at a small size."""
    graph = workflow.small(workflow.load_workflow("train_style", server.client.object_info()))
    return graph, server.client.run(graph)


def test_pack_is_the_one_under_test(server: Server) -> None:
    assert (server.base / "custom_nodes" / PACK_NAME).resolve() == Path(__file__).resolve().parents[2]


def test_training_workflow_writes_a_lora_and_changes_the_picture(
    server: Server, trained: tuple[Graph, Outcome]
) -> None:
    graph, outcome = trained
    (without,) = server.client.images(outcome, workflow.find(graph, "PreviewImage"))
    (with_adapter,) = server.client.images(outcome, workflow.find(graph, "SaveImage"))
    assert np.abs(without.astype(int) - with_adapter.astype(int)).mean() > 1
    with safe_open(server.loras / LORA, "np") as file:
        assert file.metadata()["ss_base_model_version"].startswith("sd_")
        assert len(list(file.keys())) == 3 * 32  # down, up, alpha of the 32 attention linears
    assert LORA in workflow.text(outcome.outputs, workflow.find(graph, "TrainTriLoRA"))


@pytest.fixture(scope="module")
def subject(server: Server, trained: tuple[Graph, Outcome]) -> tuple[Graph, Outcome]:
    """The shipped workflow for subjects, which draws its prior pictures itself."""
    graph = workflow.small(workflow.load_workflow("train_subject", server.client.object_info()))
    return graph, server.client.run(graph)


def test_subject_workflow_trains_beside_pictures_that_it_draws(server: Server, subject: tuple[Graph, Outcome]) -> None:
    graph, outcome = subject
    with safe_open(server.loras / "trilora/my_subject.safetensors", "np") as file:
        assert file.metadata()["ss_num_reg_images"] == "2"
    (of_subject,) = server.client.images(outcome, workflow.find(graph, "SaveImage"))
    (of_class,) = server.client.images(outcome, workflow.find(graph, "PreviewImage"))
    assert of_subject.std() > 1 and np.abs(of_subject.astype(int) - of_class).mean() > 0.1


def test_every_shipped_workflow_is_run_here() -> None:
    here = {"train_style", "train_subject", "load_apply_sample", *OTHERS}
    assert here == {path.stem for path in (PACK / "workflows").glob("*.json")}


@pytest.mark.parametrize("name", OTHERS)
def test_shipped_workflow_runs(server: Server, subject: tuple[Graph, Outcome], name: str) -> None:
    """Each draws a grid: its cells differ, and what is to be saved lies in its file."""
    if name == "extract_resize":
        tensors = load_file(sd15_checkpoint())
        change = np.outer(*np.random.default_rng(0).normal(size=(2, 320))).astype(np.float16) * np.float16(0.05)
        for key in [key for key in tensors if key.endswith("to_q.weight")]:
            tensors[key] += torch.from_numpy(change)
        save_file(tensors, server.base / "models" / "checkpoints" / TUNED)
    graph = workflow.small(workflow.load_workflow(name, server.client.object_info()))
    files = workflow.files_below(server.loras)
    outcome = server.client.run(graph)
    sheet = server.client.images(outcome, workflow.find(graph, "SaveImage"))[0].astype(int)
    assert np.array_equal(sheet, server.client.images(outcome, workflow.find(graph, "TriLoRAGrid"))[0])
    cells = [_cell(sheet, column) for column in range(sheet.shape[1] // (workflow.SIDE + 10) - 1)]
    assert len(cells) >= 3 and all(np.abs(cell - cells[0]).mean() > 0.1 for cell in cells[1:])
    saved = [node for node in graph.values() if node["class_type"] in ("SaveTriLoRA", "TrainTriLoRA")]
    new = {name for name in workflow.files_below(server.loras) - files if name.endswith(".safetensors")}
    assert len(new) == len(saved)


def _cell(sheet: np.ndarray, column: int) -> np.ndarray:
    """A part of a picture in the last row of a grid of small cells, well above the line below it."""
    left = workflow.SIDE + column * (workflow.SIDE + 10)
    return sheet[-70:-45, left : left + workflow.SIDE]


def test_base_model_is_bit_equal_after_training(
    server: Server, before: np.ndarray, trained: tuple[Graph, Outcome]
) -> None:
    again = workflow.sampled_again(workflow.sampling(), 1)
    outcome = server.client.run(again)
    assert "checkpoint" in outcome.cached, "the model was loaded anew, which shows nothing"
    assert np.array_equal(server.client.images(outcome, "save")[0], before)


def test_same_seed_same_tensors(server: Server, trained: tuple[Graph, Outcome]) -> None:
    for name, seed in (("one", 0), ("twin", 0), ("other", 1)):
        server.client.run(workflow.training(name, seed=seed))
    one, twin, other = (load_file(server.loras / f"trilora/{name}.safetensors") for name in ("one", "twin", "other"))
    assert one.keys() == twin.keys() and all((one[key] == twin[key]).all() for key in one)
    assert any((one[key] != other[key]).any() for key in one)


def test_finished_run_is_read_from_the_disk(server: Server, trained: tuple[Graph, Outcome]) -> None:
    graph, _ = trained
    files = workflow.files_below(server.loras)
    server.client.free()
    outcome = server.client.run(graph)
    assert "Already trained" in workflow.text(outcome.outputs, workflow.find(graph, "TrainTriLoRA"))
    assert workflow.files_below(server.loras) == files


def test_apply_workflow_changes_the_picture(server: Server, trained: tuple[Graph, Outcome]) -> None:
    graph = workflow.small(workflow.load_workflow("load_apply_sample", server.client.object_info()))
    graph = workflow.changed(graph, {"LoadTriLoRA": {"lora_name": LORA}})
    save = workflow.find(graph, "SaveImage")
    drawn = {
        strength: picture(server, workflow.changed(graph, {"ApplyTriLoRA": {"strength": strength}}), save)
        for strength in (-1.0, 0.0, 1.0, 2.0)
    }
    for strength in (-1.0, 1.0, 2.0):
        assert np.abs(drawn[strength] - drawn[0.0]).mean() > 1, f"strength {strength} draws what strength 0 draws"


def test_strength_zero_is_bit_equal_to_no_adapter(
    server: Server, before: np.ndarray, trained: tuple[Graph, Outcome]
) -> None:
    assert np.array_equal(picture(server, workflow.with_adapter(workflow.sampling(), LORA, 0.0)), before)


def test_the_native_loader_draws_the_same(server: Server, trained: tuple[Graph, Outcome]) -> None:
    ours = picture(server, workflow.with_adapter(workflow.sampling(), LORA, 1.0))
    graph = workflow.sampling(model=["native", 0])
    inputs = {"model": ["checkpoint", 0], "lora_name": LORA, "strength_model": 1.0}
    graph["native"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    assert np.abs(picture(server, graph) - ours).max() <= 1


def test_apply_nodes_stack(server: Server, trained: tuple[Graph, Outcome]) -> None:
    once = workflow.with_adapter(workflow.sampling(), LORA, 0.5)
    inputs = {"model": ["apply", 0], "trilora": ["load", 0], "strength": 0.5, "strength_clip": 0.5}
    once["second"] = {"class_type": "ApplyTriLoRA", "inputs": inputs}
    once["sampler"]["inputs"]["model"] = ["second", 0]
    whole = picture(server, workflow.with_adapter(workflow.sampling(), LORA, 1.0))
    assert np.abs(picture(server, once) - whole).max() <= 1


def test_merge_and_save(server: Server, trained: tuple[Graph, Outcome]) -> None:
    """Three quarters and one quarter of the same adapter are that adapter, through a file too."""
    weights = {"weight_a": 0.75, "weight_b": 0.25, "method": "sum", "rank": 0}
    graph: dict[str, dict[str, Any]] = {
        "load": {"class_type": "LoadTriLoRA", "inputs": {"lora_name": LORA}},
        "merge": {
            "class_type": "MergeTriLoRA",
            "inputs": {"trilora_a": ["load", 0], "trilora_b": ["load", 0], **weights},
        },
        "save": {
            "class_type": "SaveTriLoRA",
            "inputs": {"trilora": ["merge", 0], "filename_prefix": "trilora/merged", "dtype": "fp32"},
        },
    }
    files = workflow.files_below(server.loras)
    server.client.run(graph)
    (merged,) = workflow.files_below(server.loras) - files
    ours = picture(server, workflow.with_adapter(workflow.sampling(), LORA, 1.0))
    assert np.abs(picture(server, workflow.with_adapter(workflow.sampling(), merged, 1.0)) - ours).max() <= 1


def test_progress_and_cancel(server: Server, before: np.ndarray, trained: tuple[Graph, Outcome]) -> None:
    """Cancel ends the run within a step, keeps what was trained, and leaves the model as it was."""
    files = workflow.files_below(server.loras)
    with server.client.listen() as events:
        prompt = server.client.queue(workflow.training("cancelled", steps=5000))
        while not any(said.startswith("step ") for node, said in events.of("text") if node == "train"):
            events.wait_for("text", len(events.of("text")) + 1)
        server.client.interrupt()
        outcome = server.client.wait(prompt, timeout=60)
    assert outcome.status == "interrupted"
    assert any(data["node"] == "train" and data["max"] == 5000 for data in events.of("progress"))
    kept = workflow.files_below(server.loras) - files
    assert any(name.startswith("trilora/cancelled") and name.endswith(".safetensors") for name in kept), kept
    assert "trilora/cancelled.safetensors" not in kept, "a stopped run must be told from a finished one by its name"
    assert np.array_equal(picture(server, workflow.sampled_again(workflow.sampling(), 2)), before)


def test_resume_after_cancel_equals_the_uninterrupted_run(server: Server, trained: tuple[Graph, Outcome]) -> None:
    with server.client.listen() as events:
        prompt = server.client.queue(workflow.training("resumed", steps=5000))
        while not any(said.startswith("step ") for node, said in events.of("text") if node == "train"):
            events.wait_for("text", len(events.of("text")) + 1)
        server.client.interrupt()
        server.client.wait(prompt, timeout=60)
    (stopped,) = (server.loras / "trilora").glob("resumed_stopped_at_*.safetensors")
    steps = int(stopped.stem.rpartition("_")[2]) + 2
    server.client.run(workflow.training("resumed", steps=steps, resume=True))
    server.client.run(workflow.training("uninterrupted", steps=steps))
    resumed, whole = (load_file(server.loras / f"trilora/{name}.safetensors") for name in ("resumed", "uninterrupted"))
    assert resumed.keys() == whole.keys() and all((resumed[key] == whole[key]).all() for key in whole)
    with safe_open(stopped, "np") as cut, safe_open(server.loras / "trilora/resumed.safetensors", "np") as file:
        assert int(cut.metadata()["ss_steps"]) == steps - 2
        assert int(file.metadata()["ss_steps"]) == steps
    assert not list((server.loras / "trilora").glob("resumed*.state")), "a finished run needs no state"


def test_bad_input_is_named(server: Server, trained: tuple[Graph, Outcome]) -> None:
    (server.base / "input" / "empty").mkdir(exist_ok=True)
    broken = server.base / "input" / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (server.loras / "cut.safetensors").write_bytes((server.loras / LORA).read_bytes()[:5000])
    graph = workflow.training("bad")
    for folder, expected in (("empty", "empty"), ("broken", "cut.png")):
        outcome = server.client.wait(
            server.client.queue(workflow.changed(graph, {"TriLoRADataset": {"folder": folder}}))
        )
        assert outcome.status == "error" and expected in outcome.error
    cut = workflow.with_adapter(workflow.sampling(), "cut.safetensors", 1.0)
    outcome = server.client.wait(server.client.queue(cut))
    assert outcome.status == "error" and "cut.safetensors" in outcome.error
    for bad in ({"rank": 0}, {"steps": 0}, {"batch_size": 0}):
        with pytest.raises(Refused):
            server.client.queue(workflow.training("bad", **bad))
    with pytest.raises(Refused, match="outside"):
        server.client.queue(workflow.changed(graph, {"TriLoRADataset": {"folder": "../outside"}}))
