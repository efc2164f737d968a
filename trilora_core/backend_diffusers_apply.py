"""Apply a saved adapter to a diffusers pipeline at run time: forward hooks, nothing merged, undone at exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .fileformat import Adapter, Layer
from .keys import stem_of_diffusers_module
from .spectral import balanced

__all__ = [
    "apply_adapter",
    "architecture_of",
    "denoiser_modules",
    "modules_by_stem",
    "stem_of",
    "text_encoders",
    "text_modules",
]

_COMPONENTS = ("text_encoder", "text_encoder_2")
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@contextmanager
def apply_adapter(pipe: Any, adapter: Adapter, strength: float = 1.0) -> Iterator[None]:
    """Add strength · ΔW to the U-Net and text encoders of a pipeline within this context; no weight is changed.

    Several may be nested, negative strengths subtract, and at strength 0 the pipeline is left as it is. Raises
    InputError, before anything is changed, when the adapter is for another model or the strength is not finite.
    """
    if not math.isfinite(strength):
        raise InputError(f"strength is {strength!r}; wanted a finite number (0 = no effect, 1 = as trained)")
    modules = modules_by_stem(pipe)
    _check_fit(pipe, adapter, modules)
    with ExitStack() as stack:
        for stem, layer in adapter.layers.items() if strength else ():
            hook = _hook(layer, strength, modules[stem].weight)
            stack.callback(modules[stem].register_forward_hook(hook).remove)
        yield


def architecture_of(pipe: Any) -> str:
    """Tell "sd15" or "sdxl" from a pipeline's U-Net; InputError for other models."""
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise InputError(f"a {type(pipe).__name__} has no U-Net; give a Stable Diffusion 1.5 or SDXL pipeline")
    if unet.config.addition_embed_type == "text_time":
        if getattr(pipe, "text_encoder", None) is None or getattr(pipe, "text_encoder_2", None) is None:
            raise InputError("this SDXL pipeline lacks one of its two text encoders (a refiner?); give the base model")
        return "sdxl"
    if unet.config.addition_embed_type is not None or unet.config.cross_attention_dim == 1024:
        raise InputError(
            "this U-Net is not that of SD 1.5 or SDXL (SD 2 has captions of width 1024); give one of these"
        )
    return "sd15"


def modules_by_stem(pipe: Any) -> dict[str, Any]:
    """Every Linear and Conv of the U-Net and the text encoders by canonical stem."""
    return denoiser_modules(pipe) | text_modules(pipe)


def text_encoders(pipe: Any) -> dict[str, Any]:
    """The text encoders that a pipeline has, by the names of its components."""
    found = {name: getattr(pipe, name, None) for name in _COMPONENTS}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def text_modules(pipe: Any) -> dict[str, Any]:
    """Every Linear of the text encoders by canonical stem; of layers that PEFT has wrapped, what is inside."""
    return {
        stem_of(pipe, f"{component}.{name.removesuffix('.base_layer')}"): module
        for component, encoder in text_encoders(pipe).items()
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    }


def denoiser_modules(pipe: Any) -> dict[str, Any]:
    """Every Linear and Conv of the U-Net by canonical stem; of layers that PEFT has wrapped, what is inside."""
    return {
        stem_of(pipe, name.removesuffix(".base_layer")): module
        for name, module in pipe.unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def stem_of(pipe: Any, name: str) -> str:
    """Canonical stem of a module of the U-Net, or of a text encoder when its name begins with `text_encoder`."""
    layers = pipe.unet.config.layers_per_block
    counts = {layers} if isinstance(layers, int) else set(layers)
    architecture = architecture_of(pipe)
    if architecture == "sdxl" and len(counts) > 1:
        raise InputError(f"the U-Net has blocks of {sorted(counts)} layers, for which SDXL files have no layer names")
    return stem_of_diffusers_module(architecture, name, layers_per_block=max(counts))


def _check_fit(pipe: Any, adapter: Adapter, modules: dict[str, Any]) -> None:
    missing = [stem for stem in adapter.layers if stem not in modules]
    if missing:
        raise InputError(
            f"the adapter has {len(missing)} of {len(adapter.layers)} layers that this "
            f"{_MODELS[architecture_of(pipe)]} model lacks, such as {missing[0]}; "
            "apply it to the kind of model it was trained on"
        )
    for stem, layer in adapter.layers.items():
        given = (layer.svd.u.shape[-2], layer.svd.vh.shape[-1])
        weight = modules[stem].weight
        wanted = (weight.shape[0], weight[0].numel())
        if given != wanted:
            raise InputError(
                f"layer {stem} of the adapter is for a weight of {given[0]}x{given[1]}, this model has "
                f"{wanted[0]}x{wanted[1]}; apply it to the kind of model it was trained on"
            )


_MODELS = {"sd15": "SD 1.5", "sdxl": "SDXL"}


def _hook(layer: Layer, strength: float, weight: Tensor) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor]:
    up, down = balanced(layer.svd)
    up = (up * strength).to(weight.device)
    down = down.to(weight.device)
    if layer.kernel:
        up, down = up.reshape(*up.shape, *[1] * len(layer.kernel)), down.unflatten(1, (-1, *layer.kernel))

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        factors = up.to(x.device, x.dtype), down.to(x.device, x.dtype)
        return output + _delta(module, layer.kernel, x, *factors).to(output.dtype)

    return hook


def _delta(module: Any, kernel: tuple[int, ...], x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    if not kernel:
        return F.linear(F.linear(x, down), up)
    conv = _CONV[len(kernel)]
    return conv(conv(x, down, None, module.stride, module.padding, module.dilation), up)
