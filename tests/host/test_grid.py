"""TriLoRA Grid in every ComfyUI found: each cell is what the host's own nodes draw, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapters import make_layer
from trilora_core.fileformat import Adapter, write_adapter
from trilora_core.grid_sheet import labelled_sheet
from trilora_core.weights import open_weights

from . import workflow
from .client import Graph, Refused
from .models import sd15_checkpoint
from .server import Server

LORA = "trilora/grid.safetensors"
PROMPTS = ("a striped thing", "something else")
SIDE = workflow.SIDE
Drawing = Callable[[str, str, float], Image.Image]


@pytest.fixture(scope="module")
def before(server: Server) -> np.ndarray:
    """What the base model draws before a grid has run."""
    return drawn(server, workflow.sampling())


@pytest.fixture(scope="module")
def adapter(server: Server) -> Adapter:
    """An adapter on the denoiser's attention and on the text encoder, as a file."""
    with open_weights(sd15_checkpoint()) as weights:
        shapes = {stem: shape for stem, shape in weights.shapes.items() if "_attn" in stem and "_to_" in stem}
    shapes |= {f"lora_te_text_model_encoder_layers_{index}_self_attn_v_proj": (768, 768) for index in range(4)}
    layers = {stem: make_layer(*shape, rank=2, seed=index) for index, (stem, shape) in enumerate(shapes.items())}
    for layer in layers.values():
        layer.svd.s.mul_(0.003)
    found = Adapter(layers, {"ss_output_name": "grid", "trilora.architecture": "sd15"})
    (server.loras / "trilora").mkdir(exist_ok=True)
    write_adapter(server.loras / LORA, found, dtype=torch.float32)
    return found


def grid(trilora: list[Any], **inputs: Any) -> Graph:
    """Checkpoint, Load TriLoRA as "load", the grid as "grid"; `inputs` override or add."""
    wired = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "trilora": trilora}
    sampler = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}
    sizes = {"width": SIDE, "height": SIDE, "cell": SIDE}
    texts = {"prompts": "\n".join(PROMPTS), "strengths": "0, 1"}
    graph = {name: workflow.sampling()[name] for name in ("checkpoint",)}
    graph["load"] = {"class_type": "LoadTriLoRA", "inputs": {"lora_name": LORA}}
    graph["grid"] = {"class_type": "TriLoRAGrid", "inputs": wired | texts | sampler | sizes | inputs}
    return graph


def drawn(server: Server, graph: Graph, node: str = "save") -> np.ndarray:
    (image,) = server.client.images(server.client.run(graph), node)
    return image


@pytest.fixture(scope="module")
def by_hand(server: Server, adapter: Adapter) -> Drawing:
    """One picture by the host's nodes and Apply TriLoRA, with clip, of a prompt, a file and a strength."""

    @cache
    def draw(prompt: str, lora: str, strength: float) -> Image.Image:
        graph = workflow.with_adapter(workflow.sampling(), lora, strength)
        graph["apply"]["inputs"]["clip"] = ["checkpoint", 1]
        for name in ("prompt", "nothing"):
            graph[name]["inputs"]["clip"] = ["apply", 1]
        graph["prompt"]["inputs"]["text"] = prompt
        return Image.fromarray(drawn(server, graph))

    return draw


def sheet(rows: list[list[Image.Image]], labels: tuple[str, ...], columns: tuple[str, ...], note: str) -> np.ndarray:
    return np.asarray(labelled_sheet(rows, row_labels=labels, column_labels=columns, note=note, cell=SIDE))


def test_every_cell_is_what_the_hosts_nodes_draw(server: Server, before: np.ndarray, by_hand: Drawing) -> None:
    """Prompts by strength, an adapter of the text encoder too: the picture equals a sheet of the host's own."""
    with server.client.listen() as events:
        found = drawn(server, grid(["load", 0]), "grid")
    assert next(text for node, text in events.of("text") if node == "grid") == "picture 0 of 4"
    assert any(data["node"] == "grid" and data["max"] == 4 for data in events.of("progress"))
    rows = [[by_hand(prompt, LORA, strength) for strength in (0.0, 1.0)] for prompt in PROMPTS]
    assert np.array_equal(np.asarray(rows[0][0]), before)
    for row in rows:
        assert np.abs(np.asarray(row[0], int) - np.asarray(row[1], int)).mean() > 1, "the adapter changes nothing"
    note = "grid · seed 1, 2 steps, cfg 5, euler normal"
    expected = sheet(rows, PROMPTS, ("without adapter", "strength 1"), note)
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1
    outcome = server.client.run(workflow.sampled_again(workflow.sampling(), 3))
    assert "checkpoint" in outcome.cached, "the model was loaded anew, which shows nothing"
    assert np.array_equal(server.client.images(outcome, "save")[0], before)


