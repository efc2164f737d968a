"""The merged path: full and half precision weights."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path

import comfy.hooks
import comfy.lora
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch

from . import bridge_apply_models as models

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
PROJ = "lora_unet_down_blocks_0_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
SHAPES = {Q: (32, 32), K: (32, 24), CONV: (32, 32, 3, 3), PROJ: (32, 32, 1, 1)}


def figures(pack, arguments):
    apply = import_module(".nodes.host.patching", pack.__name__).apply
    with torch.inference_mode():
        checks = (strengths, forward, stacked, native, low_vram, hooks, checkpoint, sd3, complaints)
        return {check.__name__: check(pack, apply, Path(arguments["base_directory"])) for check in checks}


def key_of(patcher, stem):
    where = comfy.lora.model_lora_keys_unet(patcher.model, {})[stem]
    return where if isinstance(where, str) else where[0]


def changes(patched, base, stems=SHAPES):
    """stem -> what the loaded patcher changed, as matrices."""
    state = models.snapshot_loaded(patched)
    keys = {stem: key_of(patched, stem) for stem in stems}
    return {stem: (state[key].double() - base[key].double()).flatten(1) for stem, key in keys.items()}


def strengths(pack, apply, folder):
    model, text = models.unet(), models.clip()
    made = models.adapter(pack, {**SHAPES, TEXT: (32, 32)})
    base, base_text = models.snapshot(model), models.snapshot(text.patcher)
    zero = apply(made, model, 0.0, text, 0.0)
    half = apply(made, model, 0.0, text, 1.0)
    full, both = apply(made, model, 1.0, text, 0.5)
    plus = changes(full, base)
    minus = changes(apply(made, model, -1.0)[0], base)
    models.load(both.patcher)
    name = "clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
    text_change = both.patcher.model.state_dict()[name].double() - base_text[name].double()
    models.unload()
    return {
        "zero": zero[0] is model and zero[1] is text,
        "zero_model_only": half[0] is model and half[1] is not text,
        "zero_ignores_misfits": apply(models.adapter(pack, {"nowhere": (2, 2)}), model, 0.0)[0] is model,
        "no_clip": apply(made, model, 1.0)[1] is None,
        "exact": max(models.error(plus[stem], models.change(made, stem)) for stem in SHAPES),
        "negative": max(models.error(minus[stem], -plus[stem]) for stem in SHAPES),
        "text": models.error(text_change, 0.5 * models.change(made, TEXT)),
        "only_named": sum(
            not torch.equal(full_value, base[key]) for key, full_value in models.snapshot_loaded(full).items()
        ),
        "restored": models.same(_after_unload(model), base),
        "restored_text": models.same(_after_unload(text.patcher), base_text),
        "originals_unpatched": not model.patches and not text.patcher.patches,
    }


def _after_unload(patcher):
    models.unload()
    return models.snapshot(patcher)


def predict(patcher):
    """One call of the host's model on fixed input."""
    generator = torch.Generator().manual_seed(5)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 24, generator=generator)
    return models.load(patcher).apply_model(x, torch.tensor([1.0, 3.0]), c_crossattn=context)


def forward(pack, apply, folder):
    model = models.unet()
    made = models.adapter(pack, SHAPES)
    before = predict(model)
    changed = predict(apply(made, model, 1.0)[0])
    again = predict(model)
    return {"differs": models.error(changed, before), "same_after": torch.equal(before, again)}


def stacked(pack, apply, folder):
    model = models.unet()
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {Q: (32, 32), K: (32, 24)}, rank=5, seed=2)
    base = models.snapshot(model)
    found = changes(apply(b, apply(a, model, 0.7)[0], -0.3)[0], base)
    wanted = {stem: 0.7 * models.change(a, stem) for stem in SHAPES}
    wanted |= {stem: wanted[stem] - 0.3 * models.change(b, stem) for stem in (Q, K)}
    models.unload()
    return max(models.error(found[stem], wanted[stem]) for stem in SHAPES)


def native(pack, apply, folder):
    """One fp16 file through our nodes' way and through the native loader's."""
    core = import_module(".trilora_core.fileformat", pack.__name__)
    model, text, path = models.unet(), models.clip(), folder / "one.safetensors"
    made = models.adapter(pack, {**SHAPES, TEXT: (32, 32)})
    core.write_adapter(path, made)
    base = models.snapshot(model)
    ours = changes(apply(core.read_adapter(path), model, 0.8, text, 0.8)[0], base)
    theirs = changes(
        comfy.sd.load_lora_for_models(model, text, comfy.utils.load_torch_file(str(path)), 0.8, 0.8)[0], base
    )
    models.unload()
    return {
        "to_native": max(models.error(ours[stem], theirs[stem]) for stem in SHAPES),
        "to_trained": max(models.error(ours[stem], 0.8 * models.change(made, stem)) for stem in SHAPES),
    }


