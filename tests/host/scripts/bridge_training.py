"""Gradients of an adapter on the host's models, beside a reference that uses none of the bridge."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import bridge_training_models as small

RANK = 3
TOKENS = (77, 77, 154, 77)  # the third caption is longer


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for each kind of model in arguments["kinds"]."""
    return {kind: _measure(pack, kind) for kind in arguments["kinds"]}


def _measure(pack: Any, kind: str) -> dict[str, Any]:
    bridge = _Bridge(pack)
    batch = _batch(kind)
    patcher = small.load(kind)
    before = _contents(patcher.model)
    objects = _objects(patcher.model)
    answer: dict[str, Any] = {}
    with bridge.training.training(patcher):
        denoiser = bridge.denoiser.HostDenoiser(patcher)
        targets = denoiser.targets()
        adapter = bridge.adapter(targets)
        answer |= {"stems": list(targets), "architecture": denoiser.architecture, "blocks": len(denoiser.blocks())}
        answer["fingerprint"] = denoiser.base_fingerprint
        times = denoiser.times(torch.tensor([0.05, 0.35, 0.6, 0.95]))
        factors = {name: p.detach().clone() for name, p in adapter.named_parameters()}
        wanted = _reference(kind, targets, factors, adapter, batch, times)
        for name, context in (("plain", nullcontext), ("recomputed", lambda: bridge.recomputed(denoiser))):
            with adapter.attach(targets), context(), _counted(targets) as calls:
                got = _gradients(denoiser, adapter, batch, times)
            answer[name] = _difference(got, wanted)
            answer[f"{name}_calls"] = len(calls)
        with adapter.attach(targets), bridge.recomputed(denoiser):
            answer["one_by_one"] = _overall(_one_by_one(denoiser, adapter, batch, times), got)
        if kind == "sd15":
            with adapter.attach(targets):
                answer["native"] = _overall(_native(denoiser, adapter, batch, times), wanted)
        answer["trained"] = sorted({name.rpartition(".")[2] for name, g in wanted.items() if g.abs().max() > 0})
        answer["untouched_layers"] = [name for name, g in wanted.items() if name.endswith(".up") and not g.any()]
        answer["in_training"] = getattr(bridge.management, "in_training", None)
    answer["bit_identical"] = _contents(patcher.model) == before
    answer["same_objects"] = _objects(patcher.model) == objects
    answer["clean"] = _clean(patcher.model) and not getattr(bridge.management, "in_training", False)
    answer["clean_after_error"] = _after_error(bridge, patcher) and _contents(patcher.model) == before
    return answer


class _Bridge:
    """The pack's modules that are under test."""

    def __init__(self, pack: Any) -> None:
        def load(name: str) -> Any:
            return import_module(name, pack.__name__)

        self.denoiser = load(".nodes.host.denoiser")
        self.training = load(".nodes.host.training")
        self.core = load(".trilora_core.adapter")
        self.config = load(".trilora_core.config")
        self.recompute = load(".trilora_core.recompute")
        self.management = import_module("comfy.model_management")

    def adapter(self, targets: Any) -> Any:
        """An adapter with random factors, none of them zero."""
        config = self.config.AdapterConfig(rank=RANK, alpha=2.0)
        adapter = self.core.TriLoRA.create(targets, config, seed=0, data_hash="test")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for branch in adapter.branches.values():
                branch.up.copy_(torch.randn(branch.up.shape, generator=generator) * 0.05)
        return adapter

    def recomputed(self, denoiser: Any) -> Any:
        return self.recompute.checkpointed(denoiser.blocks(), in_place_safe=denoiser.in_place_safe)


@contextmanager
def _counted(targets: Any) -> Any:
    """A list that grows with every forward of the first adapted layer."""
    calls: list[int] = []
    handle = next(iter(targets.values())).module.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def _batch(kind: str) -> tuple[Tensor, Tensor, list[Any]]:
    """Four latents, their noise, and four different captions."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(4, small.channels(kind), 8, 8, generator=generator)
    conditions = [small.condition(kind, seed, tokens) for seed, tokens in enumerate(TOKENS)]
    return latents, torch.randn(latents.shape, generator=generator), conditions


def _gradients(denoiser: Any, adapter: Any, batch: Any, times: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean squared error, through the bridge."""
    _clear(adapter)
    prediction, target = denoiser.predict(*batch[:2], times, batch[2])
    (prediction - target).square().mean().backward()
    return _taken(adapter)


def _one_by_one(denoiser: Any, adapter: Any, batch: Any, times: Tensor) -> dict[str, Tensor]:
    """The same from four batches of one."""
    _clear(adapter)
    latents, noise, conditions = batch
    for i in range(4):
        prediction, target = denoiser.predict(latents[i : i + 1], noise[i : i + 1], times[i : i + 1], [conditions[i]])
        ((prediction - target).square().mean() / 4).backward()
    return _taken(adapter)


def _native(denoiser: Any, adapter: Any, batch: Any, times: Tensor) -> dict[str, Tensor]:
    """The same through calc_cond_batch, as the host's own Train LoRA node calls the model."""
    import comfy.sampler_helpers
    import comfy.samplers

    _clear(adapter)
    latents, noise, conditions = batch
    model = denoiser.model
    clean = model.process_latent_in(latents)
    noisy = model.model_sampling.noise_scaling(times, noise, clean)
    conds = {"positive": comfy.sampler_helpers.convert_cond(conditions)}
    conds = comfy.samplers.process_conds(model, noise, conds, noise.device, latent_image=clean, seed=0)
    denoised = comfy.samplers.calc_cond_batch(model, [conds["positive"]], noisy, times, {"transformer_options": {}})[0]
    column = times.reshape(-1, 1, 1, 1)
    ((noisy - denoised) / column - noise).square().mean().backward()
    return _taken(adapter)


