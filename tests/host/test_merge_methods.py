"""Two adapters merged by each method draw in the real ComfyUI; the saved file draws the same in the native loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from . import workflow
from .client import Graph
from .server import Server

METHODS = ["sum", "concatenate", "ties", "dare", "dare_ties", "knots", "tsv", "orthogonal"]


@pytest.fixture(scope="module")
def pair(server: Server) -> list[str]:
    for name, seed in (("merge_a", 0), ("merge_b", 1)):
        server.client.run(workflow.training(name, seed=seed))
    return ["trilora/merge_a.safetensors", "trilora/merge_b.safetensors"]


def merging(pair: list[str], method: str, **options: Any) -> Graph:
    """Both adapters from their files, merged as node "merge"."""
    graph: Graph = {
        f"load_{name}": {"class_type": "LoadTriLoRA", "inputs": {"lora_name": file}}
        for name, file in zip("ab", pair, strict=True)
    }
    inputs = {"trilora_a": ["load_a", 0], "trilora_b": ["load_b", 0], "weight_a": 1.0, "weight_b": 0.8}
    graph["merge"] = {"class_type": "MergeTriLoRA", "inputs": {**inputs, "method": method, "rank": 0, **options}}
    return graph


def drawing(graph: Graph) -> Graph:
    """The sampling graph with the merged adapter on the model, and the merged adapter saved."""
    apply = {"model": ["checkpoint", 0], "trilora": ["merge", 0], "strength": 1.0}
    save = {"trilora": ["merge", 0], "filename_prefix": "trilora/both", "dtype": "fp32"}
    return (
        workflow.sampling(model=["apply", 0])
        | graph
        | {
            "apply": {"class_type": "ApplyTriLoRA", "inputs": apply},
            "file": {"class_type": "SaveTriLoRA", "inputs": save},
        }
    )


def picture(server: Server, graph: Graph) -> np.ndarray:
    (image,) = server.client.images(server.client.run(graph), "save")
    return image.astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_draws_and_its_file_loads_natively(server: Server, pair: list[str], method: str) -> None:
    files = workflow.files_below(server.loras)
    ours = picture(server, drawing(merging(pair, method, density=0.6, seed=3)))
    (saved,) = workflow.files_below(server.loras) - files
    with safe_open(server.loras / saved, "np") as file:
        assert f'"method": "{method}"' in file.metadata()["trilora.merge"]
        assert len(list(file.keys())) == 3 * 32
    graph = workflow.sampling(model=["native", 0])
    inputs = {"model": ["checkpoint", 0], "lora_name": saved, "strength_model": 1.0}
    graph["native"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    assert np.abs(picture(server, graph) - ours).max() <= 1
    one = picture(server, workflow.with_adapter(workflow.sampling(), pair[0], 1.0))
    assert np.abs(ours - one).mean() > 0.5, "the second adapter does nothing"


def test_regmean_merges_with_the_calibrations_of_the_graph(server: Server, pair: list[str]) -> None:
    graph = drawing(merging(pair, "regmean", calibration_a=["calibrate", 0], calibration_b=["calibrate", 0]))
    data = {"folder": "pictures", "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "trigger_word": "stripes"}
    graph["data"] = {"class_type": "TriLoRADataset", "inputs": {**data, "resolution": workflow.SIDE}}
    inputs = {"model": ["checkpoint", 0], "dataset": ["data", 0], "prior_prompts": "a cat\na house"}
    graph["calibrate"] = {"class_type": "TriLoRACalibrate", "inputs": inputs}
    merged = picture(server, graph)
    base = picture(server, workflow.sampling())
    assert np.abs(merged - base).mean() > 0.5
    assert np.abs(merged - picture(server, drawing(merging(pair, "sum")))).mean() > 0.5


def test_an_energy_cut_makes_a_smaller_file(server: Server, pair: list[str]) -> None:
    files = workflow.files_below(server.loras)
    server.client.run(drawing(merging(pair, "sum", keep_energy=0.5)))
    (saved,) = workflow.files_below(server.loras) - files
    with safe_open(server.loras / saved, "np") as file:
        downs = [file.get_slice(key).get_shape() for key in file.keys() if "lora_down" in key]  # noqa: SIM118
    assert all(1 <= shape[0] < 8 for shape in downs)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("regmean", {}, "regmean needs a calibration for each of the 2 adapters, and 0 were given"),
        ("concatenate", {"rank": 4}, "take sum to cut"),
    ],
)
def test_what_cannot_be_merged_is_said(
    server: Server, pair: list[str], method: str, options: dict[str, Any], words: str
) -> None:
    outcome = server.client.wait(server.client.queue(drawing(merging(pair, method, **options))))
    assert outcome.status == "error" and words in outcome.error
