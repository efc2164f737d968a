"""The node classes themselves: schema, files, folders, merge, options, data, and what they say."""

from __future__ import annotations

import asyncio
import os
import random
from importlib import import_module
from pathlib import Path

import folder_paths
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from . import bridge_apply_models as models
from .bridge_apply_merged import SHAPES, K, Q


def figures(pack, arguments):
    extension = asyncio.run(pack.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    base = Path(arguments["base_directory"])
    with torch.inference_mode():
        checks = (schema, save, load, merge, folders, options, datasets)
        return {check.__name__: check(pack, nodes, base) for check in checks}


def run(node, **inputs):
    """Execute as the host does, outside a graph."""
    return node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)


# What no system, or not every one, takes for a name, and what would be another place on some.
HOSTILE = (
    "..\\..\\style",
    "C:\\style",
    "C:style",
    "con/style",
    "sub/NUL.x",
    "a\nb",
    "\x1b[2Jstyle",
    "a. ",
    "s" * 300,
    "\ud800",
)


def complaint(action):
    try:
        action()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def schema(pack, nodes, base):
    """What the host would tell the browser."""
    told = {}
    for name, node in nodes.items():
        info = node.GET_NODE_INFO_V1()
        fields = {key: spec for group in ("required", "optional") for key, spec in info["input"].get(group, {}).items()}
        told[name] = {
            "outputs": info["output_name"],
            "types": [str(kind) for kind in info["output"]],
            "shown": info["display_name"],
            "category": info["category"],
            "without_tooltip": [key for key, spec in fields.items() if not spec[1].get("tooltip")],
        }
    return told


def save(pack, nodes, base):
    made = models.adapter(pack, SHAPES)
    node, loras = nodes["SaveTriLoRA"], base / "models/loras"
    for dtype in ("fp16", "bf16", "fp32"):
        output = run(node, trilora=made, filename_prefix="sub/style", dtype=dtype)
    dtypes = []
    for file in sorted((loras / "sub").iterdir()):
        with safe_open(file, "pt") as opened:
            dtypes.append([file.name, str(opened.get_tensor(Q + ".lora_up.weight").dtype)])
    refused = {}
    for prefix in ("../style", "sub/../../style", str(base / "style"), "", "sub/", "nul\0l", *HOSTILE):
        refused[prefix] = complaint(lambda prefix=prefix: run(node, trilora=made, filename_prefix=prefix, dtype="fp16"))
    (loras / "outside").symlink_to(base)
    refused["link"] = complaint(lambda: run(node, trilora=made, filename_prefix="outside/style", dtype="fp16"))
    (loras / "file").write_text("in the way")
    refused["file"] = complaint(lambda: run(node, trilora=made, filename_prefix="file/style", dtype="fp16"))
    ui = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
    return {
        "files": dtypes,
        "text": list(ui["text"]),
        "refused": refused,
        "outside": [p.name for p in base.glob("style*")],
    }


def load(pack, nodes, base):
    node, loras = nodes["LoadTriLoRA"], base / "models/loras"
    made = models.adapter(pack, SHAPES)
    import_module(".trilora_core.fileformat", pack.__name__).write_adapter(loras / "plain.safetensors", made)
    read = run(node, lora_name="plain.safetensors").args[0]
    first = node.fingerprint_inputs(lora_name="plain.safetensors")
    same = node.fingerprint_inputs(lora_name="plain.safetensors")
    os.utime(loras / "plain.safetensors", (1, 1))
    (loras / "cut.safetensors").write_bytes((loras / "plain.safetensors").read_bytes()[:-100])
    torch.save({"a": torch.zeros(1)}, loras / "old.pt")
    save_file({"layer.hada_w1_a": torch.zeros(2, 2)}, loras / "loha.safetensors")
    cases = ("cut.safetensors", "old.pt", "loha.safetensors", "missing.safetensors", "../../input/x.safetensors")
    return {
        "error": max(models.error(models.change(read, stem), models.change(made, stem)) for stem in SHAPES),
        "listed": "plain.safetensors" in node.GET_SCHEMA().inputs[0].options,
        "valid": [node.validate_inputs(lora_name="plain.safetensors"), node.validate_inputs(lora_name=None)],
        "invalid": node.validate_inputs(lora_name="../../x.safetensors"),
        "fingerprint": [first == same, first != node.fingerprint_inputs(lora_name="plain.safetensors")],
        "never_raises": [type(node.fingerprint_inputs(lora_name=name)).__name__ for name in (None, "missing", "a\0b")],
        "said": {name: complaint(lambda name=name: run(node, lora_name=name)) for name in cases},
    }


def merge(pack, nodes, base):
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {Q: (32, 32), K: (32, 24)}, rank=5, seed=2)
    node = nodes["MergeTriLoRA"]
    merged = run(node, trilora_a=a, trilora_b=b, weight_a=0.7, weight_b=-0.5, method="sum", rank=0).args[0]
    cut = run(node, trilora_a=a, trilora_b=b, weight_a=0.7, weight_b=-0.5, method="sum", rank=2).args[0]
    wanted = {stem: 0.7 * models.change(a, stem) for stem in SHAPES}
    wanted |= {stem: wanted[stem] - 0.5 * models.change(b, stem) for stem in (Q, K)}
    return {
        "error": max(models.error(models.change(merged, stem), wanted[stem]) for stem in SHAPES),
        "ranks": sorted({len(layer.svd.s) for layer in cut.layers.values()}),
    }