def _reference(
    kind: str, targets: Any, factors: dict[str, Tensor], adapter: Any, batch: Any, times: Tensor
) -> dict[str, Tensor]:
    """Gradients from the dense weights W0 + ΔW of a second copy: no hook, no checkpoint, one sample at a time."""
    copy = small.load(kind, inference=False)
    model = copy.model
    model.requires_grad_(False)
    names = {stem: _module_name(targets[stem].module) for stem in targets}
    deltas = _deltas(adapter, {name: value.clone().requires_grad_() for name, value in factors.items()})
    weights: dict[str, Tensor] = {}
    with torch.no_grad():
        for stem, (_, delta) in deltas.items():
            module = model.get_submodule(names[stem])
            module.weight.requires_grad_(True)
            _rows(module.weight, targets[stem].rows).add_(delta.detach())
            weights[stem] = module.weight
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        for i in range(4):
            _network_loss(
                kind, model, [part[i : i + 1] for part in batch[:2]], batch[2][i], times[i : i + 1]
            ).backward()
    for stem, (_, delta) in deltas.items():
        gradient = weights[stem].grad
        gradient = torch.zeros_like(weights[stem]) if gradient is None else gradient
        delta.backward(_rows(gradient, targets[stem].rows))
    return {f"{stem}.{name}": p.grad for stem, (parts, _) in deltas.items() for name, p in parts.items()}


def _network_loss(kind: str, model: Any, pair: list[Tensor], condition: Any, sigma: Tensor) -> Tensor:
    """A quarter of one sample's loss, straight from the network and the textbook's formulas."""
    latent, noise = pair
    clean = model.process_latent_in(latent)
    extra: dict[str, Any] = {}
    if kind in ("sd3", "flux"):
        noisy, target = sigma * noise + (1 - sigma) * clean, noise - clean
        scaled, step = noisy, sigma * (1000 if kind == "sd3" else 1)
        extra["y"] = condition[1]["pooled_output"]
        if kind == "flux":
            extra["guidance"] = torch.tensor([3.5])
    else:
        noisy, target = clean + sigma * noise, noise
        scaled = noisy / (sigma**2 + 1) ** 0.5
        step = (model.model_sampling.sigmas - sigma).abs().argmin().reshape(1).float()
        if kind == "sdxl":
            size = [model.embedder(torch.tensor([value])) for value in (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)]
            extra["y"] = torch.cat([condition[1]["pooled_output"], torch.cat(size).flatten()[None]], dim=1)
    output = model.diffusion_model(scaled, step, context=condition[0], transformer_options={}, **extra)
    return (output - target).square().mean() / 4


def _deltas(adapter: Any, leaves: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """stem -> (leaves by name, ΔW = scale · up · diag(Σ) · down)."""
    found = {}
    for stem, branch in adapter.branches.items():
        parts = {name: leaves[f"{stem}.{name}"] for name in ("up", "sigma", "down")}
        found[stem] = (parts, branch.scale * parts["up"] @ torch.diag(parts["sigma"]) @ parts["down"])
    return found


def _module_name(module: Any) -> str:
    return _NAMES[id(module)]


_NAMES: dict[int, str] = {}


def _objects(model: Any) -> dict[str, int]:
    """The identity of every weight and buffer; remembers the names of the modules."""
    _NAMES.clear()
    _NAMES.update({id(module): name for name, module in model.named_modules()})
    return {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _rows(weight: Tensor, rows: tuple[int, int] | None) -> Tensor:
    """The rows of a weight as (out, in · kernel), over the same memory."""
    flat = weight.flatten(1)
    return flat if rows is None else flat[rows[0] : rows[1]]


def _clear(adapter: Any) -> None:
    for parameter in adapter.trainable():
        parameter.grad = None


def _taken(adapter: Any) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in adapter.named_parameters()
        if p.requires_grad
    }


def _difference(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative error of any gradient; those that are all but zero count against the mean."""
    assert got.keys() == wanted.keys()
    floor = 1e-3 * sum(value.norm() for value in wanted.values()) / len(wanted)
    return max(float((got[name] - value).norm() / value.norm().clamp(min=floor)) for name, value in wanted.items())


def _overall(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The relative error of all gradients as one vector."""
    wrong = torch.cat([(got[name] - value).flatten() for name, value in wanted.items()])
    return float(wrong.norm() / torch.cat([value.flatten() for value in wanted.values()]).norm())


def _contents(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _clean(model: Any) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def _after_error(bridge: _Bridge, patcher: Any) -> bool:
    """Leave the contexts by the host's own interrupt; the model must be as before."""
    objects = _objects(patcher.model)
    interrupt = bridge.management.InterruptProcessingException
    with suppress(interrupt), _everything(bridge, patcher):
        raise interrupt
    flag = getattr(bridge.management, "in_training", False)
    return _clean(patcher.model) and _objects(patcher.model) == objects and not flag


@contextmanager
def _everything(bridge: _Bridge, patcher: Any) -> Any:
    with ExitStack() as stack:
        stack.enter_context(bridge.training.training(patcher))
        denoiser = bridge.denoiser.HostDenoiser(patcher)
        targets = denoiser.targets()
        stack.enter_context(bridge.adapter(targets).attach(targets))
        stack.enter_context(bridge.recomputed(denoiser))
        yield
