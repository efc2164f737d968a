"""What some operations take of a device's memory, by watching every one of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["OUT_OF_MEMORY", "Meter", "statistics"]

OUT_OF_MEMORY: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""What torch raises on an accelerator that is full. A computer whose own memory is full ends the process instead."""


class Meter(TorchDispatchMode):
    """Watches every operation: `peak` bytes beyond the start, and `outside`, those of frozen tensors that were read.

    On an accelerator the peak is its allocator's own; elsewhere storages are counted from the operation that returns
    them to their end. What a kernel allocates for itself is not seen there: on the CPU that is next to nothing.
    """

    def __init__(self, device: torch.device, params: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outside = self.single = self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[Any] | None] = {p.untyped_storage().data_ptr(): None for p in params}
        self._device, self._module, self._before = device, statistics(device), 0

    def __enter__(self) -> Meter:
        if self._module is not None:
            self._module.reset_peak_memory_stats(self._device)
            self._before = self._module.memory_allocated(self._device)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._module is not None:
            self.peak = self._module.max_memory_allocated(self._device) - self._before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation; what goes in unknown was there before, what comes out unknown is new."""
        for part in _tensors((args, kwargs)):
            self._read(part)
        result = func(*args, **(kwargs or {}))
        for part in _tensors(result):
            self._made(part)
        return result

    def _read(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != self._device.type or storage.data_ptr() in self._known or not storage.nbytes():
            return
        self._known[storage.data_ptr()] = None
        self.outside += storage.nbytes()
        self.single += storage.nbytes() if tensor.dtype is torch.float32 else 0

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if tensor.device.type != self._device.type or key in self._known or not size:
            return

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self._live -= size

        self._known[key] = weakref.ref(storage, gone)
        self._live += size
        if self._module is None:
            self.peak = max(self.peak, self._live)


def _tensors(structure: Any) -> Iterator[Tensor]:
    """The plain tensors in a structure; those inside of a quantised one in its place."""
    for leaf in tree_iter(structure):
        if isinstance(leaf, Tensor):
            yield from _plain(leaf)


def _plain(tensor: Any) -> Iterator[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        if tensor.layout is torch.strided:  # others have no storage of their own
            yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain(getattr(tensor, name))


def statistics(device: torch.device) -> Any:
    """torch's module of an accelerator whose allocator keeps count, or None."""
    module = None if device.type == "cpu" else getattr(torch, device.type, None)
    return module if hasattr(module, "max_memory_allocated") else None
