"""Training the host's text encoders: captions as its nodes encode them, exact gradients, a clip left as it was."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bridge_training as training
from . import bridge_training_models as small
from . import host_previewer, text_models

LONG = "a thing, " * 30  # more than the 77 tokens of one part
CAPTIONS = ["a (red:1.4) thing", LONG, "a red thing", "a (red:1.4) thing"]
SKIPS = {"sd15": (None, -1, -2), "sdxl": (None, -1)}
GRADIENTS = {"sd15": (None, -2), "sdxl": (None,)}  # of these skips: the slow part


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for SD 1.5 and SDXL, and what concerns both."""
    bridge = _Bridge(pack)
    vae = host_previewer._vae(arguments["checkpoint"])
    answer = {kind: _measure(bridge, kind, vae) for kind in ("sd15", "sdxl")}
    return answer | {
        "half": {name: _half(bridge, getattr(torch, name)) for name in ("float16", "float8_e4m3fn")},
        "patched": _patched(bridge, vae),
        "previews": _previews(bridge, vae),
        "memory": _memory(bridge, vae),
        "refused": _refused(bridge, vae, Path(arguments["base_directory"])),
    }


class _Bridge:
    """The pack's modules that are under test."""

    def __init__(self, pack: Any) -> None:
        def load(name: str) -> Any:
            return import_module(name, pack.__name__)

        for name in ("denoiser", "training", "text", "encode", "preview", "patching", "run"):
            setattr(self, name, load(f".nodes.host.{name}"))
        for name in ("adapter", "config", "config_data", "recompute", "data", "train", "fileformat", "memory"):
            setattr(self, f"core_{name}", load(f".trilora_core.{name}"))
        self.core_framing = load(".trilora_core.data.framing")
        self.management = import_module("comfy.model_management")

    def encoder(self, clip: Any, kind: str, weights: bool = True) -> Any:
        return self.text.HostTextEncoder(clip, kind, weights=weights)

    def adapter(self, targets: Any, only_text: bool = False) -> Any:
        """Random factors, none of them zero; with `only_text` up is zero in the denoiser."""
        made = self.core_adapter.TriLoRA.create(
            targets, self.core_config.AdapterConfig(rank=3, alpha=2.0), seed=0, data_hash=""
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for stem, branch in made.branches.items():
                branch.up.copy_(torch.randn(branch.up.shape, generator=generator) * 0.05)
                if only_text and not stem.startswith("lora_te"):
                    branch.up.zero_()
        return made

    def layers(self, which: str) -> Any:
        return self.core_config.LayerConfig(which)


def _measure(bridge: Any, kind: str, vae: Any) -> dict[str, Any]:
    patcher, clip = small.load(kind), text_models.clip(kind)
    models = (patcher.model, clip.cond_stage_model)
    before = [(training._contents(model), training._objects(model)) for model in models]
    cached = {skip: _cached(bridge, _skipping(clip, skip), vae) for skip in SKIPS[kind]}
    found: dict[str, Any] = {"bits": {}, "gradients": {}, "stems": {}}
    for skip in SKIPS[kind]:
        text = bridge.encoder(_skipping(clip, skip), kind)
        with bridge.training.training(patcher, text.patcher):
            name = "default" if skip is None else str(skip)
            found["bits"][name] = _same_bits(bridge, text, cached[skip])
            found["stems"][name] = list(text.targets(bridge.layers("attention+ff")))
            if skip in GRADIENTS[kind]:
                found["gradients"][name] = _gradients(bridge, kind, patcher, text)
    found["once"] = _calls(bridge, kind, clip)
    found["device"] = bridge.management.intermediate_device.__name__
    found["restored"] = [(training._contents(model), training._objects(model)) for model in models] == before
    text = bridge.encoder(clip, kind)
    with suppress(KeyError), bridge.training.training(patcher, text.patcher):
        targets = text.targets()
        with bridge.adapter(targets).attach(targets):
            raise KeyError
    found["restored_after_error"] = [(training._contents(m), training._objects(m)) for m in models] == before
    found["clean"] = all(training._clean(model) for model in models)
    return found


def _skipping(clip: Any, layer: int | None) -> Any:
    """What the host's CLIP Set Last Layer node makes."""
    clone = clip.clone()
    if layer is not None:
        clone.clip_layer(layer)
    return clone


def _cached(bridge: Any, clip: Any, vae: Any) -> dict[bool, list[Any]]:
    """What the data set keeps of each caption, sizes included, with weights and without."""
    frame = bridge.core_framing.Frame((64, 72), (0.0, 10.0, 80.0, 100.0), False, (80, 120))
    encoder = bridge.encode.HostEncoder(clip, vae)
    with torch.inference_mode():  # as in a node
        return {
            weights: [encoder.placed(entry, frame) for entry in encoder.captions(CAPTIONS, weights=weights)]
            for weights in (False, True)
        }


def _same_bits(bridge: Any, text: Any, cached: dict[bool, list[Any]]) -> dict[str, bool]:
    """Live conditioning against the cached one: without the adapter, and with one that changes nothing yet."""
    answer = {}
    targets = text.targets()
    fresh = bridge.core_adapter.TriLoRA.create(targets, bridge.core_config.AdapterConfig(2), seed=0, data_hash="")
    for weights, wanted in cached.items():
        text.weights = weights
        answer[f"plain {weights}"] = _equal(text.encode(CAPTIONS, wanted), wanted)
        with fresh.attach(targets):
            answer[f"attached {weights}"] = _equal(text.encode(CAPTIONS, wanted), wanted)
    answer["weights matter"] = not _equal(cached[True], cached[False])
    answer["prompt"] = torch.equal(text.prompt(CAPTIONS[0])[0][0], cached[True][0][0])
    text.weights = True
    return answer


def _equal(found: list[Any], wanted: list[Any]) -> bool:
    return len(found) == len(wanted) and all(
        one[1].keys() == other[1].keys()
        and torch.equal(one[0], other[0])
        and all(
            torch.equal(one[1][name], value) if isinstance(value, Tensor) else one[1][name] == value
            for name, value in other[1].items()
        )
        for one, other in zip(found, wanted, strict=True)
    )


def _gradients(bridge: Any, kind: str, patcher: Any, text: Any) -> dict[str, Any]:
    """Relative errors of all gradients, plain and recomputed, against dense weights without hooks."""
    denoiser = bridge.denoiser.HostDenoiser(patcher)
    targets = denoiser.targets() | text.targets(bridge.layers("attention+ff"))
    adapter = bridge.adapter(targets)
    batch, times = _batch(), denoiser.times(torch.tensor([0.05, 0.35, 0.6, 0.95]))
    wanted = _reference(kind, patcher, text, targets, adapter, batch, times)
    answer: dict[str, Any] = {}
    blocks = denoiser.blocks() + text.blocks()
    for name, context in (("plain", nullcontext), ("recomputed", lambda: bridge.core_recompute.checkpointed(blocks))):
        training._clear(adapter)
        with adapter.attach(targets), context():
            _loss(denoiser, text, batch, times).backward()
        got = training._taken(adapter)
        answer[name] = training._difference(got, wanted)
        answer[f"{name} text"] = training._difference(_only_text(got), _only_text(wanted))
    answer["silent"] = [name for name, g in wanted.items() if name.endswith(".up") and not g.any()]
    return answer


def _only_text(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in gradients.items() if name.startswith("lora_te")}


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(len(CAPTIONS), 4, 8, 8, generator=generator)
    return latents, torch.randn(latents.shape, generator=generator)


def _loss(denoiser: Any, text: Any, batch: Any, times: Tensor) -> Tensor:
    cond = text.encode(CAPTIONS, [[None, {}]] * len(CAPTIONS))
    prediction, target = denoiser.predict(*batch, times, cond)
    return (prediction - target).square().mean()


def _reference(
    kind: str, patcher: Any, text: Any, targets: Any, adapter: Any, batch: Any, times: Tensor
) -> dict[str, Tensor]:
    """Gradients from the dense weights W0 + ΔW of second copies: no hook, no checkpoint, one caption at a time."""
    model, clip = small.load(kind, inference=False).model, text_models.twin(text.clip, kind)
    model.requires_grad_(False)
    originals = (patcher.model, text.model)
    paths = {id(m): (copy, name) for original, copy in zip(originals, (model, clip.cond_stage_model), strict=True)
             for name, m in original.named_modules()}  # fmt: skip
    leaves = {name: p.detach().clone().requires_grad_() for name, p in adapter.named_parameters()}
    deltas = training._deltas(adapter, leaves)
    weights = {}
    for stem, (_, delta) in deltas.items():
        copy, name = paths[id(targets[stem].module)]
        weights[stem] = copy.get_submodule(name).weight.requires_grad_(True)
        with torch.no_grad():
            weights[stem].add_(delta)
    clip.layer_idx = text.clip.layer_idx
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        for index, caption in enumerate(CAPTIONS):
            tokens, pooled = _encoded(clip, caption)
            pair = [part[index : index + 1] for part in batch]
            condition = [tokens, {"pooled_output": pooled}]
            training._network_loss(kind, model, pair, condition, times[index : index + 1]).backward()
    for stem, (_, delta) in deltas.items():
        gradient = weights[stem].grad
        delta.backward(torch.zeros_like(delta) if gradient is None else gradient)
    return {f"{stem}.{name}": p.grad for stem, (parts, _) in deltas.items() for name, p in parts.items()}


def _encoded(clip: Any, caption: str) -> tuple[Tensor, Tensor]:
    model = clip.cond_stage_model
    model.reset_clip_options()
    if clip.layer_idx is not None:
        model.set_clip_options({"layer": clip.layer_idx})
    return model.encode_token_weights(clip.tokenize(caption))[:2]


def _calls(bridge: Any, kind: str, clip: Any) -> int:
    """How often four captions, two of them equal, go through the encoder."""
    text, calls = bridge.encoder(clip, kind), []
    handle = text.model.clip_l.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        text.encode(CAPTIONS, [[None, {}]] * len(CAPTIONS))
    handle.remove()
    return len(calls)


def _half(bridge: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Weights in fewer bits: the gradients of the same weights in float32, and no copy of them is kept."""
    coarse = text_models.clip("sd15", dtype=dtype)
    patcher, found = small.load("sd15"), []
    batch = _batch()
    for clip in (coarse, text_models.twin(coarse, "sd15")):
        text = bridge.encoder(clip, "sd15")
        with bridge.training.training(patcher, text.patcher):
            denoiser = bridge.denoiser.HostDenoiser(patcher)
            targets = text.targets()
            adapter, times = bridge.adapter(targets), denoiser.times(torch.tensor([0.05, 0.35, 0.6, 0.95]))
            kept: dict[int, int] = {}
            hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: _weigh(t, kept), lambda t: t)
            with adapter.attach(targets), hooks:
                text.prompt(CAPTIONS[2])
            with adapter.attach(targets):
                _loss(denoiser, text, batch, times).backward()
            found.append((training._taken(adapter), sum(kept.values()), len(text.blocks())))
    (got, kept_here, blocks), (wanted, _, plain_blocks) = found
    weights = list(coarse.cond_stage_model.clip_l.transformer.text_model.encoder.parameters())
    return {
        "error": training._overall(got, wanted),
        "dtypes": sorted({str(p.dtype) for p in weights if p.ndim > 1}),
        "kept": kept_here / (4 * sum(p.numel() for p in weights)),
        "blocks": [blocks, plain_blocks],
    }


def _weigh(tensor: Tensor, kept: dict[int, int]) -> Tensor:
    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


def _patched(bridge: Any, vae: Any) -> dict[str, Any]:
    """A LoRA of the host's own is on the clip: it stays on, W0 is found under it, and the data set is another one."""
    plain, patcher = text_models.clip("sd15"), small.load("sd15")
    key = "clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
    base = plain.cond_stage_model.get_parameter(key).detach().clone()
    clip = plain.clone()
    clip.add_patches({key: ("diff", (torch.ones_like(base),))}, 0.5)
    cached, untouched = (_cached(bridge, one, vae)[True] for one in (clip, plain))
    text = bridge.encoder(clip, "sd15")
    with bridge.training.training(patcher, text.patcher):
        target = text.targets()["lora_te_text_model_encoder_layers_1_self_attn_q_proj"]
        answer = {
            "trains_patched": _equal(text.encode(CAPTIONS, cached), cached) and not _equal(cached, untouched),
            "sigma_from_base": torch.equal(target.base_weight(), base),
        }
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    hashes = set()
    for one in (plain, clip, _skipping(plain, -2)):
        data = _data(bridge, one, vae, images, ["a thing"])
        hashes.add(data.content_hash)
    with torch.inference_mode():
        bridge.management.load_models_gpu([plain.patcher])
    restored = torch.equal(plain.cond_stage_model.get_parameter(key), base)
    return answer | {"hashes": len(hashes), "restored": restored}


def _data(bridge: Any, clip: Any, vae: Any, images: Tensor, captions: list[str]) -> Any:
    config = bridge.core_config_data.DataConfig(resolution=64)
    encoder, store = bridge.encode.HostEncoder(clip, vae), bridge.core_data.MemoryStore()
    with torch.inference_mode():
        return bridge.core_data.load_images(images, captions, config, encoder, store)


def _previews(bridge: Any, vae: Any) -> dict[str, bool]:
    """Pictures while only the text encoder has learned: not those of the base, but those of the applied adapter."""
    clip, patcher = text_models.clip("sd15"), small.load("sd15")
    settings = {**host_previewer.SIZE, "steps": 2}
    (base,) = bridge.preview.HostPreviewer(patcher, clip, vae, **settings).preview(["a thing"], [3])
    text = bridge.encoder(clip, "sd15")
    previewer = bridge.preview.HostPreviewer(patcher, clip, vae, **settings, live=text.prompt)
    with bridge.training.training(patcher, text.patcher):
        targets = bridge.denoiser.HostDenoiser(patcher).targets() | text.targets()
        adapter = bridge.adapter(targets, only_text=True)
        (before,) = previewer.preview(["a thing"], [3])
        with adapter.attach(targets):
            (during,) = previewer.preview(["a thing"], [3])
        (after,) = previewer.preview(["a thing"], [3])
    saved = bridge.core_fileformat.Adapter(adapter.canonical(), {})
    model, applied_clip = bridge.patching.apply(saved, patcher, 1.0, clip)
    (applied,) = bridge.preview.HostPreviewer(model, applied_clip, vae, **settings).preview(["a thing"], [3])
    (again,) = bridge.preview.HostPreviewer(patcher, clip, vae, **settings).preview(["a thing"], [3])
    return {
        "starts as base": host_previewer._equal(before, base),
        "learns": not host_previewer._equal(during, base),
        "as applied": _farthest(during, applied) <= 1,
        "not kept": host_previewer._equal(after, base),
        "base as before": host_previewer._equal(again, base),
    }


def _farthest(one: Any, other: Any) -> int:
    return max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))