def low_vram(pack, apply, folder):
    """Every layer that the host can cast is left unpatched and patched at each use."""
    model = models.unet()
    patched, _ = apply(models.adapter(pack, SHAPES), model, 1.0)
    base, full = models.snapshot(model), predict(patched)
    models.unload()
    patched.patch_model(models.CPU, lowvram_model_memory=1)
    delayed = [name for name, module in model.model.named_modules() if getattr(module, "weight_function", None)]
    untouched = all(torch.equal(base[name + ".weight"], model.model.state_dict()[name + ".weight"]) for name in delayed)
    generator = torch.Generator().manual_seed(5)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 24, generator=generator)
    low = model.model.apply_model(x, torch.tensor([1.0, 3.0]), c_crossattn=context)
    patched.unpatch_model(models.CPU)
    return {
        "delayed": len(delayed),
        "untouched": untouched,
        "error": models.error(low, full),
        "restored": models.same(models.snapshot(model), base),
    }


def hooks(pack, apply, folder):
    """A host's LoRA hook on the conditioning beside our patches = both as patches."""
    core = import_module(".trilora_core.fileformat", pack.__name__)
    model = models.unet()
    a, b = models.adapter(pack, SHAPES), models.adapter(pack, {Q: (32, 32), K: (32, 24)}, rank=5, seed=2)
    core.write_adapter(folder / "hook.safetensors", b, dtype=torch.float32)
    lora = comfy.utils.load_torch_file(str(folder / "hook.safetensors"))
    base, first = models.snapshot(model), apply(a, model, 0.7)[0]
    plain = sample(first, None)
    hooked = sample(first, comfy.hooks.create_hook_lora(lora, 5.0, 0.0))
    both = sample(apply(b, first, 5.0)[0], None)
    result = {"error": models.error(hooked, both), "differs": models.error(hooked, plain)}
    return result | {"restored": models.same(_after_unload(model), base)}


def sample(model, hook_group):
    """Two steps of Euler with the host's sampler."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    positive = [[torch.randn(1, 7, 24, generator=generator), {}]]
    negative = [[torch.randn(1, 7, 24, generator=generator), {}]]
    if hook_group is not None:
        positive = comfy.hooks.set_hooks_for_conditioning(positive, hook_group)
        negative = comfy.hooks.set_hooks_for_conditioning(negative, hook_group)
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, 2, 3.0, "euler", "normal", positive, negative, latent, seed=1, disable_pbar=True
    )


def checkpoint(pack, apply, folder):
    """Save Checkpoint writes the base with the change in it."""
    model = models.unet()
    made = models.adapter(pack, SHAPES)
    base = models.snapshot(model)
    comfy.sd.save_checkpoint(str(folder / "merged.safetensors"), apply(made, model, 0.6)[0])
    saved = comfy.utils.load_torch_file(str(folder / "merged.safetensors"))
    errors = []
    for stem in SHAPES:
        key = key_of(model, stem)
        errors.append(
            models.error((saved["model." + key].double() - base[key]).flatten(1), 0.6 * models.change(made, stem))
        )
    return {"error": max(errors), "restored": models.same(_after_unload(model), base)}


def sd3(pack, apply, folder):
    """Row ranges of a fused weight, beside the native loader on the same file."""
    core = import_module(".trilora_core.fileformat", pack.__name__)
    model = models.mmdit()
    q, v = (f"transformer.transformer_blocks.0.attn.to_{part}" for part in ("q", "v"))
    made = models.adapter(pack, {q: (128, 128), v: (128, 128)})
    core.write_adapter(folder / "sd3.safetensors", made)
    base, key = models.snapshot(model), "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    read = core.read_adapter(folder / "sd3.safetensors")
    ours = models.snapshot_loaded(apply(read, model, 1.0)[0])[key].double() - base[key]
    lora = comfy.utils.load_torch_file(str(folder / "sd3.safetensors"))
    theirs = (
        models.snapshot_loaded(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0])[key].double() - base[key]
    )
    models.unload()
    return {
        "to_native": models.error(ours, theirs),
        "k_untouched": float(ours[128:256].abs().max()),
        "q": models.error(ours[:128], models.change(made, q)),
        "v": models.error(ours[256:], models.change(made, v)),
    }


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def complaints(pack, apply, folder):
    """What a person reads when something does not fit, and what stays unpatched then."""
    model, text = models.unet(), models.clip()
    flux = models.adapter(pack, {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)}, ss_base_model_version="flux1")
    wide = models.adapter(pack, {Q: (32, 32), K: (32, 48)}, **{"modelspec.architecture": "stable-diffusion-v2/lora"})
    only_text = models.adapter(pack, {TEXT: (32, 32)})
    cases = {
        "wrong model": (flux, model, 1.0),
        "wrong shape": (wide, model, 1.0),
        "text without clip": (only_text, model, 1.0),
        "not a number": (flux, model, float("nan")),
    }
    said = {name: _complaint(apply, case) for name, case in cases.items()}
    heard = Lines()
    logging.getLogger("trilora").addHandler(heard)
    logging.getLogger("trilora").setLevel(logging.INFO)
    apply(models.adapter(pack, {Q: (32, 32), "lora_unet_nowhere": (4, 4)}), model, 1.0)
    apply(models.adapter(pack, {Q: (32, 32), TEXT: (32, 32)}), model, 1.0)
    logging.getLogger("trilora").removeHandler(heard)
    return {"said": said, "heard": heard.lines, "text_only": apply(only_text, model, 1.0, text, 1.0)[0] is model}


def _complaint(apply, case):
    try:
        apply(*case)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
