"""The run-time path: fp8 and quantised weights."""

from __future__ import annotations

import gc
from importlib import import_module
from pathlib import Path

import comfy.hooks
import comfy.lora
import comfy.ops
import comfy.sd
import comfy.utils
import torch

from . import bridge_apply_models as models
from .bridge_apply_merged import CONV, PROJ, SHAPES, TEXT, K, Q, key_of, predict, sample

FP8 = torch.float8_e4m3fn


def figures(pack, arguments):
    apply = import_module(".nodes.host.patching", pack.__name__).apply
    with torch.inference_mode():
        checks = (exact, stacked, rows, text, lowvram, lives, clones, beside_native, beside_hooks, quantised, saved)
        checks += (called_past,)
        return {check.__name__: check(pack, apply, Path(arguments["base_directory"])) for check in checks}


def output(patcher, stem, x):
    """What the loaded layer of this stem makes of x."""
    models.load(patcher)
    return comfy.utils.get_attr(patcher.model, key_of(patcher, stem).removesuffix(".weight"))(x)


def gain(patched, base, stem, x):
    """What the patches add to the layer's output."""
    before = output(base, stem, x)
    return output(patched, stem, x).double() - before.double()


def inputs(stem):
    generator = torch.Generator().manual_seed(9)
    shape = (2, 32, 6, 6) if stem in (CONV, PROJ) else (2, 5, SHAPES[stem][1])
    return torch.randn(shape, generator=generator)


def wanted(made, stem, x, strength=1.0):
    """The exact gain: ΔW · x in float64."""
    delta = strength * models.change(made, stem)
    if stem not in (CONV, PROJ):
        return x.double() @ delta.T
    return torch.nn.functional.conv2d(x.double(), delta.reshape(SHAPES[stem]), padding=SHAPES[stem][-1] // 2)


def exact(pack, apply, folder):
    model = models.unet(FP8)
    made = models.adapter(pack, SHAPES, size=0.05)
    base = models.snapshot(model)
    patched, _ = apply(made, model, 1.0)
    cosines, errors, merged = [], [], []
    core = import_module(".trilora_core.fileformat", pack.__name__)
    core.write_adapter(folder / "fp8.safetensors", made, dtype=torch.float32)
    lora = comfy.utils.load_torch_file(str(folder / "fp8.safetensors"))
    native = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    for stem in SHAPES:
        x = inputs(stem)
        found = gain(patched, model, stem, x)
        cosines.append(models.cosine(found, wanted(made, stem, x)))
        errors.append(models.error(found, wanted(made, stem, x)))
        merged.append(models.cosine(gain(native, model, stem, x), wanted(made, stem, x)))
    minus = gain(apply(made, model, -0.5)[0], model, Q, inputs(Q))
    models.unload()
    return {
        "cosine": min(cosines),
        "error": max(errors),
        "merged_cosine": min(merged),
        "negative": models.error(minus, wanted(made, Q, inputs(Q), -0.5)),
        "zero": apply(made, model, 0.0)[0] is model,
        "patches": len(patched.patches),
        "restored": models.same(models.snapshot(model), base),
        "hooks_left": models.hooks_on(model.model),
    }


def stacked(pack, apply, folder):
    """Two adapters in both orders, and off again."""
    model = models.unet(FP8)
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {Q: (32, 32), K: (32, 24)}, rank=5, seed=2)
    x = inputs(Q)
    target = wanted(a, Q, x, 0.7) + wanted(b, Q, x, -0.3)
    ab = apply(b, apply(a, model, 0.7)[0], -0.3)[0]
    ba = apply(a, apply(b, model, -0.3)[0], 0.7)[0]
    before = predict(model)
    errors = [models.error(gain(ab, model, Q, x), target), models.error(gain(ba, model, Q, x), target)]
    same = models.error(predict(ab), predict(ba))
    return {"error": max(errors), "orders": same, "off": torch.equal(predict(model), before),
            "hooks_left": models.hooks_on(model.model)}  # fmt: skip


def rows(pack, apply, folder):
    """q and v of a fused weight, k between them untouched."""
    model = models.mmdit(FP8)
    q, v = (f"transformer.transformer_blocks.0.attn.to_{part}" for part in ("q", "v"))
    made = models.adapter(pack, {q: (128, 128), v: (128, 128)})
    module = comfy.utils.get_attr(model.model, "diffusion_model.joint_blocks.0.x_block.attn.qkv")
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(9))
    models.load(model)
    before = module(x).double()
    patched, _ = apply(made, model, 1.0)
    models.load(patched)
    found = module(x).double() - before
    models.unload()
    return {
        "q": models.error(found[..., :128], x.double() @ models.change(made, q).T),
        "k": float(found[..., 128:256].abs().max()),
        "v": models.error(found[..., 256:], x.double() @ models.change(made, v).T),
    }


