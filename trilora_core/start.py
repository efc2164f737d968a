"""Where an adapter starts: Σ from W0, random or contrastive rows of `down`, or the factors of a saved adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import randomized, spectral
from .branch import Branch, Target
from .calibration import Calibration
from .config import AdapterConfig, parse_rank
from .errors import InputError
from .fileformat import Layer

__all__ = ["SIGMA_INITS", "check_start", "derive_seed", "fresh", "load_start", "set_apart"]


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


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fresh(stem: str, target: Target, config: AdapterConfig, seed: int, data_hash: str, device: Any) -> Branch:
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
def set_apart(branches: Mapping[str, Branch], calibration: Calibration) -> None:
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


_NOTHING = 1e-6  # of the largest singular value: rounding of a direction that is not there
_SIGMA_CACHE_LIMIT = 8192  # layers; a few kilobytes each at most


def _start_sigma(weight: Tensor, rank: int, init: str) -> Tensor:
    values = torch.ones(rank) if init == "ones" else _cached_singular_values(weight, rank)
    if not values.any():  # a zero W0 says nothing about scale; Σ = 0 beside up = 0 would never learn
        return torch.ones(rank)
    alive = values > values[0] * _NOTHING  # nor would the directions that a W0 of lower rank does not have
    values = torch.where(alive, values, values[alive].mean())
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


def check_start(stem: str, branch: Branch, layer: Layer) -> None:
    given, wanted = (layer.svd.u.shape[0], layer.svd.vh.shape[1]), (branch.up.shape[0], branch.down.shape[1])
    if given != wanted:
        raise InputError(f"start_from: {stem} is for a weight of shape {given}, the model's is {wanted}")
    rank = spectral.true_rank(layer.svd)
    if rank > branch.sigma.shape[0]:
        raise InputError(
            f"start_from: {stem} has rank {rank}, this run {branch.sigma.shape[0]}; set rank to {rank} or more"
        )


def load_start(branch: Branch, svd: spectral.SVD) -> None:
    count = spectral.true_rank(svd)
    length = svd.vh.shape[1] ** 0.5 / branch.sigma.shape[0]  # that of a Gaussian row with standard deviation 1/r
    gain = branch.sigma[:count] * branch.scale * length
    branch.down[:count] = svd.vh[:count].to(branch.down) * length
    branch.up[:, :count] = (svd.u[:, :count] * svd.s[:count]).to(branch.up) / gain
