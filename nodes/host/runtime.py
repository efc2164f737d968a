"""Add an adapter to the outputs of layers while a model is loaded, for weights that merging would round away.

A forward hook per layer, so any number of adapters stack, in any order, on any row range of a fused layer. The host
loads and unloads the hooks with the model, as it does its own injections.
"""

from __future__ import annotations

import re
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.ops
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

__all__ = ["Hooks", "Part", "host_adapter", "install", "possible", "rounds_away"]

NAME = "trilora"
# Of models that newer hosts run in INT8: they use these weights without a call of the layer, so no hook is heard.
CALLED_PAST = re.compile(r"\.(ffn\.2|net\.2|fc2|down_proj)\.weight")


@dataclass(frozen=True)
class Part:
    """One layer's change: up (out, k) · diag(gain) · down (k, in · kernel), all float32; gain holds the strength.

    `path` is the module's name in the host's model; `rows` is the first row and the number of rows that change, None
    for all.
    """

    path: str
    up: Tensor
    gain: Tensor
    down: Tensor
    rows: tuple[int, int] | None = None
    _cast: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The forward hook: output + up · down · input, on the rows that the part names."""
        up, down = self._factors(args[0])
        change = (_convolved if isinstance(module, nn.Conv2d) else _multiplied)(module, args[0], up, down)
        if self.rows is not None:
            start, length = self.rows
            change = functional.pad(change, (start, output.shape[-1] - start - length))
        return output + change.to(output.dtype)

    def forget(self) -> None:
        """Free the factors that were converted for the layer's device."""
        self._cast.clear()

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        place = (like.device, like.dtype)
        if place not in self._cast:
            root = self.gain.abs().sqrt()  # on both sides, so that neither falls below what half precision holds
            up, down = self.up * (root * self.gain.sign()), root.unsqueeze(1) * self.down
            self._cast[place] = (up.to(like.device, like.dtype), down.to(like.device, like.dtype))
        return self._cast[place]


class Hooks:
    """The hooks of one adapter on every host model that it is loaded on, as an injection of the host."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._handles: weakref.WeakKeyDictionary[nn.Module, list[RemovableHandle]] = weakref.WeakKeyDictionary()

    def inject(self, patcher: Any) -> None:
        """Hook the layers of the patcher's model; a second call changes nothing."""
        self.eject(patcher)
        modules = [(comfy.utils.get_attr(patcher.model, part.path), part) for part in self.parts]
        self._handles[patcher.model] = [module.register_forward_hook(part) for module, part in modules]

    def eject(self, patcher: Any) -> None:
        """Take the hooks off again; harmless where there are none."""
        for handle in self._handles.pop(patcher.model, []):
            handle.remove()
        for part in self.parts:
            part.forget()


def host_adapter(up: Tensor, gain: Tensor, down: Tensor) -> LoRAAdapter:
    """The host's own adapter for up (out, k) · diag(gain) · down (k, in · kernel).

    The gain goes where a LoRA with a middle convolution has its core, so that the large factors are shared, not copied:
    a moved slider then costs a small matrix a layer.
    """
    return LoRAAdapter(set(), (up, down, None, torch.diag(gain)[:, :, None, None], None, None))


def rounds_away(module: nn.Module, weight: Tensor) -> bool:
    """True for weights too coarse to hold a small change: fp8 (by dtype) and quantised (by dtype or tensor class)."""
    # A host that pages weights in keeps the file's dtype in the tensor and the one that it will use on the module.
    dtype = getattr(module, "weight_comfy_model_dtype", None) or weight.dtype
    return type(weight) not in (Tensor, nn.Parameter) or not dtype.is_floating_point or dtype.itemsize == 1


def possible(module: nn.Module, where: Any) -> bool:
    """True where a hook can add the change: linear layers (a row range too) and ungrouped 2D convolutions."""
    if isinstance(module, nn.Conv2d):
        return isinstance(where, str) and module.groups == 1 and module.padding_mode == "zeros"
    if isinstance(module, nn.Embedding) or not hasattr(module, "in_features") or _called_past(module, where):
        return False
    return isinstance(where, str) or (len(where) == 2 and where[1][0] == 0)


def _called_past(module: nn.Module, where: Any) -> bool:
    in_int8 = getattr(getattr(module, "weight", None), "_layout_cls", "") == "TensorWiseINT8Layout"
    if not in_int8 or not hasattr(comfy.ops, "linear_input_act"):
        return False
    return CALLED_PAST.search(where if isinstance(where, str) else where[0]) is not None


def install(patcher: Any, parts: Sequence[Part]) -> None:
    """Have the host hook these layers whenever it loads the patcher's model, and unhook them when it unloads it."""
    patcher.set_injections(f"{NAME}_{uuid.uuid4().hex}", [Hooks(parts)])
    patcher.remove_callbacks_with_key(CallbacksMP.ON_CLONE, NAME)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, NAME, _not_injected)
    _not_injected(None, patcher)


def _not_injected(_original: Any, clone: Any) -> None:
    # A clone copies "is injected" from a loaded original although the host has loaded no hook on its behalf. Left so,
    # patching or deleting the clone would hook or unhook the original's model.
    clone.is_injected = False


def _multiplied(_module: nn.Module, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, down), up)


def _convolved(module: nn.Conv2d, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    kernel = down.reshape(down.shape[0], module.in_channels, *module.kernel_size)
    hidden = functional.conv2d(x, kernel, None, module.stride, module.padding, module.dilation)
    return functional.conv2d(hidden, up.reshape(*up.shape, 1, 1))