def text(pack, apply, folder):
    """The text encoder, through the host's own encoding."""
    model, clip = models.unet(), models.clip(FP8)
    made = models.adapter(pack, {Q: (32, 32), TEXT: (32, 32)}, size=1.0)
    base = models.snapshot(clip.patcher)
    before = encode(clip)
    _, patched = apply(made, model, 1.0, clip, 1.0)
    changed, again = encode(patched), encode(clip)
    module = comfy.utils.get_attr(
        clip.cond_stage_model, "clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj"
    )
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(9))
    plain = module(x)
    models.load(patched.patcher)
    found = module(x).double() - plain
    models.unload()
    return {
        "error": models.error(found, x.double() @ models.change(made, TEXT).T),
        "differs": models.error(changed, before),
        "off": torch.equal(before, again),
        "restored": models.same(models.snapshot(clip.patcher), base) and not models.hooks_on(clip.cond_stage_model),
    }


def encode(clip):
    return clip.encode_from_tokens_scheduled(clip.tokenize("a red house"))[0][0]


def lowvram(pack, apply, folder):
    model = models.unet(FP8)
    patched, _ = apply(models.adapter(pack, SHAPES), model, 1.0)
    full = predict(patched)
    models.unload()
    patched.patch_model(models.CPU, lowvram_model_memory=1)
    generator = torch.Generator().manual_seed(5)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 24, generator=generator)
    low = model.model.apply_model(x, torch.tensor([1.0, 3.0]), c_crossattn=context)
    patched.unpatch_model(models.CPU)
    return {"error": models.error(low, full), "hooks_left": models.hooks_on(model.model)}


def lives(pack, apply, folder):
    """How many hooks there are at each turn of a session."""
    model = models.unet(FP8)
    first, _ = apply(models.adapter(pack, SHAPES), model, 1.0)
    counts = [models.hooks_on(model.model)]
    for turn in (
        first,
        first,
        model,
        first,
        first.clone(),
        apply(models.adapter(pack, {Q: (32, 32)}), first, 1.0)[0],
        model,
    ):
        models.load(turn)
        counts.append(models.hooks_on(model.model))
    models.load(first)
    models.unload()
    return {"counts": [*counts, models.hooks_on(model.model)]}


def clones(pack, apply, folder):
    """Clones of a loaded patcher that are patched further or thrown away change nothing under it."""
    model = models.unet(FP8)
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {Q: (32, 32)}, seed=2)
    patched, _ = apply(a, model, 1.0)
    alone = predict(patched)
    further, _ = apply(b, patched, 1.0)  # while `patched` is loaded
    host_clone = patched.clone()
    host_clone.add_patches({})
    counts = [models.hooks_on(model.model)]
    del host_clone
    gc.collect()
    counts.append(models.hooks_on(model.model))
    still = predict(patched)
    predict(further)
    del further
    gc.collect()
    counts.append(models.hooks_on(model.model))
    base = predict(model)
    return {
        "same": torch.equal(alone, still),
        "counts": counts,
        "base": models.error(base, alone),
        "base_hooks": models.hooks_on(model.model),
        "again": torch.equal(predict(patched), alone),
    }


def beside_native(pack, apply, folder):
    """The native loader's patches and ours on the same fp8 layer."""
    core = import_module(".trilora_core.fileformat", pack.__name__)
    model = models.unet(FP8)
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {Q: (32, 32)}, size=3.0, seed=2)
    core.write_adapter(folder / "native.safetensors", b, dtype=torch.float32)
    lora = comfy.utils.load_torch_file(str(folder / "native.safetensors"))
    native = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    after, before = (
        apply(a, native, 1.0)[0],
        comfy.sd.load_lora_for_models(apply(a, model, 1.0)[0], None, lora, 1.0, 0.0)[0],
    )
    x = inputs(Q)
    return {"after": models.error(gain(after, native, Q, x), wanted(a, Q, x)),
            "before": models.error(gain(before, native, Q, x), wanted(a, Q, x))}  # fmt: skip


