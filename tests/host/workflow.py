"""A saved workflow as the graph that the front end would queue, and small graphs for the tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from .client import Graph
from .discovery import PACK
from .server import CHECKPOINT

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SIDE = 64  # of pictures, in pixels
SHIPPED_CHECKPOINT = "v1-5-pruned-emaonly.safetensors"  # what the shipped workflows name
_ONLY_TEXT = ("Note", "MarkdownNote")


def load_workflow(name: str, object_info: dict[str, Any]) -> Graph:
    """workflows/<name>.json in the API format; ValueError where its widgets do not fit the nodes' definitions."""
    saved = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    sources = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    graph: Graph = {}
    for node in saved["nodes"]:
        if node["type"] in _ONLY_TEXT:
            continue
        inputs = _widget_values(node, object_info[node["type"]])
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs | linked}
    return graph


def _widget_values(node: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """Names for the positional values: inputs in order, with the slot of "control after generate" behind a seed."""
    slots: list[str | None] = []
    for group in ("required", "optional"):
        for name in definition["input_order"].get(group, []):
            kind, *options = definition["input"][group][name]
            if isinstance(kind, list) or kind in _WIDGETS:
                slots += [name, None] if options and options[0].get("control_after_generate") else [name]
    values = node.get("widgets_values", [])
    if len(values) != len(slots):
        raise ValueError(f"{node['type']} has {len(slots)} widgets ({slots}), the workflow holds {values}")
    return {name: value for name, value in zip(slots, values, strict=True) if name is not None}


def defaults(definition: dict[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets as it comes."""
    specs = {**definition["input"]["required"], **definition["input"].get("optional", {})}
    return {
        name: (options[0] if options else {}).get("default", kind[0] if isinstance(kind, list) else None)
        for name, (kind, *options) in specs.items()
        if isinstance(kind, list) or kind in _WIDGETS
    }


def find(graph: Graph, class_type: str) -> str:
    """The id of the only node of a class; ValueError if there is none or more than one."""
    (node,) = [node for node, content in graph.items() if content["class_type"] == class_type]
    return node


def changed(graph: Graph, settings: dict[str, dict[str, Any]]) -> Graph:
    """A copy with inputs set on every node of a class: {"KSampler": {"steps": 2}}; KeyError for a name it lacks."""
    graph = copy.deepcopy(graph)
    for class_type, inputs in settings.items():
        for node in [content for content in graph.values() if content["class_type"] == class_type]:
            for name, value in inputs.items():
                if name not in node["inputs"]:
                    raise KeyError(f"{class_type} has no input {name} in this graph; it has {list(node['inputs'])}")
                node["inputs"][name] = value
    return graph


def small(graph: Graph, **train: Any) -> Graph:
    """A shipped workflow at a size that the tests can afford, on the checkpoint and pictures of the test server.

    What a link gives is set by hand too, so that the run stays short; files of other names stay as they were saved.
    """
    square = {"width": SIDE, "height": SIDE}
    sizes = {
        "EmptyLatentImage": square,
        "KSampler": {"steps": 2},
        "TriLoRADataset": {"folder": "pictures", "resolution": SIDE},
        "TriLoRAPriorPictures": {"count": 2, "resolution": SIDE, "steps": 2},
        "TrainTriLoRA": {"steps": 3, "rank": 4, "learning_rate": 1e-2, **train},
        "TriLoRAGrid": {"steps": 2, "cell": SIDE, **square},
        "ExtractTriLoRA": {"rank": 4},
    }
    graph = changed(graph, sizes)
    for node in graph.values():
        if node["inputs"].get("ckpt_name") == SHIPPED_CHECKPOINT:
            node["inputs"]["ckpt_name"] = CHECKPOINT
        if node["class_type"] == "TriLoRAGrid":
            node["inputs"]["prompts"] = node["inputs"]["prompts"].splitlines()[0]
    return graph


def sampling(**sampler: Any) -> Graph:
    """Checkpoint, two prompts, KSampler of two steps as "sampler", SaveImage as "save"; `sampler` overrides inputs."""
    settings = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {
        "model": ["checkpoint", 0],
        "positive": ["prompt", 0],
        "negative": ["nothing", 0],
        "latent_image": ["latents", 0],
    }
    return {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"text": "a striped thing", "clip": ["checkpoint", 1]}},
        "nothing": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["checkpoint", 1]}},
        "latents": {"class_type": "EmptyLatentImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": links | settings | sampler},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "test"}},
    }


def sampled_again(graph: Graph, count: int) -> Graph:
    """The same picture by way of `count` nodes that change nothing, so that the host cannot answer from its cache."""
    graph = copy.deepcopy(graph)
    before = graph["sampler"]["inputs"]["latent_image"]
    for index in range(count):
        graph[f"again_{index}"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": before, "amount": 1}}
        before = [f"again_{index}", 0]
    graph["sampler"]["inputs"]["latent_image"] = before
    return graph


def with_adapter(graph: Graph, lora_name: str, strength: float) -> Graph:
    """The sampling graph with Load TriLoRA and Apply TriLoRA between checkpoint and sampler."""
    graph = copy.deepcopy(graph)
    model = graph["sampler"]["inputs"]["model"]
    graph["load"] = {"class_type": "LoadTriLoRA", "inputs": {"lora_name": lora_name}}
    inputs = {"model": model, "trilora": ["load", 0], "strength": strength, "strength_clip": strength}
    graph["apply"] = {"class_type": "ApplyTriLoRA", "inputs": inputs}
    graph["sampler"]["inputs"]["model"] = ["apply", 0]
    return graph


def training(name: str, **train: Any) -> Graph:
    """Checkpoint, the folder of pictures, Train TriLoRA as node "train" (3 steps, rank 4)."""
    settings = {"rank": 4, "steps": 3, "learning_rate": 1e-2, "batch_size": 2, "seed": 0, "resume": False}
    data = {"folder": "pictures", "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "trigger_word": "stripes"}
    inputs = {"model": ["checkpoint", 0], "dataset": ["data", 0], "name": name}
    return {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "data": {"class_type": "TriLoRADataset", "inputs": {**data, "resolution": SIDE, "skip_unreadable": False}},
        "train": {"class_type": "TrainTriLoRA", "inputs": inputs | settings | train},
    }


def text(outputs: dict[str, Any], node: str) -> str:
    """What a node shows as text when it has run."""
    return "\n".join(outputs[node]["text"])


def files_below(folder: Path) -> set[str]:
    """Names of all files below `folder`, with slashes."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
