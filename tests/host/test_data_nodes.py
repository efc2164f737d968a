"""The data side in the real ComfyUI: folders of every kind, masks, caches, latents, prior pictures, a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from . import data_graphs as graphs
from .client import Graph, Outcome, Refused
from .server import Server
from .workflow import SIDE, text


def run(server: Server, graph: Graph) -> tuple[Outcome, dict[str, str]]:
    """The outcome of a graph, and the last text that each node showed while it ran."""
    with server.client.listen() as events:
        outcome = server.client.run(graph)
    return outcome, {node: said for node, said in events.of("text") if not said.startswith("prepared ")}


def error(server: Server, graph: Graph) -> str:
    outcome = server.client.wait(server.client.queue(graph))
    assert outcome.status == "error"
    return outcome.error


def metadata(server: Server, name: str) -> dict[str, str]:
    with safe_open(server.loras / f"trilora/{name}.safetensors", "np") as file:
        return file.metadata()


def plain(server: Server, name: str, count: int = 3) -> Path:
    """A new folder of captioned pictures that nothing else has, below input/."""
    folder = server.base / "input" / name
    for index in range(count):
        graphs.write_picture(folder / f"{index}.png", (96, 96), sum(map(ord, name)) * 10 + index)
        (folder / f"{index}.txt").write_text(f"{name} number {index}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def kohya(server: Server) -> tuple[Outcome, dict[str, str]]:
    """Repeat folders, metadata.jsonl, buckets and a folder of masks, reported and trained on."""
    graphs.write_kohya(server.base)
    return run(server, graphs.trained(graphs.dataset(graphs.KOHYA, {"masks": graphs.MASKS}), "kohya"))


def test_kohya_folders_with_masks_train(server: Server, kohya: tuple[Outcome, dict[str, str]]) -> None:
    _, said = kohya
    first = said["data"].splitlines()[0]
    assert first == "4 pictures, 3 buckets, 3 captions, 2 masks, 3 subsets; 8 encoded anew"
    assert "2 of 4 pictures have no mask: 2_sks thing/b.png, d.png" in said["data"]
    found = metadata(server, "kohya")
    folders = json.loads(found["ss_dataset_dirs"])
    assert folders["sks thing"] == {"n_repeats": 2, "img_count": 2} and folders["other"]["n_repeats"] == 1
    buckets = json.loads(found["ss_bucket_info"])["buckets"].values()
    assert sorted(tuple(bucket["resolution"]) for bucket in buckets) == [(40, 88), (64, 64), (88, 40)]
    assert "4 pictures, 3 buckets, 3 captions, 2 masks" in server.log()


def test_report(server: Server, kohya: tuple[Outcome, dict[str, str]]) -> None:
    outcome, said = kohya
    told = text(outcome.outputs, "report")
    assert said["report"] == told, "newer front ends show a text only if it is sent while the node runs"
    assert "4 pictures" in told and "64 x 64" in told and "2_sks thing/b.png" in told
    (sheet,) = server.client.images(outcome, "report")
    assert sheet.shape[1] >= 4 * 160 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50


def test_nothing_is_encoded_twice(server: Server, kohya: tuple[Outcome, dict[str, str]]) -> None:
    """Neither after the host has forgotten its outputs, nor for other masks on the same pictures."""
    server.client.free()
    graph = graphs.dataset(graphs.KOHYA, {"masks": graphs.MASKS})
    outcome, said = run(server, graph)
    assert "data" not in outcome.cached and "; 0 encoded anew" in said["data"]
    _, said = run(server, graphs.trained(graphs.dataset(graphs.KOHYA, {"masks": "alpha"}), "alpha"))
    assert "3 captions, 1 mask, 3 subsets; 0 encoded anew" in said["data"]
    assert metadata(server, "alpha")["trilora.fingerprint"] != metadata(server, "kohya")["trilora.fingerprint"]


def test_the_cache_lies_in_the_user_folder(server: Server, kohya: tuple[Outcome, dict[str, str]]) -> None:
    database = server.base / "user" / "trilora" / "data.sqlite"
    assert database.stat().st_size > 50_000
    plain(server, "in_memory")
    graph = graphs.dataset("in_memory", {"cache": "memory"})
    for _ in range(2):
        _, said = run(server, graph)
        assert "; 6 encoded anew" in said["data"]
        server.client.free()


def test_edits_are_noticed_and_nothing_else_is_encoded(server: Server) -> None:
    folder = plain(server, "edited/1_cats")
    masks = server.base / "input" / "edited_masks"
    graphs.write_mask(masks / "0.png", (96, 96))
    graph = graphs.trained(graphs.dataset("edited", {"masks": "edited_masks"}), "edited")
    outcome, said = run(server, graph)
    assert "; 6 encoded anew" in said["data"]
    outcome, _ = run(server, graph)
    assert {"options", "data", "train"} <= outcome.cached, "nothing was changed"

    def changed() -> str:
        outcome, said = run(server, graph)
        assert outcome.cached == {"checkpoint"} or outcome.cached == {"checkpoint", "options"}
        assert "Already trained" not in text(outcome.outputs, "train")
        return said["data"].splitlines()[0].partition("; ")[2]

    graphs.write_picture(folder / "1.png", (96, 96), 77)
    assert changed() == "1 encoded anew"
    (folder / "2.txt").write_text("another caption", encoding="utf-8")
    assert changed() == "1 encoded anew"
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "edited in metadata"}', encoding="utf-8")
    assert changed() == "1 encoded anew"
    graphs.half((96, 96)).rotate(180).save(masks / "0.png")
    assert changed() == "0 encoded anew"
    (folder / "1.png").unlink()
    assert changed() == "0 encoded anew"


def test_names_that_lead_out_are_refused(server: Server) -> None:
    plain(server, "inside")
    outside = server.base / "outside"
    graphs.write_picture(outside / "secret.png", (96, 96), 1)
    link = server.base / "input" / "way_out"
    link.symlink_to(outside)
    try:
        for bad in ("../outside", "way_out", str(outside)):
            for graph in (graphs.dataset(bad), graphs.dataset("inside", {"masks": bad})):
                with pytest.raises(Refused, match=r"there is no folder .*\(links that lead elsewhere do not count\)"):
                    server.client.queue(graph)
    finally:
        link.unlink()


def test_a_picture_that_is_a_link_out_is_not_read(server: Server) -> None:
    folder = plain(server, "linked")
    graphs.write_picture(server.base / "outside" / "other.png", (96, 96), 2)
    (folder / "9.png").symlink_to(server.base / "outside" / "other.png")
    (folder / "10.png").symlink_to(server.base / "nowhere.png")
    _, said = run(server, graphs.dataset("linked"))
    assert said["data"].startswith("3 pictures")
    assert "links lead out of the folder: 9.png, 10.png" in said["data"]


def images_graph(server: Server, picture: str, **options: Any) -> Graph:
    """A picture of the host's Load Image with its mask, inverted, as a data set."""
    graph = graphs.dataset("", options or None, trigger_word=picture)
    graph["load"] = {"class_type": "LoadImage", "inputs": {"image": picture}}
    graph["invert"] = {"class_type": "InvertMask", "inputs": {"mask": ["load", 1]}}
    inputs = graph["data"]["inputs"] | {"images": ["load", 0], "captions": "", "masks": ["invert", 0]}
    graph["data"] = {"class_type": "TriLoRADatasetFromImages", "inputs": inputs}
    del inputs["folder"]
    return graph


