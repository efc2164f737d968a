"""Pictures of the HostPreviewer beside those of the host's own nodes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import bridge_training_models as small

SIZE = {"width": 64, "height": 96}
CASES = [  # prompt, seed, settings
    ("a red cube", 5, {"steps": 2}),
    (
        "",
        2**64 - 2,
        {"steps": 2, "cfg": 3.5, "negative": "a cube", "sampler": "euler_ancestral", "scheduler": "simple"},
    ),
    ("a red cube", 0, {"steps": 3, "cfg": 1.0, "sampler": "dpmpp_2m_sde", "scheduler": "karras"}),
]


class ShortTextEncoder:
    """A text encoder of two layers' effort in place of CLIP-G and T5, which are gigabytes: the host sees only this."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.calls = 0

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[Any]:
        self.calls += 1
        return [small.condition(self.kind, len(tokens), 77)]


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    import comfy.sd

    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(arguments["checkpoints"]["sd15"])
    make = import_module(".nodes.host.preview", pack.__name__).HostPreviewer
    return {
        "same": [_same(make, patcher, clip, vae, case) for case in CASES],
        "others": {kind: _other(make, kind, path) for kind, path in arguments["checkpoints"].items() if kind != "sd15"},
        "several": _several(make, patcher, clip, vae),
        "left": _left(make, patcher, clip, vae),
        "training": _training(pack, make, patcher, clip, vae),
        "prior": _prior(pack, make, patcher, clip, vae, Path(arguments["base_directory"])),
        "interrupt": _interrupt(make, patcher, clip, vae),
        "said": _said(make, patcher, clip, vae),
    }


def _same(make: Any, patcher: Any, clip: Any, vae: Any, case: Any) -> dict[str, Any]:
    """Our picture and the file of the host's Save Image node, in and out of inference mode."""
    prompt, seed, settings = case
    wanted = _with_nodes(patcher, clip, vae, prompt, seed, settings)
    outside = make(patcher, clip, vae, **SIZE, **settings).preview([prompt], [seed])[0]
    with torch.inference_mode():
        inside = make(patcher, clip, vae, **SIZE, **settings).preview([prompt], [seed])[0]
    return {
        "equal": [_equal(outside, wanted), _equal(inside, wanted)],
        "size": [outside.mode, *outside.size],
        "values": _values(outside),
    }


def _with_nodes(patcher: Any, clip: Any, vae: Any, prompt: str, seed: int, settings: dict[str, Any]) -> Any:
    import folder_paths
    from PIL import Image

    import nodes

    options = {"cfg": 7.0, "sampler": "euler", "scheduler": "normal", "negative": "", **settings}
    with torch.inference_mode():
        encode = nodes.CLIPTextEncode().encode
        positive, negative = encode(clip, prompt)[0], encode(clip, options["negative"])[0]
        latent = nodes.EmptyLatentImage().generate(SIZE["width"], SIZE["height"])[0]
        how = [options[name] for name in ("steps", "cfg", "sampler", "scheduler")]
        samples = nodes.KSampler().sample(patcher, seed, *how, positive, negative, latent)[0]
        saved = nodes.SaveImage().save_images(nodes.VAEDecode().decode(vae, samples)[0], "wanted")
    name = saved["ui"]["images"][0]["filename"]
    with Image.open(Path(folder_paths.get_output_directory()) / name) as picture:
        picture.load()
    return picture


def _other(make: Any, kind: str, checkpoint: str) -> dict[str, Any]:
    """The same for another architecture, whose latents may have 16 channels."""
    patcher, vae, clip = small.load(kind), _vae(checkpoint), ShortTextEncoder(kind)
    drawn = _same(make, patcher, clip, vae, ("a cat", 3, {"steps": 2, "negative": "dog, bird"}))
    return {**drawn, "channels": patcher.get_model_object("latent_format").latent_channels}


