"""The trainable three-factor adapter: ΔW = scale · up · diag(Σ) · down (TriLoRA, eq. 5), its inits and its hooks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import randomized, spectral
from .calibration import Calibration
from .config import AdapterConfig, parse_rank
from .errors import InputError
from .fileformat import Layer
from .objective import orthogonality
from .transfer import upload

__all__ = ["SIGMA_INITS", "Branch", "Target", "TriLoRA", "derive_seed"]

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Target:
    """A frozen layer to adapt: a Linear, or some rows of one (fused q, k, v), or a Conv without groups.

    Σ starts from W0: `weight` is the unpatched one where `module.weight` is not it, and `read` gives what it stands for
    where its numbers say little by themselves (scaled or quantised), each time anew so that no copy is kept.
    """

    module: nn.Module
    rows: tuple[int, int] | None = None
    weight: Tensor | None = None
    read: Callable[[Tensor], Tensor] | None = None

    def base_weight(self) -> Tensor:
        """The frozen weight, flattened to (out, in) or (out, in·kernel), limited to the target's rows."""
        weight = self._held()
        weight = (weight if self.read is None else self.read(weight)).detach().flatten(1)
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]

    @property
    def shape(self) -> tuple[int, int]:
        """That of `base_weight`, without reading it."""
        out, *rest = self._held().shape
        return out if self.rows is None else self.rows[1] - self.rows[0], math.prod(rest)

    def _held(self) -> Tensor:
        weight = self.module.weight if self.weight is None else self.weight
        if not isinstance(weight, Tensor):
            raise InputError(f"{type(self.module).__name__} has no weight tensor; adapt Linear and Conv layers")
        return weight

    @property
    def kernel(self) -> tuple[int, ...]:
        """() for a Linear, the kernel's size for a Conv."""
        return tuple(getattr(self.module, "kernel_size", ()))


@dataclass
class Branch:
    """Parameters of one layer: up (out, k), sigma (r,), down (k, in), with k = r + companion rank.

    The companion (paper, section 1) is a standard adapter beside the first: its rows have Σ fixed at 1, so that both
    run in one product.
    """

    up: nn.Parameter
    sigma: nn.Parameter
    down: nn.Parameter
    scale: float
    kernel: tuple[int, ...] = ()
    mask: Tensor | None = field(default=None, repr=False)  # (k,) inside TriLoRA.rank_dropout

    def gained_down(self, mask: Tensor | None = None) -> Tensor:
        """diag(scale · Σ · mask) · down, (k, in): folding Σ into the small factor costs r·in instead of tokens·r."""
        gain = self.sigma * self.scale
        extra = self.down.shape[0] - gain.shape[0]
        if extra:
            gain = torch.cat([gain, gain.new_ones(extra)])
        if mask is not None:
            gain = gain * mask
        return self.down * gain.unsqueeze(1)

    def delta(self, module: nn.Module, x: Tensor) -> Tensor:
        """The layer's change of output for its input x; (…, out) or (B, out, …) as the layer's own."""
        down, up = self.gained_down(self.mask).to(x.dtype), self.up.to(x.dtype)
        if not self.kernel:
            return F.linear(F.linear(x, down), up)
        conv: Any = module
        function = _CONV[len(self.kernel)]
        hidden = function(x, down.unflatten(1, (-1, *self.kernel)), None, conv.stride, conv.padding, conv.dilation)
        out: Tensor = function(hidden, up.reshape(*up.shape, *[1] * len(self.kernel)))
        return out

    def parameters(self) -> dict[str, nn.Parameter]:
        """The three factors by name."""
        return {"up": self.up, "sigma": self.sigma, "down": self.down}


def _svd_mean(values: Tensor, weight: Tensor) -> Tensor:
    return values / values.mean()


def _svd_max(values: Tensor, weight: Tensor) -> Tensor:
    return values / values.max()


def _svd_fro(values: Tensor, weight: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(weight.float())
    return values / norm.to(values.device)


def _svd(values: Tensor, weight: Tensor) -> Tensor:
    return values


def _ones(values: Tensor, weight: Tensor) -> Tensor:
    return torch.ones_like(values)


# From the r largest singular values of W0 to the start of Σ: `svd` is the paper's, `svd-mean` keeps LoRA's learning
# rate.
SIGMA_INITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "svd-mean": _svd_mean,
    "svd": _svd,
    "svd-max": _svd_max,
    "svd-fro": _svd_fro,
    "ones": _ones,
    "contrast": _svd_mean,  # only `down` differs from the default: eigenvalues as Σ measurably add nothing
}


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
        branches = {stem: _start(stem, target, config, seed, data_hash, device) for stem, target in targets.items()}
        if config.init == "contrast" and calibration is not None:
            _set_apart(branches, calibration)
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
                hooks.append((module, _whole_hook(branch)))
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
        """Every layer in true SVD form, companion and carried layers included."""
        found = spectral.canonical_many(self._factors())
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
            _check_start(stem, self.branches[stem], layers[stem])
        for stem in common:
            _load_start(self.branches[stem], layers[stem].svd)
        self.carried = {stem: layer for stem, layer in layers.items() if stem not in self.branches}


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _start(stem: str, target: Target, config: AdapterConfig, seed: int, data_hash: str, device: Any) -> Branch:
    if getattr(target.module, "groups", 1) != 1:
        raise InputError(f"{stem} is a grouped convolution, which has no single low-rank form; leave it out")
    weight = target.base_weight()
    rank = _layer_rank(weight, config)
    extra = config.companion_rank
    generator = torch.Generator().manual_seed(derive_seed(seed, stem, data_hash))
    down = torch.randn(rank, weight.shape[1], generator=generator) / rank
    if extra:
        down = torch.cat([down, torch.randn(extra, weight.shape[1], generator=generator) / extra])
    lora = config.method == "lora"
    sigma = torch.ones(rank) if lora else _start_sigma(weight, rank, config.init)
    place: Any = target.module.weight.device if device is None else device
    return Branch(
        up=nn.Parameter(torch.zeros(weight.shape[0], rank + extra, device=place)),
        sigma=nn.Parameter(sigma.to(place), requires_grad=not lora),
        down=nn.Parameter(down.to(place)),
        scale=1.0 if config.alpha is None else config.alpha / rank,
        kernel=target.kernel,
    )


