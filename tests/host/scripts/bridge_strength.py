"""The controls of Apply, the hook node and the naming of bases on the host's own models."""

from __future__ import annotations

from importlib import import_module

import comfy.hooks
import comfy.sample
import comfy.utils
import torch
from comfy_extras.nodes_hooks import SetClipHooks

from . import bridge_apply_merged as merged
from . import bridge_apply_models as models
from .bridge_apply_merged import CONV, SHAPES, TEXT, K, Lines, Q
from .bridge_apply_nodes import complaint, run

STEPS = 8
SIZE = 3.0  # of the change, large enough that two schedules are told apart


def main(pack, arguments):
    names = {"apply": ".nodes.apply.ApplyTriLoRA", "hook": ".nodes.hook.TriLoRAHook"}
    nodes = {key: getattr(import_module(path.rpartition(".")[0], pack.__name__), path.rpartition(".")[2])
             for key, path in names.items()}  # fmt: skip
    with torch.inference_mode():
        checks = (controls, fp8, off, constant, schedule, ranks, keyframes, text, rows, complaints, bases)
        return {check.__name__: check(pack, nodes) for check in checks}


def shaping(pack):
    return import_module(".trilora_core.shaping", pack.__name__)


CONTROLS = {"keep_rank": 4, "keep_energy": 0.99, "tone": 0.6, "normalize": True, "block_preset": "OUTALL"}
BLOCKS = "IN:0.5, MID:-1"


def shaped(pack, made):
    core = shaping(pack)
    return core.shape(made, core.Shape(4, 0.99, 0.6, True, "OUTALL", BLOCKS))


def controls(pack, nodes):
    """What the host's weights gain, beside the dense change of the shaped adapter in float64."""
    model, made = models.unet(), models.adapter(pack, SHAPES, rank=6)
    base, wanted = models.snapshot(model), shaped(pack, made)
    patched = run(nodes["apply"], model=model, trilora=made, strength=0.7, blocks=BLOCKS, **CONTROLS).args[0]
    found = merged.changes(patched, base)
    models.unload()
    return {
        "error": max(models.error(found[stem], 0.7 * models.change(wanted, stem)) for stem in SHAPES),
        "ranks": sorted({len(layer.svd.s) for layer in wanted.layers.values()}),
        "restored": models.same(models.snapshot(model), base),
    }


def fp8(pack, nodes):
    """The same where the change is added while the model runs."""
    model, made = models.unet(torch.float8_e4m3fn), models.adapter(pack, SHAPES, rank=6)
    wanted = shaped(pack, made)
    patched = run(nodes["apply"], model=model, trilora=made, strength=-0.7, blocks=BLOCKS, **CONTROLS).args[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(9))
    layer = comfy.utils.get_attr(model.model, merged.key_of(model, Q).removesuffix(".weight"))
    models.load(model)
    before = layer(x).double()
    models.load(patched)
    gained = layer(x).double() - before
    models.unload()
    return {"error": models.error(gained, x.double() @ (-0.7 * models.change(wanted, Q)).T)}


def off(pack, nodes):
    """Blocks of strength 0 leave nothing to patch."""
    model, made = models.unet(), models.adapter(pack, SHAPES)
    return run(nodes["apply"], model=model, trilora=made, strength=1.0, block_preset="NONE").args[0] is model