def test_images_with_masks(server: Server) -> None:
    for name, transparent in (("clear.png", True), ("opaque.png", False)):
        graphs.write_picture(server.base / "input" / name, (128, 80), 31, transparent=transparent)
    _, said = run(server, graphs.trained(images_graph(server, "clear.png"), "images", batch_size=1))
    assert said["data"] == "1 picture, 1 bucket, 0 captions, 1 mask; 2 encoded anew"
    _, said = run(server, images_graph(server, "opaque.png"))
    assert said["data"].startswith("1 picture, 1 bucket, 0 captions; ")
    complaint = error(server, images_graph(server, "clear.png", masks="alpha"))
    assert "the options set masks to alpha, which files have, but these pictures come from the graph" in complaint


def latents_graph(server: Server) -> Graph:
    """Two pictures of one size, encoded by the host's own nodes as one batch with one mask."""
    graph: Graph = {"checkpoint": graphs.CHECKPOINT_NODE}
    for index in range(2):
        graphs.write_picture(server.base / "input" / f"latent_{index}.png", (SIDE, SIDE), 40 + index)
        graph[f"load_{index}"] = {"class_type": "LoadImage", "inputs": {"image": f"latent_{index}.png"}}
    graphs.write_picture(server.base / "input" / "latent_mask.png", (SIDE, SIDE), 50, transparent=True)
    graph |= {
        "load_mask": {"class_type": "LoadImage", "inputs": {"image": "latent_mask.png"}},
        "batch": {"class_type": "ImageBatch", "inputs": {"image1": ["load_0", 0], "image2": ["load_1", 0]}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["batch", 0], "vae": ["checkpoint", 2]}},
        "masked": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["encode", 0], "mask": ["load_mask", 1]}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "a thing", "clip": ["checkpoint", 1]}},
        "data": {
            "class_type": "TriLoRADatasetFromLatents",
            "inputs": {"latents": ["masked", 0], "conditioning": ["text", 0], "trigger_word": "sks"},
        },
        "report": {"class_type": "TriLoRADatasetReport", "inputs": {"dataset": ["data", 0]}},
    }
    return graph


