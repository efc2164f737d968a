"""Training beside what other nodes, flags of the host and other loads do to the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from . import bridge_training as gradients
from . import bridge_training_models as small
from . import faults

KINDS = ("sd15", "sd3")


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What came of each; arguments: checkpoint."""
    bench = faults._Bench(pack, arguments)
    return {
        "attention": {kind: _attention(pack, kind) for kind in KINDS},
        "moved": _moved(bench),
        "no_room": _no_room(bench),
        "no_vae": _no_vae(pack),
        "paged": _paged(pack),
    }


def _attention(pack: Any, kind: str) -> dict[str, int]:
    """Layers that get a gradient: as they are, under a node's own attention, under a flag of the host."""
    import comfy.model_management as management

    bridge, plain = gradients._Bridge(pack), small.load(kind)
    other = plain.clone()
    options = {**other.model_options.get("transformer_options", {}), "optimized_attention_override": _cut_off}
    other.model_options["transformer_options"] = options
    found = {"plain": _learning(bridge, kind, plain), "by_node": _learning(bridge, kind, other)}
    with _replaced(management, "sage_attention_enabled", lambda: True):
        found["by_flag"] = _learning(bridge, kind, plain)
    return found


def _cut_off(function: Any, *args: Any, **given: Any) -> Tensor:
    """An attention for sampling alone: its kernels know no backward, and autograd is not told."""
    return function(*args, **given).detach()


def _learning(bridge: Any, kind: str, patcher: Any) -> int:
    with bridge.training.training(patcher):
        denoiser = bridge.denoiser.HostDenoiser(patcher)
        targets = denoiser.targets()
        adapter = bridge.adapter(targets)
        with adapter.attach(targets):
            got = gradients._gradients(
                denoiser, adapter, gradients._batch(kind), denoiser.times(torch.tensor([0.05, 0.35, 0.6, 0.95]))
            )
    return sum(bool(value.abs().max() > 0) for name, value in got.items() if name.endswith(".up"))


def _moved(bench: Any) -> dict[str, bool]:
    """Each preview has the host move the weights, as on a card where the VAE takes the model's place."""
    bench.train("unmoved", bench.options(5))
    make = import_module(".nodes.host.preview", bench.host.__name__.partition(".nodes.")[0]).HostPreviewer
    inner = make.preview

    def preview(self: Any, *args: Any) -> Any:
        pictures = inner(self, *args)
        with torch.inference_mode():
            for module in self.model.model.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        module._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        return pictures

    with _replaced(make, "preview", preview):
        bench.train("moved", bench.options(5))
    return {"same": faults._same(bench.file("moved"), bench.file("unmoved")), "same_bits": bench.same_bits()}


def _no_room(bench: Any) -> dict[str, str]:
    """What is said where the model itself, and where what comes before the first step, does not fit."""

    def full(*_: Any, **__: Any) -> None:
        raise bench.memory.OUT_OF_MEMORY("CUDA out of memory")

    found = {}
    for place, owner, name in (
        ("model", bench.management, "load_models_gpu"),
        ("start", bench.host, "_prepare"),
    ):
        with _replaced(owner, name, full):
            found[place] = _complaint(lambda place=place: bench.train(f"full_{place}", bench.options(6)))
    found["untouched"] = str(bench.same_bits())
    return found


def _no_vae(pack: Any) -> str:
    """The VAE that the host makes of a checkpoint without one."""
    import comfy.sd

    empty = comfy.sd.VAE(sd={})
    encoder = import_module(".nodes.host.encode", pack.__name__).HostEncoder
    return _complaint(lambda: encoder(object(), empty))


class _Paged:
    """A patcher as newer hosts have on a GPU, where they page weights: training gets its ordinary twin."""

    def __init__(self, twin: Any) -> None:
        self.twin = twin

    def is_dynamic(self) -> bool:
        return True

    def get_non_dynamic_delegate(self) -> Any:
        return self.twin


def _paged(pack: Any) -> dict[str, Any] | None:
    """A file in float32 where the model is to be in float16: the twin, as that host's loader makes it there."""
    import comfy.model_management
    import comfy.sd

    try:
        import comfy.memory_management
    except ModuleNotFoundError:  # before 0.14
        return None
    if not hasattr(comfy.memory_management, "aimdo_enabled"):
        return None
    weights = {name: weight.clone() for name, weight in small.denoiser_weights("sd15").items()}
    with (
        _replaced(comfy.memory_management, "aimdo_enabled", True),
        _replaced(comfy.model_management, "unet_manual_cast", lambda *_, **__: None),  # as for a GPU that takes float16
        torch.inference_mode(),
    ):
        options = {"dtype": torch.float16}
        twin = comfy.sd.load_diffusion_model_state_dict(weights, model_options=options, disable_dynamic=True)
        left = {str(weight.dtype) for weight in twin.model.diffusion_model.parameters()}
        patcher = import_module(".nodes.host.training", pack.__name__).trainable_patcher(_Paged(twin))
    given = {str(weight.dtype) for weight in patcher.model.diffusion_model.parameters()}
    return {
        "left": sorted(left),
        "given": sorted(given),
        "learning": _learning(gradients._Bridge(pack), "sd15", patcher),
    }


def _complaint(action: Callable[[], Any]) -> str:
    try:
        action()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)