def sampled(model, hooks=None):
    """x after every step of one Euler run, then the result."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    conditions = [[[torch.randn(1, 7, 24, generator=generator), {}]] for _ in range(2)]
    if hooks is not None:
        conditions = comfy.hooks.set_conds_props(conditions, strength=1.0, set_cond_area="default", hooks=hooks)
    seen = []
    end = comfy.sample.sample(
        model, noise, STEPS, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise), seed=1, disable_pbar=True,
        callback=lambda step, x0, x, total: seen.append(x.clone()),
    )  # fmt: skip
    return [*seen, end]


def hooked(nodes, made, **inputs):
    return run(nodes["hook"], trilora=made, **{"strength": 1.0, **inputs}).args[0]


def applied(nodes, model, made, strength, **controls):
    return run(nodes["apply"], model=model, trilora=made, strength=strength, **controls).args[0]


def constant(pack, nodes):
    """A schedule that does not change is Apply at that strength; the base is as before."""
    model, made = models.unet(), models.adapter(pack, SHAPES, rank=6, size=SIZE)
    base, plain = models.snapshot(model), sampled(model)
    hook, patched = sampled(model, hooked(nodes, made, strength=0.6)), sampled(applied(nodes, model, made, 0.6))
    again = sampled(model)
    models.unload()
    return {
        "error": models.error(hook[-1], patched[-1]),
        "differs": models.error(hook[-1], plain[-1]),
        "same_after": torch.equal(plain[-1], again[-1]),
        "restored": models.same(models.snapshot(model), base),
        "clean": not model.patches and not model.hook_patches and not model.hook_backup,
    }


def schedule(pack, nodes):
    """From 1 to 0 in two parts: the first as Apply at 1, and nothing after it."""
    model, made = models.unet(), models.adapter(pack, SHAPES, rank=6, size=SIZE)
    base = models.snapshot(model)
    hooks = hooked(nodes, made, strength=1.0, strength_end=0.0, curve="linear", keyframe_count=2)
    found, full, none = sampled(model, hooks), sampled(applied(nodes, model, made, 1.0)), sampled(model)
    again = sampled(model, hooks)
    models.unload()
    same = [models.error(a, b) < 1e-5 for a, b in zip(found, full, strict=True)]
    return {
        "equal_steps": same.index(False),
        "to_full": models.error(found[-1], full[-1]),
        "to_none": models.error(found[-1], none[-1]),
        "repeats": torch.equal(found[-1], again[-1]),
        "restored": models.same(models.snapshot(model), base),
    }


def ranks(pack, nodes):
    """Rank 2 first, all from half on: the bands add up to what Apply gives at each rank."""
    model, made = models.unet(), models.adapter(pack, SHAPES, rank=6, size=SIZE)
    base = models.snapshot(model)
    step = sampled(model, hooked(nodes, made, strength=0.8, ranks="2@0, all@0.5"))
    low = sampled(applied(nodes, model, made, 0.8, keep_rank=2))
    bands = sampled(model, split(pack, made, 0.8))
    full = sampled(applied(nodes, model, made, 0.8))
    models.unload()
    same = [models.error(a, b) < 1e-5 for a, b in zip(step, low, strict=True)]
    return {
        "equal_steps": same.index(False),
        "differs": [models.error(step[-1], other[-1]) for other in (low, full)],
        "sum": models.error(bands[-1], full[-1]),
        "restored": models.same(models.snapshot(model), base),
    }


def split(pack, made, strength):
    """Three hooks, each with some of the singular values, together all of them throughout."""
    core, hooks = (import_module(name, pack.__name__) for name in (".trilora_core.schedule", ".nodes.host.hooks"))
    always = (core.Keyframe(0.0, 1.0),)
    return hooks.hook_group(made, [core.Band(a, b, always) for a, b in ((0, 2), (2, 3), (3, 6))], strength, 1.0)


def keyframes(pack, nodes):
    """The host's keyframes: the same as its own LoRA hook with them, with and without ranks beside them."""
    model, made = models.unet(), models.adapter(pack, SHAPES, rank=6, size=SIZE)
    frames = comfy.hooks.HookKeyframeGroup()
    for start, strength in ((0.0, 0.2), (0.4, 1.0), (0.8, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength, start, 1))
    ours = hooked(nodes, made, strength=0.9, keyframes=frames)
    theirs = comfy.hooks.create_hook_lora(state_dict(pack, made), 0.9, 0.0)
    theirs.set_keyframes_on_hooks(frames)
    wanted = sampled(model, theirs)
    found = [sampled(model, ours), sampled(model, hooked(nodes, made, strength=0.9, keyframes=frames, ranks="all@0"))]
    return [models.error(each[-1], wanted[-1]) for each in found]


def state_dict(pack, made):
    spectral = import_module(".trilora_core.spectral", pack.__name__)
    tensors = {}
    for stem, layer in made.layers.items():
        up, down = spectral.balanced(layer.svd)
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
    return tensors


