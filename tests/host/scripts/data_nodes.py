"""What the data nodes say of bad input, and where they keep things, in one process without a server."""

from __future__ import annotations

import asyncio
import os
import time
from importlib import import_module
from pathlib import Path

import torch

from . import bridge_apply_models as models
from .bridge_apply_nodes import _tiny_vae, complaint, run

COND = [[torch.zeros(1, 77, 32), {"pooled_output": torch.zeros(1, 32)}]]


def main(pack, arguments):
    extension = asyncio.run(pack.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    base = Path(arguments["base_directory"])
    with torch.inference_mode():
        checks = (options, latents, masks, encoder, cache, prior, lines, fingerprint)
        return {check.__name__: check(pack, nodes, base) for check in checks}


def defaults(node):
    return {spec.id: spec.default for spec in node.GET_SCHEMA().inputs}


def options(pack, nodes, base):
    """Every widget reaches its field; names of mask folders are resolved as those of pictures are."""
    config = import_module(".trilora_core.config_data", pack.__name__)
    node = nodes["TriLoRADatasetOptions"]
    (base / "input/masks").mkdir()
    (base / "input/alpha").mkdir()
    (base / "input/link").symlink_to(base / "models")
    inputs = defaults(node)
    plain = run(node, **inputs).args[0]
    changed = {
        "buckets": False,
        "bucket_step": 16,
        "upscale": True,
        "crop": "random",
        "crops": 3,
        "flip": True,
        "caption_prefix": "a, ",
        "caption_suffix": ", z",
        "shuffle_tags": True,
        "keep_tags": 2,
        "caption_variants": 5,
        "caption_dropout": 0.25,
        "caption_weights": True,
        "masks": "masks",
        "mask_floor": 0.5,
        "max_train_samples": 7,
        "cache": "memory",
    }
    after = run(node, **changed).args[0].config(64, " sks  dog ", "somewhere", True)
    wanted = config.DataConfig(
        "somewhere",
        64,
        "sks dog",
        True,
        7,
        config.CaptionConfig("a, ", ", z", True, 2, 5, 0.25, True),
        config.FramingConfig(False, 16, True, "random", 3, True),
        config.MaskConfig("folder", str((base / "input/masks").resolve()), 0.5),
    )
    bad = ("../models", "link", str(base), "", "a\0b")
    return {
        "defaults": plain.config(512, "") == config.DataConfig() and plain.cache == "disk",
        "changed": after == wanted,
        "unlike": [name for name, value in changed.items() if inputs[name] == value],
        "choices": node.GET_SCHEMA().inputs[13].options,
        "valid": [node.validate_inputs(masks=name) for name in ("none", "alpha", "masks", None)],
        "refused": [node.validate_inputs(masks=name) for name in bad],
        "raised": [complaint(lambda name=name: run(node, **{**changed, "masks": name})) for name in bad],
    }


def latents(pack, nodes, base):
    """Lists, batches and masks of LATENT; what is not one."""
    node = nodes["TriLoRADatasetFromLatents"]
    generator = torch.Generator().manual_seed(0)

    def batch(count, height=8, **more):
        return {"samples": torch.randn(count, 4, height, 8, generator=generator), **more}

    def made(latents, conditioning, **more):
        return run(node, latents=latents, conditioning=conditioning, **more).args[0]

    three, pair = [batch(1), batch(2, 6)], [[COND[0]], [COND[0], COND[0]]]
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :36] = 1
    value = made([batch(2, noise_mask=mask)], [COND])
    data = value.data
    cases = {
        "number": lambda: made([batch(1), batch(1), batch(1)], [COND] * 2),
        "several": lambda: made([batch(1)], [COND * 2]),
        "video": lambda: made([{"samples": torch.zeros(1, 16, 3, 8, 8)}], [COND]),
        "empty": lambda: made([batch(0)], [COND]),
        "nan": lambda: made([{"samples": torch.full((1, 4, 8, 8), float("nan"))}], [COND]),
        "black": lambda: made([batch(1, noise_mask=torch.zeros(1, 64, 64))], [COND]),
        "masks": lambda: made([batch(3, noise_mask=torch.ones(2, 64, 64))], [COND]),
        "control": lambda: made([batch(1)], [[[COND[0][0], {"control": object()}]]]),
    }
    samples = [data.store.get(item.latents[0]) for item in data.items]
    return {
        "sizes": [
            [len(made(*both).data), len({item.shape for item in made(*both).data.items})]
            for both in (
                (three, pair),
                (three, [COND]),
                (three, [COND] * 2),
                (three, [COND] * 3),
                ([batch(3)], [COND] * 3),
            )
        ],
        "mask": data.store.get(data.items[1].masks[0])[0, 0].tolist(),
        "resolution": data.config.resolution,
        "normal": not any(tensor.is_inference() for tensor in [*samples, data.store.get(data.items[0].cond[0])[0]]),
        "empty": [value.clip is None, value.vae is None],
        "said": {name: complaint(action) for name, action in cases.items()},
    }