@torch.no_grad()
def _set_apart(branches: Mapping[str, Branch], calibration: Calibration) -> None:
    """Replace the random rows of `down` by the calibration's directions, at the length that random rows have."""
    found = calibration.directions({stem: len(branch.sigma) for stem, branch in branches.items()})
    for stem, rows in found.items():
        down, rank = branches[stem].down, len(branches[stem].sigma)
        if rows.shape[1] != down.shape[1]:
            raise InputError(
                f"the calibration has {rows.shape[1]} inputs for {stem}, this model's has {down.shape[1]}; calibrate it"
            )
        length = down.shape[1] ** 0.5 / rank  # that of a Gaussian row with standard deviation 1/r
        down[: len(rows)] = rows.to(down) * length


def _layer_rank(weight: Tensor, config: AdapterConfig) -> int:
    rank = parse_rank(config.rank)
    if isinstance(rank, float):
        return randomized.rank_for_energy(weight, rank, config.rank_cap)
    return min(rank, weight.shape[0], weight.shape[1])


_SIGMA_CACHE: dict[tuple[object, ...], Tensor] = {}
_SIGMA_CACHE_LIMIT = 8192  # layers; a few kilobytes each at most


def _start_sigma(weight: Tensor, rank: int, init: str) -> Tensor:
    values = torch.ones(rank) if init == "ones" else _cached_singular_values(weight, rank)
    if not values.any():  # a zero W0 says nothing about scale; Σ = 0 beside up = 0 would never learn
        return torch.ones(rank)
    return SIGMA_INITS[init](values, weight).float().cpu().clone()  # the cached values are not to be trained


def _cached_singular_values(weight: Tensor, rank: int) -> Tensor:
    key = (*_content_key(weight), rank)
    if key not in _SIGMA_CACHE:
        if len(_SIGMA_CACHE) >= _SIGMA_CACHE_LIMIT:
            _SIGMA_CACHE.clear()
        _SIGMA_CACHE[key] = randomized.top_singular_values(weight, rank).cpu()
    return _SIGMA_CACHE[key]


def _content_key(weight: Tensor) -> tuple[object, ...]:
    """Shape, dtype, sum, norm and 64 samples: any change of the weight changes its sum or its norm."""
    values = weight.float()
    sample = values.flatten()[:: max(1, values.numel() // 64)][:64]
    numbers = torch.cat([values.sum().view(1), values.norm().view(1), sample]).tolist()
    return (tuple(weight.shape), str(weight.dtype), *numbers)


def _check_fit(stem: str, branch: Branch, targets: Mapping[str, Target]) -> None:
    if stem not in targets:
        raise InputError(f"the model has no layer {stem}; attach the adapter to the model it was made for")
    wanted = targets[stem].shape
    given = (branch.up.shape[0], branch.down.shape[1])
    if wanted != given:
        raise InputError(f"{stem}: the adapter is for a weight of shape {given}, the model's is {wanted}")


def _check_start(stem: str, branch: Branch, layer: Layer) -> None:
    given, wanted = (layer.svd.u.shape[0], layer.svd.vh.shape[1]), (branch.up.shape[0], branch.down.shape[1])
    if given != wanted:
        raise InputError(f"start_from: {stem} is for a weight of shape {given}, the model's is {wanted}")
    rank = spectral.true_rank(layer.svd)
    if rank > branch.sigma.shape[0]:
        raise InputError(
            f"start_from: {stem} has rank {rank}, this run {branch.sigma.shape[0]}; set rank to {rank} or more"
        )


def _load_start(branch: Branch, svd: spectral.SVD) -> None:
    count = spectral.true_rank(svd)
    length = svd.vh.shape[1] ** 0.5 / branch.sigma.shape[0]  # that of a Gaussian row with standard deviation 1/r
    gain = branch.sigma[:count] * branch.scale * length
    branch.down[:count] = svd.vh[:count].to(branch.down) * length
    branch.up[:, :count] = (svd.u[:, :count] * svd.s[:count]).to(branch.up) / gain


def _whole_hook(branch: Branch) -> Hook:
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
