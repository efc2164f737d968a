"""The contexts that training on the host's own model needs, all of them undone at exit: the base is never copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ...trilora_core.errors import InputError
from ...trilora_core.memory import OUT_OF_MEMORY
from . import models
from .runtime import rounds_away

__all__ = ["trainable_patcher", "training"]

EVERYTHING = 1e20  # bytes: have the host move its other models off the device
SAVED_BY_NORMS = ("img_norm1", "img_norm2", "txt_norm1", "txt_norm2", "pre_norm", "layer_norm1", "layer_norm2")


def trainable_patcher(patcher: Any) -> Any:
    """The patcher to train on: itself, or the ordinary twin of one whose weights the host pages in and out.

    Raises InputError where the host cannot make the twin.
    """
    if not (hasattr(patcher, "is_dynamic") and patcher.is_dynamic()):
        return patcher
    try:
        twin = patcher.get_non_dynamic_delegate()
    except RuntimeError as error:
        raise InputError(
            f"the host pages this model's weights in and out and cannot make a whole copy ({error}); load it with a"
            " checkpoint or diffusion model loader, or start the host with --disable-dynamic-vram"
        ) from error
    _in_own_format(twin.model)
    return twin


def _in_own_format(model: nn.Module) -> None:
    """Give the weights of a twin the number format that their layers compute in: the host leaves some in the file's."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            wanted = getattr(module, f"{name}_comfy_model_dtype", None)
            if wanted is not None and weight.dtype is not wanted and type(weight) in (Tensor, nn.Parameter):
                setattr(module, name, nn.Parameter(weight.to(wanted), requires_grad=False))


@contextmanager
def training(patcher: Any, text: Any | None = None) -> Iterator[Callable[[], None]]:
    """Load the model whole and make its frozen weights usable by autograd, in normal mode; undone at every exit.

    `patcher` is what `trainable_patcher` returned, `text` the patcher of a HostTextEncoder that is trained along. The
    body runs with inference mode off; it gets a function that does the same again, for when the host has loaded
    something else in between and may have moved the weights. Raises InputError where the host would keep a part of one
    off its device or has no room for it, and where it runs them on two devices.
    """
    patchers = [patcher] if text is None else [patcher, text]
    _load(patchers)
    with ExitStack() as stack:
        stack.callback(comfy.model_management.soft_empty_cache)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_in_training())
        frozen = stack.enter_context(ExitStack())
        _freeze(frozen, patchers)
        stack.enter_context(_running(patcher))
        if models.detect(patcher.model).in_place:
            stack.enter_context(_norms_keep_their_inputs(patcher.model.diffusion_model))
        if text is not None:
            stack.enter_context(_norms_keep_their_inputs(text.model))

        def again() -> None:
            frozen.close()
            _load(patchers)
            _freeze(frozen, patchers)

        yield again


def _freeze(stack: ExitStack, patchers: Sequence[Any]) -> None:
    for loaded in patchers:
        stack.enter_context(_normal_tensors(loaded.model))
        stack.enter_context(_whole_products(loaded.model))


def _load(patchers: Sequence[Any]) -> None:
    devices = [patcher.load_device for patcher in patchers]
    if len(set(devices)) > 1:
        raise InputError(
            f"the host runs the model on {devices[0]} and its text encoder on {devices[1]}; to train both, load the"
            " clip for the model's device (device of its loader on default, no --lowvram), or set text_encoder_rate"
            " to 0"
        )
    try:
        with torch.inference_mode():  # as in a node: weights that inference mode made may only be moved in it
            comfy.model_management.load_models_gpu(list(patchers), memory_required=EVERYTHING, force_full_load=True)
    except OUT_OF_MEMORY:
        raise InputError(
            f"the model does not fit into the memory of {devices[0]} as a whole, which training needs: free memory, or"
            " use a smaller or quantised model"
        ) from None
    if any(getattr(patcher.model, "model_lowvram", False) for patcher in patchers):
        raise InputError(
            "the host keeps a part of this model off the device (--novram or too little memory); training needs all of"
            " it there: free memory, or use a smaller or quantised model"
        )


@contextmanager
def _in_training() -> Iterator[None]:
    """Tell the host that gradients are wanted: without it, newer hosts rotate queries by a kernel that has none."""
    management = comfy.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    before = management.in_training
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


@contextmanager
def _running(patcher: Any) -> Iterator[None]:
    """What the host does around sampling: its callbacks, and the model knows its patcher."""
    patcher.pre_run()
    try:
        yield
    finally:
        patcher.cleanup()


@contextmanager
def _whole_products(model: nn.Module) -> Iterator[None]:
    """Have fp8 and quantised layers multiply what their weights stand for, by a weight function that changes nothing.

    Without one, hosts round the layer's input too where the hardware or the format can multiply such numbers: the older
    ones then have no gradient, the newer ones one that is a few percent off.
    """
    changed = []
    for module in model.modules():
        weight, functions = getattr(module, "weight", None), getattr(module, "weight_function", None)
        if isinstance(weight, Tensor) and functions is not None and rounds_away(module, weight):
            module.weight_function = [*functions, _as_it_is]
            changed.append((module, module.weight_function, functions))
    try:
        yield
    finally:
        for module, ours, functions in changed:
            if module.weight_function is ours:  # not one that the host has set anew in the meantime
                module.weight_function = functions


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def _normal_tensors(model: nn.Module) -> Iterator[None]:
    """Replace weights and buffers of inference mode by normal tensors over the same memory; freeze the others."""
    replaced = [_replace(owner, name) for owner, name in _inference_tensors(model)]
    unfrozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in unfrozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in unfrozen:
            parameter.requires_grad_(True)
        for owner, name, original, stand_in in replaced:
            # one that the host has moved or exchanged in the meantime stays as the host left it
            if owner.get(name) is stand_in and stand_in.data_ptr() == original.data_ptr():
                owner[name] = original


def _inference_tensors(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """(dict, name) of every parameter and buffer of inference mode; tensor classes of quantised weights stay out."""
    return [
        (owner, name)
        for module in model.modules()
        for owner in (module._parameters, module._buffers)
        for name, tensor in owner.items()
        if tensor is not None and type(tensor) in (Tensor, nn.Parameter) and tensor.is_inference()
    ]


def _replace(owner: dict[str, Any], name: str) -> tuple[dict[str, Any], str, Tensor, Tensor]:
    original = owner[name]
    stand_in: Tensor = torch.empty(0, dtype=original.dtype, device=original.device)
    stand_in.set_(original.untyped_storage(), original.storage_offset(), original.size(), original.stride())
    if isinstance(original, nn.Parameter):
        stand_in = nn.Parameter(stand_in, requires_grad=False)
    owner[name] = stand_in
    return owner, name, original, stand_in


@contextmanager
def _norms_keep_their_inputs(model: nn.Module) -> Iterator[None]:
    """Give the norms of Flux and CLIP copies: autograd saves what they saw, and the blocks then add to it in place.

    torch.autograd.graph.allow_mutation_on_saved_tensors would do, but its bookkeeping grows with every step.
    """
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in SAVED_BY_NORMS:
                stack.callback(module.register_forward_pre_hook(_copied).remove)
        yield


def _copied(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    return (args[0].clone(), *args[1:]) if torch.is_grad_enabled() else None
