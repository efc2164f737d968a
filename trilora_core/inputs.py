"""The inputs of layers, summed up by forward pre-hooks while the model runs; layers with one input share its sums."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .branch import Target
from .errors import InputError
from .moments import Gatherer, Moments, Storage, chunks, gatherer, sketch_columns
from .start import derive_seed

__all__ = ["Inputs"]

Seen = tuple[weakref.ref[Tensor], int]  # the last input of a layer, and its version


class Inputs:
    """Sums of the inputs of all targets' modules, by the first file stem of each distinct input.

    Only sums are kept, never an input: about Storage.gathered_bytes for each distinct one, on the model's device.
    """

    def __init__(
        self, targets: Mapping[str, Target], storage: Storage, seed: int, leaders: Mapping[str, str] | None = None
    ) -> None:
        """`leaders` (layer -> layer whose input it shares) are found in the first forward pass where not given."""
        self._storage, self._seed = storage, seed
        module: Any = next(iter(targets.values())).module
        self.device: torch.device = module.weight.device
        self._modules: dict[str, nn.Module] = {}
        self._stems: dict[str, str] = {}
        first: dict[int, str] = {}
        for stem, target in targets.items():
            name = first.setdefault(id(target.module), stem)
            self._modules[name] = target.module
            self._stems[stem] = name
        self.leaders: dict[str, str] = dict(leaders or {})
        self._seen: dict[str, Seen] = {}  # by leader
        self._sums: dict[str, Gatherer] = {}
        self._tests: dict[int, Tensor | None] = {}  # by width

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sum up what the layers are given inside; every exit removes the hooks."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(self._hook(name)).remove)
            yield

    def by_stem(self) -> dict[str, str]:
        """The name of its input for each file stem; InputError for a layer that was never called."""
        for stem, name in self._stems.items():
            if name not in self.leaders:
                raise InputError(f"the model never uses the layer {stem}; leave it out with layers.exclude")
        return {stem: self.leaders[name] for stem, name in self._stems.items()}

    def moments(self) -> dict[str, Moments]:
        """The moments of each distinct input, on the CPU; what was summed up is let go. InputError names the layer."""
        found = {}
        for name in list(self._sums):
            try:
                found[name] = self._sums.pop(name).moments()
            except InputError as error:
                raise InputError(f"layer {name}: {error}") from error
        return found

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._take(name, module, args[0])

        return see

    def _take(self, name: str, module: nn.Module, x: Tensor) -> None:
        if name not in self.leaders:
            self.leaders[name] = next((leader for leader in self._seen if self._is_input(leader, x)), name)
        leader = self.leaders[name]
        if leader == name:
            self._seen[name] = (weakref.ref(x), x._version)
            self._add(name, module, x)
        elif not self._is_input(leader, x):
            raise InputError(
                f"the layers {leader} and {name} had one input at first and no longer do: something on the model"
                " changes it with the noise; calibrate the plain model"
            )

    def _is_input(self, leader: str, x: Tensor) -> bool:
        seen = self._seen.get(leader)
        return seen is not None and seen[0]() is x and seen[1] == x._version

    def _add(self, name: str, module: nn.Module, x: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            for part in _rows(module, x):
                for rows in chunks(part):
                    self._sum(name, rows.shape[1], rows.device).add(rows.float())

    def _sum(self, name: str, width: int, device: torch.device) -> Gatherer:
        if width not in self._tests:
            columns = sketch_columns(width, self._storage, derive_seed(self._seed, "sketch", width))
            self._tests[width] = None if columns is None else columns.to(device)  # once: each copy waits for a GPU
        if name not in self._sums:
            self._sums[name] = gatherer(width, self._storage, self._tests[width])
        return self._sums[name]


def _rows(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The input as rows (T, in) of the flattened weight, (T, in · kernel) for a convolution, picture by picture."""
    if not hasattr(module, "kernel_size"):
        yield x.flatten(0, -2)
        return
    conv: nn.Conv2d = module  # type: ignore[assignment]
    if x.ndim != 4 or isinstance(conv.padding, str):
        raise InputError("only 2D convolutions with numbers for their padding can be calibrated; leave it out")
    for picture in x.split(1):
        columns = F.unfold(picture, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        yield columns[0].T
