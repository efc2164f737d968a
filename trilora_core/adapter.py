"""The trainable three-factor adapter: ΔW = scale · up · diag(Σ) · down (TriLoRA, eq. 5) on every layer, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import spectral
from .branch import Branch, Target
from .calibration import Calibration
from .config import AdapterConfig
from .errors import InputError
from .fileformat import Layer
from .objective import orthogonality
from .start import check_start, derive_seed, fresh, load_start, set_apart
from .transfer import upload

__all__ = ["TriLoRA", "whole_hook"]


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
RowBranch = tuple[tuple[int, int], Branch]


class TriLoRA:
    """All branches of one adapter, by canonical layer name (file stem)."""

    def __init__(self, branches: dict[str, Branch], config: AdapterConfig) -> None:
        self.branches = branches
        self.config = config
        self.carried: dict[str, Layer] = {}  # layers of a start adapter that are not trained here

    @classmethod
    def create(
        cls,
        targets: Mapping[str, Target],
        config: AdapterConfig,
        *,
        seed: int,
        data_hash: str,
        device: Any = None,
        calibration: Calibration | None = None,
    ) -> TriLoRA:
        """Start an adapter whose ΔW is zero: Gaussian `down` (std 1/r), zero `up`, Σ by name from W0.

        The random rows depend on (seed, layer name, data_hash): adapters that share them look 90% alike for no reason.
        The init "contrast" takes the rows from `calibration`; layers that it does not have start as with the others.
        Raises InputError when there is nothing to adapt, a target cannot be, or the calibration is missing.
        """
        if not targets:
            raise InputError("the model has no layer to adapt; choose other target layers")
        if config.init == "contrast" and calibration is None:
            raise InputError('init is "contrast", which needs a calibration of this model and data set; make one')
        branches = {stem: fresh(stem, target, config, seed, data_hash, device) for stem, target in targets.items()}
        if config.init == "contrast" and calibration is not None:
            set_apart(branches, calibration)
        return cls(branches, config)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every factor as `stem.up`, `stem.sigma`, `stem.down`; a fixed Σ has requires_grad False."""
        for stem, branch in self.branches.items():
            for name, parameter in branch.parameters().items():
                yield f"{stem}.{name}", parameter

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the optimizer moves, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters() if parameter.requires_grad]

    @contextmanager
    def attach(self, targets: Mapping[str, Target]) -> Iterator[None]:
        """Add the adapter to the layers' outputs by forward hooks; every exit removes them.

        Raises InputError before anything is changed when a layer is missing or has another shape.
        """
        hooks: list[tuple[nn.Module, Hook]] = []
        fused: dict[int, tuple[nn.Module, list[RowBranch]]] = {}
        for stem, branch in self.branches.items():
            _check_fit(stem, branch, targets)
            module, rows = targets[stem].module, targets[stem].rows
            if rows is None:
                hooks.append((module, whole_hook(branch)))
            else:
                fused.setdefault(id(module), (module, []))[1].append((rows, branch))
        hooks += [(module, _rows_hook(parts)) for module, parts in fused.values()]
        with ExitStack() as stack:
            for module, hook in hooks:
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    @contextmanager
    def rank_dropout(self, seed: int, number: int) -> Iterator[None]:
        """Leave each direction out with the probability p of the options in what runs inside; the others weigh 1/(1-p).

        Which ones depends on (seed, number) alone. The backward pass belongs inside too: checkpointing computes the
        forward again there. `canonical` sees no mask. Directions are the units of dropout (Srivastava et al. 2014).
        """
        share = self.config.rank_dropout
        if not share:
            yield
            return
        generator = torch.Generator().manual_seed(derive_seed(seed, "rank dropout", number))
        branches = list(self.branches.values())
        try:
            for branch, mask in zip(branches, _drawn_masks(branches, share, generator), strict=True):
                branch.mask = mask
            yield
        finally:
            for branch in branches:
                branch.mask = None

    def orthogonality(self) -> Tensor:
        """Mean over layers of ‖UᵀU - I‖² + ‖VVᵀ - I‖² of up's columns and down's rows at unit length, a scalar."""
        branches = self.branches.values()
        factors = [factor for branch in branches for factor in (branch.up.T, branch.down)]
        return orthogonality(factors) / len(branches)

    @torch.no_grad()
    def canonical(self) -> dict[str, Layer]:
        """Every layer in true SVD form, companion and carried layers included; on the CPU where the device is full."""
        factors = self._factors()
        try:
            found = spectral.canonical_many(factors)
        except RuntimeError:  # torch or cuSOLVER found no room there, for want of which nothing trained may be lost
            there = {stem: (up.cpu(), down.cpu()) for stem, (up, down) in factors.items()}
            found = spectral.canonical_many(there)
        cpu = {stem: spectral.SVD(*(part.cpu() for part in found[stem])) for stem in self.branches}
        return {stem: Layer(cpu[stem], self.branches[stem].kernel) for stem in cpu} | self.carried

    @torch.no_grad()
    def singular_values(self) -> dict[str, Tensor]:
        """Those of every layer that is trained here, (k,) on the CPU: as `canonical` finds them, for less."""
        return spectral.singular_values_many(self._factors())

    def _factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {stem: (branch.up, branch.gained_down()) for stem, branch in self.branches.items()}

    @torch.no_grad()
    def start_from(self, layers: Mapping[str, Layer]) -> None:
        """Continue from a saved adapter: ΔW is reproduced, `down` rows get the length that random ones have.

        Layers that are not trained here are carried along unchanged. Raises InputError when no layer fits, a shape
        differs or the saved rank is above this one.
        """
        common = [stem for stem in layers if stem in self.branches]
        if not common:
            raise InputError(
                f"start_from shares no layer with this model: it has {_some(layers)}, the model {_some(self.branches)};"
                " give an adapter that was made for the same kind of model"
            )
        for stem in common:
            check_start(stem, self.branches[stem], layers[stem])
        for stem in common:
            load_start(self.branches[stem], layers[stem].svd)
        self.carried = {stem: layer for stem, layer in layers.items() if stem not in self.branches}


