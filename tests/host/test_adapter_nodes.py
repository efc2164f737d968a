"""Nodes that make adapters of adapters and of models, over the real host's HTTP interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import dense, relative_error
from trilora_core.cover import cover_size
from trilora_core.fileformat import Adapter, Layer, read_adapter, tensor_hash, write_adapter
from trilora_core.spectral import canonical
from trilora_core.weights import open_weights

from . import workflow
from .client import Graph
from .models import sd15_checkpoint
from .server import CHECKPOINT, Server

LORA = "made.safetensors"
RANK = 4


@pytest.fixture(scope="module")
def made(server: Server) -> Adapter:
    """An adapter of rank 4 on the attention of the test checkpoint, large enough for half precision, as a file."""
    generator = torch.Generator().manual_seed(0)
    with open_weights(sd15_checkpoint()) as weights:
        shapes = {stem: shape for stem, shape in weights.shapes.items() if "_attn" in stem and "_to_" in stem}
    layers = {}
    for stem, (out, into) in shapes.items():
        up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, into, generator=generator)
        layers[stem] = Layer(canonical(up, down * torch.tensor([[4.0], [2.0], [1.0], [0.5]]), scale=0.01))
    adapter = Adapter(layers, {"modelspec.trigger_phrase": "stripes", "trilora.architecture": "sd15"})
    write_adapter(server.loras / LORA, adapter, dtype=torch.float32)
    return read_adapter(server.loras / LORA)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def saved(server: Server, graph: Graph, source: list[Any], **more: Any) -> Path:
    """Run the graph with Save TriLoRA behind `source`; the file that it wrote."""
    files = workflow.files_below(server.loras)
    graph["write"] = node("SaveTriLoRA", trilora=source, filename_prefix="trilora/out", dtype="fp32", **more)
    server.client.run(graph)
    (name,) = [name for name in workflow.files_below(server.loras) - files if name.endswith(".safetensors")]
    return server.loras / name


def test_resize_keeps_the_strongest_directions(server: Server, made: Adapter) -> None:
    graph: Graph = {
        "load": node("LoadTriLoRA", lora_name=LORA),
        "small": node("ResizeTriLoRA", trilora=["load", 0], rank=2, energy=1.0),
        "report": node("PreviewAny", source=["small", 1]),
    }
    found = read_adapter(saved(server, graph, ["small", 0]))
    for stem, layer in made.layers.items():
        assert len(found.layers[stem].svd.s) == 2
        torch.testing.assert_close(found.layers[stem].svd.s, layer.svd.s[:2], rtol=1e-5, atol=0)
    assert found.metadata["modelspec.trigger_phrase"] == "stripes"


def extraction(**inputs: Any) -> Graph:
    """The checkpoint with the adapter on it, less the checkpoint."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "load": node("LoadTriLoRA", lora_name=LORA),
        "apply": node("ApplyTriLoRA", model=["checkpoint", 0], trilora=["load", 0], strength=1.0, strength_clip=1.0),
        "extract": node("ExtractTriLoRA", model_tuned=["apply", 0], model_base=["checkpoint", 0], **inputs),
    }


def test_extract_gives_back_what_was_patched(server: Server, made: Adapter) -> None:
    found = read_adapter(saved(server, extraction(rank=RANK), ["extract", 0]))
    assert set(found.layers) == set(made.layers)
    assert max(relative_error(dense(found.layers[stem]), dense(made.layers[stem])) for stem in made.layers) < 1e-4


def test_extract_counts_patches_whether_the_model_is_loaded_with_them_or_not(server: Server, made: Adapter) -> None:
    """Sampling merges the adapter into the very weights that the base is read from."""
    graph = extraction(rank=RANK, energy=0.9)
    drawn = workflow.sampling(model=["apply", 0])
    graph |= {name: content for name, content in drawn.items() if name != "checkpoint"}
    graph["extract"]["inputs"]["model_base"] = ["checkpoint", 0]
    found = read_adapter(saved(server, graph, ["extract", 0]))
    for stem, layer in made.layers.items():
        kept = len(found.layers[stem].svd.s)
        assert kept < RANK
        torch.testing.assert_close(found.layers[stem].svd.s, layer.svd.s[:kept], rtol=1e-3, atol=0)