def test_training_steps_are_found_by_the_runs_name(server: Server, by_hand: Drawing) -> None:
    """Train and grid in one graph: the adapters kept on the way, the last one, and the model alone, side by side."""
    graph = workflow.training("by_step", steps=3, options=["monitor", 0])
    info = server.client.object_info()
    for name, kind, own in (
        ("optimizer", "TriLoRAOptimizerOptions", {"save_every": 1}),
        ("monitor", "TriLoRAMonitorOptions", {"keep_adapters": 5, "options": ["optimizer", 0]}),
    ):
        graph[name] = {"class_type": kind, "inputs": workflow.defaults(info[kind]) | own}
    more = {"training_steps": True, "columns": "adapters", "prompts": PROMPTS[0], "strengths": "0 2"}
    graph |= {"grid": grid(["train", 0], **more)["grid"]}
    found = drawn(server, graph, "grid")
    kept, away = server.loras / "trilora" / "by_step_step_00002.safetensors", server.base / "away"
    kept.rename(away)
    outcome = server.client.run(graph)
    assert "train" in outcome.cached and "grid" not in outcome.cached, "a file that is gone must be noticed"
    assert server.client.images(outcome, "grid")[0].shape[1] == found.shape[1] - SIDE - 10
    away.rename(kept)
    files = [f"trilora/by_step{end}.safetensors" for end in ("_step_00001", "_step_00002", "")]
    rows = [[by_hand(PROMPTS[0], LORA, 0.0), *(by_hand(PROMPTS[0], file, 2.0) for file in files)]]
    columns = ("without adapter", "step 1", "step 2", "step 3")
    expected = sheet(rows, PROMPTS[:1], columns, "by_step · strength 2 · seed 1, 2 steps, cfg 5, euler normal")
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


def test_several_adapters_as_rows(server: Server, by_hand: Drawing) -> None:
    graph = grid(["load", 0], trilora_b=["load", 0], columns="prompts", strengths="1")
    found = drawn(server, graph, "grid")
    rows = [[by_hand(prompt, LORA, 1.0) for prompt in PROMPTS]] * 2
    note = "strength 1 · seed 1, 2 steps, cfg 5, euler normal"
    assert np.abs(found.astype(int) - sheet(rows, ("grid A", "grid B"), PROMPTS, note)).max() <= 1


def test_bad_texts_are_named_before_anything_runs(server: Server, adapter: Adapter) -> None:
    with pytest.raises(Refused, match="strengths, character 4: 'half' is no number"):
        server.client.queue(grid(["load", 0], strengths="0, half"))
    with pytest.raises(Refused, match="one prompt a line"):
        server.client.queue(grid(["load", 0], prompts=" \n"))
    for inputs, said in (
        ({"strengths": "0 " + "1 " * 60}, "122 pictures; at most 100"),
        ({"training_steps": True}, "grid_step_00100.safetensors"),
    ):
        outcome = server.client.wait(server.client.queue(grid(["load", 0], **inputs)))
        assert outcome.status == "error" and said in outcome.error


def test_cancel_leaves_the_model_as_it_was(server: Server, before: np.ndarray, adapter: Adapter) -> None:
    with server.client.listen() as events:
        prompt = server.client.queue(grid(["load", 0], steps=1000, strengths="1, 0.5"))
        events.wait_for("text")
        server.client.interrupt()
        outcome = server.client.wait(prompt, timeout=60)
    assert outcome.status == "interrupted"
    assert np.array_equal(drawn(server, workflow.sampled_again(workflow.sampling(), 4)), before)