def test_latents_and_conditioning_of_the_graph(server: Server) -> None:
    graph = graphs.trained(latents_graph(server), "latents")
    outcome, said = run(server, graph)
    assert said["data"] == "2 pictures, 1 bucket, 0 captions, 2 masks"
    assert "2 pictures" in text(outcome.outputs, "report") and server.client.images(outcome, "report")
    found = metadata(server, "latents")
    assert found["modelspec.trigger_phrase"] == "sks" and found["ss_num_train_images"] == "2"
    graph["text_2"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "more", "clip": ["checkpoint", 1]}}
    links = {f"conditioning_{n}": [node, 0] for n, node in ((1, "text"), (2, "text_2"))}
    graph["join"] = {"class_type": "ConditioningCombine", "inputs": links}
    graph["join_3"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["join", 0], "conditioning_2": ["text", 0]},
    }
    graph["data"]["inputs"]["conditioning"] = ["join_3", 0]
    assert "conditioning 1 has 3 entries for 2 pictures; wanted one caption for each" in error(server, graph)
    graph["range"] = {
        "class_type": "ConditioningSetTimestepRange",
        "inputs": {"conditioning": ["text", 0], "start": 0.0, "end": 0.5},
    }
    graph["data"]["inputs"]["conditioning"] = ["range", 0]
    assert "picture 1 sets start_percent, end_percent, which training cannot follow" in error(server, graph)