def _memory(bridge: Any, vae: Any) -> dict[str, Any]:
    """What the estimate says of a run with the text encoder and without it."""
    clip, patcher = text_models.clip("sd15"), small.load("sd15")
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    data, sizes = _data(bridge, clip, vae, images, ["a thing"]), []
    for rate in (0.0, 0.5):
        moves = bridge.core_config.OptimizerConfig(text_encoder_rate=rate)
        config = bridge.core_config.TrainConfig(steps=1, optimizer=moves)
        text = bridge.text.text_encoder_to_train(patcher, data, None, config, clip)
        with bridge.training.training(patcher, None if text is None else text.patcher):
            start = bridge.run._Start(None, "", None, "")
            run = bridge.run._prepare(bridge.denoiser.HostDenoiser(patcher), data, None, config, start, text, None)
            found = bridge.core_memory.preflight(run)
            sizes.append({"model": found.model, "parameters": found.parameters, "activations": found.activations})
    read = {id(p): p.nbytes for layer in clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers
            for p in layer.parameters()}  # fmt: skip
    more = {name: sizes[1][name] - sizes[0][name] for name in sizes[0]}
    return {"more": more, "layers": sum(read.values())}


def _refused(bridge: Any, vae: Any, base: Path) -> dict[str, str]:
    """What cannot be trained, and what is said."""
    clip, patcher = text_models.clip("sd15"), small.load("sd15")
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    data = _data(bridge, clip, vae, images, ["a thing"])
    moves = bridge.core_config.OptimizerConfig(text_encoder_rate=0.5)
    config = bridge.core_config.TrainConfig(steps=1, optimizer=moves)

    def run(patcher: Any = patcher, data: Any = data, clip: Any = clip, prior: Any = None) -> None:
        bridge.run.train_in_host(
            patcher,
            data,
            "refused",
            config,
            resume=False,
            start_from=None,
            prior=prior,
            node_id=None,
            clip=clip,
            vae=vae,
        )

    plain = bridge.core_data.load_tensors([torch.zeros(4, 8, 8)], [small.condition("sd15", 0)])
    captions = bridge.core_config_data.CaptionConfig(weights=True)
    weighted = bridge.core_config_data.DataConfig(resolution=64, captions=captions)
    prior = _data(bridge, clip, vae, images, ["a (red:1.2) thing"])
    return {
        "no clip": training_complaint(lambda: run(clip=None)),
        "no texts": training_complaint(lambda: run(data=plain)),
        "sd3": training_complaint(lambda: run(patcher=small.load("sd3"))),
        "other clip": training_complaint(lambda: run(patcher=small.load("sdxl"))),
        "weights": training_complaint(lambda: run(data=_with(data, weighted), prior=prior)),
        "files": ", ".join(path.name for path in base.rglob("refused*")),
    }


def _with(data: Any, config: Any) -> Any:
    from dataclasses import replace

    return replace(data, config=config)


def training_complaint(action: Any) -> str:
    try:
        action()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""
