"""Per-block gradient checkpointing with exact gradients, also for blocks that change their inputs in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(blocks: Iterable[nn.Module], *, in_place_safe: bool = False) -> Iterator[None]:
    """Keep only the inputs of each block and compute its inside again in backward; undone at exit.

    Blocks must be deterministic (no active dropout). Tensors in their arguments, in tuples, lists and dicts of them
    too, get gradients, and so does every parameter that the inside uses, hooks of submodules included.
    in_place_safe=True leaves out the copies that protect inputs and saved tensors: only for blocks that change
    neither. Activation recomputation after Chen et al. 2016 (arXiv:1604.06174).
    """
    with ExitStack() as stack:
        for block in {id(block): block for block in blocks}.values():
            stack.enter_context(_replaced_forward(block, copies=not in_place_safe))
        yield


@contextmanager
def _replaced_forward(block: nn.Module, *, copies: bool) -> Iterator[None]:
    own = "forward" in vars(block)  # somebody else may have put a forward on this very module
    forward = block.forward
    setattr(block, "forward", partial(_run, forward, copies))  # noqa: B010 - mypy forbids assigning to a method
    try:
        yield
    finally:
        if own:
            setattr(block, "forward", forward)  # noqa: B010
        else:
            delattr(block, "forward")


def _run(forward: Callable[..., Any], copies: bool, /, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    tensors: list[Tensor] = []
    arguments = _take((args, kwargs), tensors)
    call = _Call(forward, copies, arguments, _autocast_state(tensors))
    call.originals = None if copies else (args, kwargs)
    # The inside may hold parameters of hooks that cannot be seen from here: the trigger makes the outputs need a
    # gradient even when no input does.
    trigger = torch.empty(0, requires_grad=True)
    outputs = _Recomputed.apply(call, trigger, *tensors)  # type: ignore[no-untyped-call]
    return _put(call.result, outputs)


@dataclass
class _Call:
    """One call of one block: its arguments with the tensors taken out, and how to repeat it."""

    forward: Callable[..., Any]
    copies: bool
    arguments: Any
    autocast: Callable[[], AbstractContextManager[Any]]
    originals: tuple[Any, Any] | None = None
    result: Any = None

    def first(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run with the caller's own arguments where nothing changes them, else with copies; remember the result."""
        args, kwargs = self.originals or _put(self.arguments, [tensor.clone() for tensor in tensors])
        self.originals = None
        found: list[Tensor] = []
        self.result = _take(self.forward(*args, **kwargs), found)
        return found

    def again(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Run as the first time, now recorded by autograd."""
        args, kwargs = _put(self.arguments, [leaf.clone() for leaf in leaves] if self.copies else leaves)
        found: list[Tensor] = []
        _take(self.forward(*args, **kwargs), found)
        return found


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, trigger: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        outputs = call.first(tensors)
        ctx.mark_non_differentiable(*(output for output in outputs if not _differentiable(output)))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        needed = ctx.needs_input_grad[2:]
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        with _saved_tensors_may_change() if call.copies else nullcontext():
            with torch.enable_grad(), call.autocast():
                outputs = call.again(leaves)
            pairs = [
                (output, gradient)
                for output, gradient in zip(outputs, gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            if pairs:  # none when nothing inside is trained and no input needs a gradient
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
        return (None, None, *(leaf.grad for leaf in leaves))


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _saved_tensors_may_change() -> AbstractContextManager[Any]:
    """Autograd clones what a block overwrites; a no-op inside such a context, because torch forbids nesting."""
    if torch.autograd.graph._allow_mutation_on_saved_tensors_enabled:
        return nullcontext()
    return torch.autograd.graph.allow_mutation_on_saved_tensors()


def _autocast_state(tensors: Sequence[Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """A maker of the autocast context that holds now, for backward, which runs outside of it."""
    device = tensors[0].device.type if tensors else "cpu"
    return partial(
        torch.autocast,
        device_type=device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,  # the cache may hold weights that were cast without a graph
    )


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor that was taken out of a structure."""

    index: int


def _take(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of tuples, lists and dicts with its tensors moved to the list and slots in their places."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    if type(value) in (tuple, list):
        return type(value)(_take(item, tensors) for item in value)
    if type(value) is dict:
        return {key: _take(item, tensors) for key, item in value.items()}
    return value


def _put(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The structure with its tensors back in their places; every tuple, list and dict in it is new."""
    if isinstance(value, _Slot):
        return tensors[value.index]
    if type(value) in (tuple, list):
        return type(value)(_put(item, tensors) for item in value)
    if type(value) is dict:
        return {key: _put(item, tensors) for key, item in value.items()}
    return value