def test_the_hosts_own_training_dataset(server: Server) -> None:
    if "MakeTrainingDataset" not in server.client.object_info():
        pytest.skip("this host has no Make Training Dataset")
    folder = plain(server, "for_the_host")
    graphs.write_picture(folder / "0.png", (96, 64), 60)  # another shape
    graph: Graph = {
        "checkpoint": graphs.CHECKPOINT_NODE,
        "folder": {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "for_the_host"}},
        "make": {
            "class_type": "MakeTrainingDataset",
            "inputs": {
                "images": ["folder", 0],
                "texts": ["folder", 1],
                "vae": ["checkpoint", 2],
                "clip": ["checkpoint", 1],
            },
        },
        "keep": {
            "class_type": "SaveTrainingDataset",
            "inputs": {
                "latents": ["make", 0],
                "conditioning": ["make", 1],
                "folder_name": "kept_dataset",
                "shard_size": 1000,
            },
        },
        "data": {
            "class_type": "TriLoRADatasetFromLatents",
            "inputs": {"latents": ["make", 0], "conditioning": ["make", 1]},
        },
        "report": {"class_type": "TriLoRADatasetReport", "inputs": {"dataset": ["data", 0]}},
    }
    _, said = run(server, graphs.trained(graph, "made"))
    assert said["data"] == "3 pictures, 2 buckets, 0 captions"
    made = metadata(server, "made")["trilora.fingerprint"]
    grouped = graphs.trained(graph, "grouped")
    grouped["bucket"] = {
        "class_type": "ResolutionBucket",
        "inputs": {"latents": ["make", 0], "conditioning": ["make", 1]},
    }
    grouped["data"]["inputs"] |= {"latents": ["bucket", 0], "conditioning": ["bucket", 1]}
    _, said = run(server, grouped)
    assert said["data"] == "3 pictures, 2 buckets, 0 captions"
    del graph["folder"], graph["make"], graph["keep"]
    graph["load"] = {"class_type": "LoadTrainingDataset", "inputs": {"folder_name": "kept_dataset"}}
    graph["data"]["inputs"] |= {"latents": ["load", 0], "conditioning": ["load", 1]}
    _, said = run(server, graphs.trained(graph, "loaded"))
    assert said["data"] == "3 pictures, 2 buckets, 0 captions"
    assert metadata(server, "loaded")["trilora.fingerprint"] == made, "the same data, saved and loaded"


def test_prior_pictures_are_drawn_once_and_trained_with(server: Server) -> None:
    plain(server, "subject")
    graph = graphs.dataset("subject") | {"prior": graphs.prior()}
    graph = graphs.trained(graph, "with_prior", prior="prior")
    _, said = run(server, graph)
    assert said["prior"].startswith("2 pictures, 1 bucket, 2 captions; 0 were there, 2 drawn; kept in ")
    (folder,) = (server.base / "input" / "trilora_prior").iterdir()
    drawn = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert set(drawn) == {f"prior_0000{n}.{ending}" for n in range(2) for ending in ("png", "txt")}
    assert metadata(server, "with_prior")["ss_num_reg_images"] == "2"

    server.client.free()
    outcome, said = run(server, graph)
    assert "2 were there, 0 drawn" in said["prior"] and "Already trained" in text(outcome.outputs, "train")
    assert said["train"] == text(outcome.outputs, "train")
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == drawn

    outcome, _ = run(server, graphs.trained(graphs.dataset("subject"), "with_prior"))
    assert "Already trained" not in text(outcome.outputs, "train"), "a run without prior pictures is another one"
    assert metadata(server, "with_prior_2")["ss_num_reg_images"] == "0"

    graph["prior"] = graphs.prior(prompts=" \n")
    assert "prompts is empty; say what the class pictures should show" in error(server, graph)
    shutil.rmtree(folder.parent)  # other tests count the folders


def test_class_pictures_of_a_folder(server: Server) -> None:
    plain(server, "my_dog")
    plain(server, "dogs", 4)
    graph = graphs.dataset("my_dog")
    graph["class"] = graphs.dataset("dogs")["data"]
    run(server, graphs.trained(graph, "class", prior="class"))
    assert metadata(server, "class")["ss_num_reg_images"] == "4"
    assert "3 captions, prior: 4 pictures, 1 bucket, 4 captions" in server.log()


def test_epochs_of_the_options_make_the_steps(server: Server) -> None:
    plain(server, "epochs")
    graph = graphs.trained(graphs.dataset("epochs"), "epochs", steps=500)
    required = server.client.object_info("TriLoRAOptimizerOptions")["TriLoRAOptimizerOptions"]["input"]["required"]
    defaults = {name: options["default"] for name, (_, options) in required.items()}
    graph["more"] = {"class_type": "TriLoRAOptimizerOptions", "inputs": {**defaults, "epochs": 3}}
    graph["train"]["inputs"]["options"] = ["more", 0]
    run(server, graph)
    assert metadata(server, "epochs")["ss_max_train_steps"] == "5"  # 9 looks in batches of 2