def text(pack, nodes):
    """Text encoder layers of a hook, beside Apply; and none of them where strength_clip is 0."""
    clip, model = models.clip(), models.unet()
    made = models.adapter(pack, {Q: (32, 32), TEXT: (32, 32)}, size=1.0)
    before = models.snapshot(clip.patcher)
    patched = run(nodes["apply"], model=model, trilora=made, strength=1.0, clip=clip, strength_clip=0.3).args[1]

    def encode(with_clip):
        return with_clip.encode_from_tokens_scheduled(with_clip.tokenize("a red house"))[0][0]

    def with_hooks(**inputs):
        return encode(SetClipHooks().apply_hooks(clip, False, False, hooked(nodes, made, **inputs))[0])

    plain, wanted = encode(clip), encode(patched)
    found, none = with_hooks(strength=0.6, strength_clip=0.5), with_hooks(strength=0.6, strength_clip=0.0)
    models.unload()
    return {
        "error": models.error(found, wanted),
        "differs": models.error(found, plain),
        "none": models.error(none, plain),
        "restored": models.same(models.snapshot(clip.patcher), before),
    }


def rows(pack, nodes):
    """Row ranges of a fused weight through a hook."""
    model = models.mmdit()
    q, v = (f"transformer.transformer_blocks.0.attn.to_{part}" for part in ("q", "v"))
    made = models.adapter(pack, {q: (128, 128), v: (128, 128)})
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    base = models.snapshot(model)
    (hook,) = hooked(nodes, made, strength=0.5).hooks
    patcher = model.clone()
    models.load(patcher)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    patcher.register_all_hook_patches(group, target)
    patcher.patch_hooks(group)
    change = patcher.model.state_dict()[key].double() - base[key]
    patcher.unpatch_hooks()
    models.unload()
    return {
        "q": models.error(change[:128], 0.5 * models.change(made, q)),
        "k": float(change[128:256].abs().max()),
        "v": models.error(change[256:], 0.5 * models.change(made, v)),
        "restored": models.same(models.snapshot(model), base),
    }


def complaints(pack, nodes):
    """What a person reads."""
    model, made = models.unet(), models.adapter(pack, SHAPES, rank=6)
    flux = models.adapter(pack, {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)}, ss_base_model_version="flux1")
    cases = {
        "rank": lambda: applied(nodes, model, made, 1.0, keep_rank=7),
        "blocks": lambda: applied(nodes, model, made, 1.0, blocks="IN04:0.5, MDI:1"),
        "ranks": lambda: hooked(nodes, made, ranks="8@0"),
        "model": lambda: sampled(model, hooked(nodes, flux)),
    }
    said = {name: complaint(case) for name, case in cases.items()}
    heard = Lines()
    logger = import_module("logging").getLogger("trilora")
    logger.addHandler(heard)
    sampled(models.unet(torch.float8_e4m3fn), hooked(nodes, models.adapter(pack, {Q: (32, 32), CONV: SHAPES[CONV]})))
    logger.removeHandler(heard)
    return {"said": said, "heard": heard.lines, "usable_after": models.error(sampled(model)[-1], sampled(model)[-1])}


def bases(pack, nodes):
    """Which bases are named: the same, another, the same name, no word about it, another kind of model."""
    host, other = import_module(".nodes.host.models", pack.__name__), import_module(".nodes.host.base", pack.__name__)
    model = models.unet()
    model.model.model_config.unet_config = {**model.model.model_config.unet_config, "context_dim": 768}
    own = host.fingerprint(model)
    again = host.bare_fingerprint(model)
    patched = applied(nodes, model, models.adapter(pack, {K: SHAPES[K]}), 0.5)
    core = import_module(".trilora_core.fileformat", pack.__name__)

    def told(patcher, fingerprint, name, content=""):
        metadata = {"trilora.base_fingerprint": fingerprint, "trilora.base_name": name, "trilora.base_content": content}
        return other.other_base(core.Adapter({}, {key: value for key, value in metadata.items() if value}), patcher)

    named = model.clone()
    named.cached_patcher_init = (None, ("/somewhere/dream.safetensors",))
    return {
        "same": [told(model, own, "x"), told(patched, again, "x"), told(patched, host.fingerprint(patched), "x")],
        "nothing": [told(model, "", ""), told(model, "", "dream")],
        "content": told(named, "0" * 64, "photo", host.bare_content(model)),
        "another": told(named, "0" * 64, "photo"),
        "same_name": told(named, "0" * 64, "dream"),
        "kind": told(model, "0" * 64, host.base_name(model)),
        "untrainable": told(models.unet(), "0" * 64, "dream"),
    }