def beside_hooks(pack, apply, folder):
    """A host's LoRA hook on the conditioning and ours at run time, in a real sampling."""
    core = import_module(".trilora_core.fileformat", pack.__name__)
    model = models.unet(FP8)
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {K: (32, 24)}, size=3.0, seed=2)
    core.write_adapter(folder / "hook.safetensors", b, dtype=torch.float32)
    lora = comfy.utils.load_torch_file(str(folder / "hook.safetensors"))
    base = models.snapshot(model)
    first = apply(a, model, 1.0)[0]
    hooked = sample(first, comfy.hooks.create_hook_lora(lora, 5.0, 0.0))
    both = sample(comfy.sd.load_lora_for_models(first, None, lora, 5.0, 0.0)[0], None)
    plain = sample(first, None)
    models.unload()
    return {
        "error": models.error(hooked, both),
        "differs": models.error(hooked, plain),
        "restored": models.same(models.snapshot(model), base) and not models.hooks_on(model.model),
    }


def quantised(pack, apply, folder):
    """A layer whose weight is the host's quantised tensor class; absent in the oldest host."""
    if not hasattr(comfy.ops, "mixed_precision_ops"):
        return None
    from comfy.quant_ops import QuantizedTensor

    model = models.unet(torch.float32)
    key = key_of(model, Q)
    parent, _, name = key.removesuffix(".weight").rpartition(".")
    ops = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=True)
    layer = ops.Linear(32, 32, bias=False, device="cpu", dtype=torch.float32)
    old = comfy.utils.get_attr(model.model, key)
    layer.quant_format, layer.layout_type = "float8_e4m3fn", "TensorCoreFP8E4M3Layout"
    layer.weight = torch.nn.Parameter(QuantizedTensor.from_float(old.data, layer.layout_type), requires_grad=False)
    setattr(comfy.utils.get_attr(model.model, parent), name, layer)
    plain = layer.weight.dequantize().double()
    made = models.adapter(pack, SHAPES, size=0.5)
    patched, _ = apply(made, model, 1.0)
    x = inputs(Q)
    found = gain(patched, model, Q, x)
    result = {"class": type(layer.weight).__name__, "error": models.error(found, wanted(made, Q, x)),
              "merged": len(patched.patches), "off": models.hooks_on(models.load(model))}  # fmt: skip
    comfy.sd.save_checkpoint(str(folder / "quantised.safetensors"), patched)
    file = comfy.utils.load_torch_file(str(folder / "quantised.safetensors"))
    scale = file["model." + key.removesuffix("weight") + "weight_scale"].double()
    written = file["model." + key].double() * scale - plain
    result["saved"] = models.cosine(written, models.change(made, Q))
    models.unload()
    return result


def called_past(pack, apply, folder):
    """Layers in INT8 that newer hosts run without a call of the layer are left to the host's own patches."""
    possible = import_module(".nodes.host.runtime", pack.__name__).possible
    layer = torch.nn.Linear(4, 4)
    layer.weight._layout_cls = "TensorWiseINT8Layout"
    names = ("blocks.0.ffn.2", "layers.3.mlp.down_proj", "blocks.0.self_attn.q")
    found = [possible(layer, f"diffusion_model.{name}.weight") for name in names]
    return {"hooked": found, "known": hasattr(comfy.ops, "linear_input_act")}


def saved(pack, apply, folder):
    """Save Checkpoint on fp8 holds what merging would give, and nothing of it stays in the model."""
    model = models.unet(FP8)
    made = models.adapter(pack, SHAPES, size=1.0)
    base = models.snapshot(model)
    patched, _ = apply(made, model, 1.0)
    before = predict(patched)
    comfy.sd.save_checkpoint(str(folder / "fp8_merged.safetensors"), patched)
    after, plain = predict(patched), predict(model)
    models.unload()
    file = comfy.utils.load_torch_file(str(folder / "fp8_merged.safetensors"))
    cosines = []
    for stem in SHAPES:
        key = key_of(model, stem)
        found = (file["model." + key].double() - base[key].double()).flatten(1)
        cosines.append(models.cosine(found, models.change(made, stem)))
    weights = [key for key in base if "model." + key in file]
    changed = [key for key in weights if file["model." + key].double().ne(base[key].double()).any()]
    return {
        "cosine": min(cosines),
        "dtype": str(file["model." + key_of(model, Q)].dtype),
        "changed": len(changed),
        "same_after": torch.equal(before, after),
        "differs": models.error(before, plain),
        "restored": models.same(models.snapshot(model), base) and not models.hooks_on(model.model),
    }