def _vae(checkpoint: str) -> Any:
    import comfy.sd
    import comfy.utils

    tensors = comfy.utils.load_torch_file(checkpoint)
    prefixes = {"first_stage_model.": "", "vae.": ""}
    with torch.inference_mode():
        return comfy.sd.VAE(sd=comfy.utils.state_dict_prefix_replace(tensors, prefixes, filter_keys=True))


def _several(make: Any, patcher: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """Pictures of one call are those of many; prompts are encoded once."""
    counted = ShortTextEncoder("sd15")
    previewer = make(patcher, counted, vae, **SIZE, steps=1)
    prompts, seeds = ["one", "three", "one"], [1, 2, 3]
    together = previewer.preview(prompts, seeds)
    calls = counted.calls
    single = [previewer.preview([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    odd = make(patcher, clip, vae, width=71, height=65, steps=1).preview([""], [0])[0]
    return {
        "equal": [_equal(one, other) for one, other in zip(together, single, strict=True)],
        "differ": not _equal(together[0], together[2]),
        "encoded": [calls, counted.calls],
        "none": previewer.preview([], []),
        "odd": list(odd.size),
    }


def _left(make: Any, patcher: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """What a preview leaves behind: nothing, with the model loaded and the random numbers going on."""
    import comfy.model_management

    previewer = make(patcher, clip, vae, **SIZE, steps=1)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
    weights, patchers = _weights(patcher), _patchers(patcher)
    torch.manual_seed(9)
    wanted = torch.rand(3).tolist()
    torch.manual_seed(9)
    previewer.preview(["a"], [1])
    return {
        "random": torch.rand(3).tolist() == wanted,
        "weights": _weights(patcher) == weights,
        "patchers": _patchers(patcher) == patchers == 1,
        "runner": patcher.model.current_patcher is None,
        "loaded": any(entry.model is patcher for entry in comfy.model_management.current_loaded_models),
    }


def _patchers(patcher: Any) -> int:
    """Patchers of this model that live: a clone would be one more."""
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, type(patcher)) and thing.model is patcher.model)


def _weights(patcher: Any) -> dict[str, list[Any]]:
    named = patcher.model.named_parameters()
    return {name: [id(weight), weight.data_ptr(), str(weight.device)] for name, weight in named}


def _training(pack: Any, make: Any, patcher: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """A preview in the middle of training shows the adapter and changes nothing of what is trained."""
    training = import_module(".nodes.host.training", pack.__name__).training
    denoiser_type = import_module(".nodes.host.denoiser", pack.__name__).HostDenoiser
    previewer = make(patcher, clip, vae, **SIZE, steps=2)
    before = previewer.preview(["a cube"], [4])[0]
    with training(patcher):
        denoiser = denoiser_type(patcher)
        adapter = _adapter(pack, denoiser)
        plain = previewer.preview(["a cube"], [4])[0]
        with adapter.attach(denoiser.targets()):
            first = _gradients(denoiser, adapter)
            weights = _weights(patcher)
            adapted = previewer.preview(["a cube"], [4])[0]
            same_weights = _weights(patcher) == weights
            second = _gradients(denoiser, adapter)
            runner = patcher.model.current_patcher is patcher
            mode = torch.is_inference_mode_enabled() or not torch.is_grad_enabled()
    after = previewer.preview(["a cube"], [4])[0]
    return {
        "plain": [_equal(before, plain), _equal(before, after)],
        "adapted": not _equal(before, adapted),
        "same_gradients": all(torch.equal(one, other) for one, other in zip(first, second, strict=True)),
        "some_gradient": max(float(gradient.abs().max()) for gradient in second) > 0,
        "same_weights": same_weights,
        "runner": runner,
        "mode_kept": not mode,
    }


def _adapter(pack: Any, denoiser: Any) -> Any:
    core = import_module(".trilora_core.adapter", pack.__name__)
    config = import_module(".trilora_core.config", pack.__name__)
    adapter = core.TriLoRA.create(denoiser.targets(), config.AdapterConfig(rank=2), seed=0, data_hash="test")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in adapter.branches.values():
            branch.up.copy_(torch.randn(branch.up.shape, generator=generator) * 0.3)
    return adapter


def _gradients(denoiser: Any, adapter: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    latents, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    for parameter in adapter.trainable():
        parameter.grad = None
    prediction, target = denoiser.predict(
        latents, noise, denoiser.times(torch.tensor([0.4])), [small.condition("sd15", 0)]
    )
    (prediction - target).square().mean().backward()
    return [parameter.grad.clone() for parameter in adapter.trainable()]


def _prior(pack: Any, make: Any, patcher: Any, clip: Any, vae: Any, base: Path) -> dict[str, Any]:
    """Class pictures drawn to a folder, then not again."""
    from PIL import Image

    prior = import_module(".trilora_core.data.prior", pack.__name__)
    config = import_module(".trilora_core.config_data", pack.__name__)
    wanted = config.PriorConfig(folder=str(base / "input" / "dogs"), prompt="a dog\na cat", count=3, seed=7)
    previewer = make(patcher, clip, vae, **SIZE, steps=1)
    counts = [prior.ensure_prior(wanted, previewer) for _ in range(2)]
    with Image.open(base / "input" / "dogs" / "prior_00001.png") as picture:
        same = _equal(picture, previewer.preview(["a cat"], [8])[0])
    return {"counts": counts, "same": same, "key": len(prior.prior_key("base", wanted, previewer.settings))}


def _interrupt(make: Any, patcher: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """The host's interrupt, asked for during the second step, comes through and leaves the model usable."""
    import comfy.model_management as management

    previewer = make(patcher, clip, vae, **SIZE, steps=50)
    with _called(patcher.model.diffusion_model, lambda: management.interrupt_current_processing(True), at=2) as calls:
        try:
            previewer.preview(["a"], [1])
            raised = False
        except management.InterruptProcessingException:
            raised = True
    management.interrupt_current_processing(False)
    usable = make(patcher, clip, vae, **SIZE, steps=1).preview(["a"], [1])[0]
    return {"raised": raised, "steps": len(calls), "values": _values(usable)}


@contextmanager
def _called(module: Any, then: Callable[[], None], at: int) -> Iterator[list[int]]:
    """Call `then` in the forward number `at` of the module; gives a list that grows with every forward."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            then()

    handle = module.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def _said(make: Any, patcher: Any, clip: Any, vae: Any) -> dict[str, str]:
    previewer = make(patcher, clip, vae, **SIZE, steps=1)
    bad = {
        "no vae": lambda: make(patcher, clip, None, **SIZE),
        "width": lambda: make(patcher, clip, vae, width=8, height=64),
        "steps": lambda: make(patcher, clip, vae, **SIZE, steps=0),
        "cfg": lambda: make(patcher, clip, vae, **SIZE, cfg=float("nan")),
        "sampler": lambda: make(patcher, clip, vae, **SIZE, sampler="eular"),
        "scheduler": lambda: make(patcher, clip, vae, **SIZE, scheduler="later"),
        "counts": lambda: previewer.preview(["a", "b"], [1]),
        "seed": lambda: previewer.preview(["a"], [2**64 - 1]),
        "nan": lambda: _with_broken(patcher, lambda: previewer.preview(["a"], [6])),
    }
    return {name: _error(call) for name, call in bad.items()}


def _with_broken(patcher: Any, then: Callable[[], Any]) -> None:
    """Run with an output of the network that is not a number, as overflow makes it."""
    handle = patcher.model.diffusion_model.register_forward_hook(lambda _module, _args, output: output * float("nan"))
    try:
        then()
    finally:
        handle.remove()


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _equal(one: Any, other: Any) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def _values(picture: Any) -> int:
    """How many of the 256 values a picture has: few, if it were all clipped."""
    return len(set(picture.tobytes()))