def folders(pack, nodes, base):
    """The folder widget of the data set node."""
    paths = import_module(".nodes.host.paths", pack.__name__)
    node = nodes["TriLoRADataset"]
    empty = list(node.GET_SCHEMA().inputs[0].options)
    told = node.validate_inputs(folder=empty[0])
    other = base / "elsewhere"
    for folder in (base / "input/cats/black", base / "input/.hidden", other / "dogs", other / "cats"):
        folder.mkdir(parents=True)
    (base / "input/link").symlink_to(other)
    (base / "input/cats/loop").symlink_to(base / "input/cats/loop")
    folder_paths.add_model_folder_path("trilora_datasets", str(other))
    hostile = (
        "link",
        "cats/loop",
        "link/dogs",
        "..",
        "../elsewhere/dogs",
        ".",
        "",
        str(other),
        "../elsewhere/dogs [datasets]",
        "a\0b",
        "\ud800",
        "a" * 5000,
        5,
    )
    before = node.fingerprint_inputs(folder="cats", clip=None)
    linked = node.fingerprint_inputs(folder=None)
    (base / "input/cats/1.txt").write_text("a cat")
    after = node.fingerprint_inputs(folder="cats")
    return {
        "empty": empty,
        "told": told,
        "names": node.GET_SCHEMA().inputs[0].options,
        "resolved": [
            str(paths.dataset_folder(name).relative_to(base.resolve())) for name in ("cats/black", "dogs [datasets]")
        ],
        "refused": {name: node.validate_inputs(folder=name) for name in hostile},
        "fingerprint": [before != after, linked != node.fingerprint_inputs(folder=None)],
        "stable": after == node.fingerprint_inputs(folder="cats"),
        "never_raises": type(node.fingerprint_inputs(folder="a\0b")).__name__,
        "unique": [paths.unique_file(base, "job").name, complaint(lambda: paths.unique_file(base, "../job"))],
        "no_names": [complaint(lambda name=name: paths.unique_file(base, name)) for name in ("", ".", "..", *HOSTILE)],
        "numbered": paths.unique_file(base / "models/loras", "plain").name,
        "output": str(paths.output_folder().relative_to(base)),
    }


def options(pack, nodes, base):
    config = import_module(".trilora_core.config", pack.__name__)
    node = nodes["TriLoRAOptimizerOptions"]
    inputs = {spec.id: getattr(spec, "default", None) for spec in node.GET_SCHEMA().inputs if spec.id != "options"}
    plain = run(node, **inputs).args[0]
    changed = {**inputs, "init": "svd", "alpha": 8.0, "schedule": "cosine", "precision": "bf16", "rank_energy": 0.9}
    given = config.TrainConfig(steps=77)
    after = run(node, **changed, options=given).args[0]
    return {
        "defaults": plain == config.TrainConfig(),
        "changed": [
            after.adapter.init,
            after.adapter.alpha,
            after.adapter.rank,
            after.optimizer.schedule,
            after.precision,
        ],
        "kept": after.steps,
        "svd_tip": node.GET_SCHEMA().inputs[0].tooltip,
        "bad": complaint(lambda: run(node, **{**inputs, "weight_decay": float("nan")})),
    }


def datasets(pack, nodes, base):
    """Messages before anything is encoded; encoding itself is tested with the encoder."""
    folder = base / "input/pictures"
    folder.mkdir()
    node = nodes["TriLoRADataset"]
    common = {"clip": models.clip(), "resolution": 64, "trigger_word": "sks"}
    vae = _tiny_vae()
    said = {"empty": complaint(lambda: run(node, folder="pictures", vae=vae, **common))}
    for number in range(3):
        Image.new("RGB", (80, 64), (number * 80, 10, 200)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a blue wall")
    value = run(node, folder="pictures", vae=vae, **common).args[0]
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    said["broken"] = complaint(lambda: run(node, folder="pictures", vae=vae, **common))
    skipping = run(node, folder="pictures", vae=vae, skip_unreadable=True, **common).args[0]
    said["gone"] = complaint(lambda: run(node, folder="nowhere", vae=vae, **common))
    images, one = torch.rand(2, 64, 80, 3), nodes["TriLoRADatasetFromImages"]
    pictures = {"images": images, "clip": common["clip"], "vae": vae, "trigger_word": "sks", "resolution": 64}
    said["captions"] = complaint(lambda: run(one, captions="a\nb\nc", **pictures))
    captioned = run(one, captions="first\n\n", **pictures).args[0]
    shared = run(one, captions="", **pictures).args[0]
    first = value.data.sample(0, random.Random(0)).latents
    return {
        "said": said,
        "shapes": [list(item.shape) for item in value.data.items],
        "latents": list(first.shape),
        "captions": list(value.data.captions),
        "carries": value.clip is common["clip"] and value.vae is vae,
        "normal": not first.is_inference(),
        "skipped": [len(skipping.data), list(skipping.data.skipped)],
        "from_images": [list(captioned.data.captions), list(shared.data.captions)],
    }


def _tiny_vae():
    """The host's VAE class over TAESD's architecture, with random weights."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(0)
    state = {f"taesd_{part}": value for part, value in TAESD().state_dict().items()}
    state = {
        name: torch.randn(value.shape, generator=generator) * 0.05 if value.ndim else value
        for name, value in state.items()
    }
    named = {name.replace("taesd_taesd_", "taesd_"): value for name, value in state.items() if "taesd_taesd" in name}
    named |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return comfy.sd.VAE(sd=named)