def _check_fit(stem: str, branch: Branch, targets: Mapping[str, Target]) -> None:
    if stem not in targets:
        raise InputError(f"the model has no layer {stem}; attach the adapter to the model it was made for")
    wanted = targets[stem].shape
    given = (branch.up.shape[0], branch.down.shape[1])
    if wanted != given:
        raise InputError(f"{stem}: the adapter is for a weight of shape {given}, the model's is {wanted}")


def whole_hook(branch: Branch) -> Hook:
    """Add the change of one branch to a layer's output."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + branch.delta(module, args[0]).to(output.dtype)

    return hook


def _rows_hook(parts: list[RowBranch]) -> Hook:
    """Adapt row ranges of one fused layer: the deltas, zeros where no range lies, joined in row order."""
    ranges = sorted(parts, key=lambda part: part[0])

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        pieces, at = [], 0
        for (first, last), branch in ranges:
            if first > at:
                pieces.append(output.new_zeros(*output.shape[:-1], first - at))
            pieces.append(branch.delta(module, args[0]).to(output.dtype))
            at = last
        if at < output.shape[-1]:
            pieces.append(output.new_zeros(*output.shape[:-1], output.shape[-1] - at))
        return output + torch.cat(pieces, dim=-1)

    return hook


def _drawn_masks(branches: Sequence[Branch], share: float, generator: torch.Generator) -> list[Tensor]:
    """One mask (k,) for each branch: drawn together on the CPU, moved to each device once, without waiting for it."""
    sizes = [branch.down.shape[0] for branch in branches]
    kept = (torch.rand(sum(sizes), generator=generator) >= share) / (1 - share)
    devices = [branch.down.device for branch in branches]
    parts = {device: upload(kept, device).split(sizes) for device in dict.fromkeys(devices)}
    return [parts[device][index] for index, device in enumerate(devices)]


def _some(names: Mapping[str, object]) -> str:
    first = ", ".join(list(names)[:2])
    return f"{len(names)} layers such as {first}"