def masks(pack, nodes, base):
    of_images = import_module(".nodes.host.masks", pack.__name__).masks_of_images
    images, half = torch.rand(1, 32, 48, 4), torch.zeros(1, 32, 48)
    half[..., :24] = 1
    cases = {
        "alpha": lambda: of_images(images[..., :3], None, "alpha"),
        "both": lambda: of_images(images, half, "alpha"),
        "folder": lambda: of_images(images, None, "folder"),
    }
    return {
        "alpha": bool((of_images(images, None, "alpha") == images[..., 3]).all()),
        "given": of_images(images, half, "none") is half,
        "white": [of_images(images, torch.ones(1, 64, 64), "none"), of_images(images, None, "none")],
        "said": {name: complaint(action) for name, action in cases.items()},
    }


def encoder(pack, nodes, base):
    """What is cached is named by all that it depends on, whatever the host has just merged into its weights."""
    import comfy.hooks

    make = import_module(".nodes.host.encode", pack.__name__).HostEncoder
    clip, vae = models.clip(), _tiny_vae()
    layer = "clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
    plain, patched = make(clip, vae), clip.clone()
    patched.add_patches({layer: ("diff", (torch.ones(32, 32),))}, 0.5)
    before = make(patched, vae).caption_fingerprint
    (one,) = plain.captions(["a cat"])
    (other,) = make(patched, vae).captions(["a cat"])
    weight = patched.cond_stage_model.get_parameter(layer)
    merged = bool((weight == patched.patcher.backup[layer].weight + 0.5).all())
    options, half, hooked = clip.clone(), _tiny_vae(), clip.clone()
    options.set_tokenizer_option("min_padding", 1)
    half.vae_dtype = torch.float16
    hooked.patcher.forced_hooks = comfy.hooks.HookGroup()
    broken = _tiny_vae()
    next(broken.first_stage_model.parameters()).fill_(float("nan"))
    return {
        "unlike": not torch.equal(one[0], other[0]) and merged,
        "patched": [before != plain.caption_fingerprint, make(patched, vae).caption_fingerprint == before],
        "plain": make(clip, vae).fingerprint == plain.fingerprint,
        "apart": make(patched, vae).picture_fingerprint == plain.picture_fingerprint,
        "options": make(options, vae).caption_fingerprint != plain.caption_fingerprint,
        "dtype": make(clip, half).picture_fingerprint != plain.picture_fingerprint,
        "hooks": complaint(lambda: make(hooked, vae)),
        "nan": complaint(lambda: make(clip, broken).pictures(torch.rand(1, 3, 64, 64))),
    }


def cache(pack, nodes, base):
    """One store for the process in the user folder; a clear word where that cannot be written."""
    import folder_paths

    data_store = import_module(".nodes.host.store", pack.__name__).data_store
    one = data_store("disk")
    (base / "blocked").write_text("a file")
    user = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(base / "blocked"))
    said = complaint(lambda: data_store("disk"))
    works = type(data_store("memory")).__name__
    folder_paths.set_user_directory(user)
    return {
        "same": data_store("disk") is one,
        "there": (Path(user) / "trilora/data.sqlite").is_file(),
        "said": said,
        "memory": works,
        "apart": data_store("memory") is not data_store("memory"),
    }


def prior(pack, nodes, base):
    node = nodes["TriLoRAPriorPictures"]
    given = {"prompts": "a dog", "count": 2, "resolution": 64, "seed": 1}
    return {
        "no clip": complaint(lambda: run(node, model=models.unet(), clip=None, vae=None, **given)),
    }


def lines(pack, nodes, base):
    """What is left on a node: at most eight lines, the rest counted."""
    events = import_module(".nodes.host.events", pack.__name__)
    shown = []
    events.Progress.text = lambda self, text: shown.append(text)
    events.announce(None, "first", [f"problem {number}" for number in range(7)])
    events.announce(None, "first", [f"problem {number}" for number in range(30)])
    return {"counts": [len(text.splitlines()) for text in shown], "last": shown[1].splitlines()[-1]}


def fingerprint(pack, nodes, base):
    """Of what lies in the folder and below; hidden files and what links lead to count for nothing."""
    node = nodes["TriLoRADataset"]
    folder, outside = base / "input/many", base / "outside"
    (folder / "3_cats").mkdir(parents=True)
    outside.mkdir()
    (folder / "3_cats/a.txt").write_text("a cat")
    (outside / "far.txt").write_text("far away")
    (folder / "way_out").symlink_to(outside)
    (folder / "nowhere.png").symlink_to(base / "nothing")
    seen = [node.fingerprint_inputs(folder="many")]

    def after(action):
        action()
        seen.append(node.fingerprint_inputs(folder="many"))
        return seen[-1] != seen[-2]

    first = folder / "3_cats/a.txt"
    found = {
        "nothing": after(lambda: None),
        "edit": after(lambda: first.write_text("a dog")),
        "same time": after(lambda: (first.write_text("a cow"), os.utime(first, (1, 1)))),
        "once more": after(lambda: (first.write_text("a pig"), os.utime(first, (1, 1)))),
        "new": after(lambda: (folder / "metadata.jsonl").write_text("{}")),
        "hidden": after(lambda: (folder / ".thumbs").write_text("x")),
        "outside": after(lambda: (outside / "more.txt").write_text("x")),
        "gone": after((folder / "metadata.jsonl").unlink),
    }
    for number in range(10_000):
        (folder / "3_cats" / f"{number}.png").touch()
    started = time.perf_counter()
    node.fingerprint_inputs(folder="many")
    return {"changed": found, "seconds": time.perf_counter() - started, "hash": len(seen[0])}