def test_two_equal_models_are_named(server: Server, made: Adapter) -> None:
    graph = extraction(rank=RANK)
    graph["extract"]["inputs"]["model_tuned"] = ["checkpoint", 0]
    graph["write"] = node("SaveTriLoRA", trilora=["extract", 0], filename_prefix="trilora/none", dtype="fp32")
    outcome = server.client.wait(server.client.queue(graph))
    assert outcome.status == "error" and "are the same in all" in outcome.error


def test_the_spectrum_is_a_picture_and_a_text(server: Server, made: Adapter) -> None:
    graph: Graph = {
        "load": node("LoadTriLoRA", lora_name=LORA),
        "small": node("ResizeTriLoRA", trilora=["load", 0], rank=1, energy=1.0),
        "alone": node("TriLoRASpectrum", trilora=["load", 0]),
        "both": node("TriLoRASpectrum", trilora=["load", 0], trilora_b=["small", 0]),
        "again": node("PreviewImage", images=["both", 0]),
    }
    outcome = server.client.run(graph)
    for name in ("alone", "both", "again"):
        (image,) = server.client.images(outcome, name)
        assert image.shape[1] == 1800 and image.std() > 20
    assert f"{len(made.layers)} layers, rank {RANK}" in workflow.text(outcome.outputs, "alone")
    assert "of what they read and" in workflow.text(outcome.outputs, "both")


def test_a_cover_goes_into_the_file_and_where_the_host_looks(server: Server, made: Adapter) -> None:
    graph: Graph = {
        "load": node("LoadTriLoRA", lora_name=LORA),
        "picture": node("EmptyImage", width=640, height=320, batch_size=1, color=0x3366CC),
    }
    file = saved(server, graph, ["load", 0], cover=["picture", 0])
    metadata = read_adapter(file).metadata
    assert cover_size(metadata) == (512, 256)
    assert tensor_hash(file) == metadata["sshs_model_hash"] == metadata["modelspec.hash_sha256"].removeprefix("0x")
    assert file.with_name(f"{file.stem}.preview.jpg").is_file()
    name = file.relative_to(server.loras).as_posix()
    shown = server.client.picture(f"/experiment/models/preview/loras/0/{name}")
    assert shown.shape == (320, 640, 3) and abs(shown.astype(int) - (0x33, 0x66, 0xCC)).max() < 12


def test_nodes_tell_the_front_end_what_they_met(server: Server, made: Adapter) -> None:
    """In the `ui` output, which the host sends for nodes in the middle of a graph too, and keeps in its history."""
    graph: Graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "load": node("LoadTriLoRA", lora_name=LORA),
        "apply": node("ApplyTriLoRA", model=["checkpoint", 0], trilora=["load", 0], strength=0.25, keep_rank=2),
        "small": node("ResizeTriLoRA", trilora=["load", 0], rank=2, energy=1.0),
        "merge": node(
            "MergeTriLoRA",
            **{"trilora_a": ["load", 0], "trilora_b": ["small", 0], "weight_a": 1.0, "weight_b": 0.5},
            **{"method": "sum", "rank": 3},
        ),
        "model": node("PreviewAny", source=["apply", 0]),
        "merged": node("PreviewAny", source=["merge", 0]),
    }
    server.client.free()  # a node from the cache sends nothing
    with server.client.listen() as events:
        outcome = server.client.run(graph)
    sent = {data["node"]: data["output"] for data in events.of("executed")}
    for name in ("load", "apply", "merge"):
        assert sent[name]["trilora_adapter"] == outcome.outputs[name]["trilora_adapter"]
    load, apply, merge = (sent[name]["trilora_adapter"][0] for name in ("load", "apply", "merge"))
    assert (load["file"], load["words"], load["rank"]) == (LORA, ["stripes"], [RANK, RANK])
    assert load["hash"] == made.metadata["sshs_model_hash"]
    assert apply["problem"] == "" and apply["spectrum"] == load["spectrum"]
    assert apply["spectrum"][0] == 1 and len(apply["spectrum"]) == RANK and apply["kept"][-1] == RANK
    report = merge["merge"]
    assert [block["name"] for block in report["blocks"]] == ["IN01", "MID", "OUT00", "OUT01"]
    assert all(block["interference"] > 0.5 for block in report["blocks"])  # one adapter with a part of itself
    assert 0.9 < report["energy_kept"] < 1 and merge["rank"] == [3, 3]
    assert "sum: 32 layers are in more than one file" in workflow.text(outcome.outputs, "merge")
