"""Folders of every kind below the host's input, and graphs that read them, for the data nodes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .client import Graph
from .server import CHECKPOINT
from .workflow import SIDE

KOHYA = "set/train"
MASKS = "set/masks"
PLAIN = "plain"
SIZES = {
    "2_sks thing/a.png": (128, 128),
    "2_sks thing/b.png": (192, 96),
    "1_other/c.png": (96, 192),
    "d.png": (130, 130),
}
OPTIONS = {
    "buckets": True,
    "bucket_step": 0,
    "upscale": False,
    "crop": "center",
    "crops": 4,
    "flip": False,
    "caption_prefix": "",
    "caption_suffix": "",
    "shuffle_tags": False,
    "keep_tags": 0,
    "caption_variants": 8,
    "caption_dropout": 0.0,
    "caption_weights": False,
    "masks": "none",
    "mask_floor": 0.0,
    "max_train_samples": 0,
    "cache": "disk",
}
CHECKPOINT_NODE = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}}


def write_kohya(base: Path) -> None:
    """Repeat folders, a caption file, metadata.jsonl and a picture without caption; masks for two, alpha in one."""
    folder, masks = base / "input" / KOHYA, base / "input" / MASKS
    for number, (name, size) in enumerate(SIZES.items()):
        write_picture(folder / name, size, number, transparent=name == "d.png")
    (folder / "2_sks thing/a.txt").write_text("from the text file", encoding="utf-8")
    rows = [{"file_name": "1_other/c.png", "text": "from the metadata"}, {"file_name": "d.png", "text": "see-through"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    write_mask(masks / "2_sks thing/a.png", SIZES["2_sks thing/a.png"])
    write_mask(masks / "c.png", SIZES["1_other/c.png"])


def write_picture(path: Path, size: tuple[int, int], seed: int, *, transparent: bool = False) -> None:
    """Random blocks of colour; the right half of a transparent one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
    if transparent:
        picture.putalpha(half(size))
    picture.save(path)


def write_mask(path: Path, size: tuple[int, int]) -> None:
    """White on the left, black on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half(size).save(path)


def half(size: tuple[int, int]) -> Image.Image:
    """A gray picture, white on the left and black on the right."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def dataset(folder: str, options: dict[str, Any] | None = None, **inputs: Any) -> Graph:
    """Checkpoint, the folder as "data", with the options as "options" if there are any, and its report as "report"."""
    links = {"folder": folder, "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
    settings = {"resolution": SIDE, "trigger_word": "sks", **inputs}
    graph: Graph = {
        "checkpoint": copy.deepcopy(CHECKPOINT_NODE),
        "data": {"class_type": "TriLoRADataset", "inputs": links | settings},
        "report": {"class_type": "TriLoRADatasetReport", "inputs": {"dataset": ["data", 0]}},
    }
    if options is not None:
        graph["options"] = {"class_type": "TriLoRADatasetOptions", "inputs": OPTIONS | options}
        graph["data"]["inputs"]["options"] = ["options", 0]
    return graph


def trained(graph: Graph, name: str, *, prior: str = "", **train: Any) -> Graph:
    """The graph with Train TriLoRA of two steps as "train", on its node "data" and beside its node `prior`."""
    graph = copy.deepcopy(graph)
    settings = {"rank": 2, "steps": 2, "learning_rate": 1e-3, "batch_size": 2, "seed": 0, "resume": False}
    inputs = {"model": ["checkpoint", 0], "dataset": ["data", 0], "name": name} | settings | train
    if prior:
        inputs["prior"] = [prior, 0]
    graph["train"] = {"class_type": "TrainTriLoRA", "inputs": inputs}
    return graph


def prior(**inputs: Any) -> dict[str, Any]:
    """A TriLoRA Prior Pictures node on the node "checkpoint": two pictures of two steps."""
    links = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
    settings = {"prompts": "a thing\nanother thing", "count": 2, "resolution": SIDE, "seed": 5, "steps": 2}
    return {"class_type": "TriLoRAPriorPictures", "inputs": links | settings | inputs}
