"""What is minimised: losses per sample, their weights, a penalty; and the draws of u in [0, 1] that make times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError

__all__ = [
    "DRAWS",
    "DrawOptions",
    "draw_logit_normal",
    "draw_shifted",
    "draw_uniform",
    "min_snr_weights",
    "mse_per_sample",
    "orthogonality",
]

_ZERO_LENGTH = 1e-8  # a shorter row has no direction yet


class DrawOptions(Protocol):
    """What the draws read of the options (config.LossConfig)."""

    @property
    def logit_mean(self) -> float:
        """Mean of the logits of u."""
        ...

    @property
    def logit_std(self) -> float:
        """Their standard deviation."""
        ...

    @property
    def shift(self) -> float:
        """Above 1: more noise."""
        ...


def mse_per_sample(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error in the model's own target space, in float32; (B, …) and (B, …) -> (B,).

    A mask (B, 1, h, w) in [0, 1] weights each place; the mean is still over all of them, so a place of weight 0 counts
    as one without error.
    """
    error = (prediction.float() - target.float()).square()
    if mask is not None:
        error = error * mask
    return error.flatten(1).mean(dim=1)


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Factors that turn the losses into min(SNR, γ) · e0, whatever the model predicts; (B,) -> (B,).

    e0 is the squared error of the clean latents (min-SNR-γ, Hang et al. 2023). With it the errors are SNR · e0 of the
    noise, (SNR + 1) · e0 of v, and (1 + √SNR)² · e0 of the flow noise - x0: there x0 = x_t - t · flow and
    SNR = ((1 - t) / t)², so that e0 = t² · error and t = 1 / (1 + √SNR). The factor is min(SNR, γ) over that of e0.
    At SNR = 0 it is 1 for the noise, the limit from above, and 0 for the others. Raises InputError for another kind.
    """
    if prediction_type not in _ERRORS:
        raise InputError(
            f"min_snr_gamma is on, but the model predicts {prediction_type!r}; known: {', '.join(_ERRORS)}; set it to 0"
        )
    snr = snr.clamp(min=torch.finfo(snr.dtype).tiny)  # 0 at zero terminal SNR, where the noise's would be 0 / 0
    return snr.clamp(max=gamma) / _ERRORS[prediction_type](snr)


def _error_of_noise(snr: Tensor) -> Tensor:
    return snr


def _error_of_v(snr: Tensor) -> Tensor:
    return snr + 1


def _error_of_flow(snr: Tensor) -> Tensor:
    return (1 + snr.sqrt()).square()


# How many times the error of x0 the error of the prediction is. diffusers calls v "v_prediction".
_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": _error_of_noise,
    "v": _error_of_v,
    "v_prediction": _error_of_v,
    "flow": _error_of_flow,
}


def draw_uniform(count: int, generator: torch.Generator, options: DrawOptions) -> Tensor:
    """Independent uniform draws, (count,) in [0, 1), one for each sample (Ho et al. 2020, algorithm 1)."""
    return torch.rand(count, generator=generator)


def draw_logit_normal(count: int, generator: torch.Generator, options: DrawOptions) -> Tensor:
    """sigmoid(mean + std · z) of Gaussian z, (count,) in [0, 1]: most draws amid the noise (Esser et al. 2024, 3.1).

    A mean above 0 draws more noise.
    """
    return (options.logit_mean + options.logit_std * torch.randn(count, generator=generator)).sigmoid()


def draw_shifted(count: int, generator: torch.Generator, options: DrawOptions) -> Tensor:
    """shift · u / (1 + (shift - 1) · u) of uniform u, (count,) in [0, 1] (Esser et al. 2024, section 5.3.2).

    Where a model's own table of times is shifted, the two shifts multiply.
    """
    u = torch.rand(count, generator=generator)
    return (options.shift * u / (1 + (options.shift - 1) * u)).clamp(max=1.0)  # rounding may pass 1


DRAWS: dict[str, Callable[[int, torch.Generator, DrawOptions], Tensor]] = {
    "uniform": draw_uniform,
    "logit-normal": draw_logit_normal,
    "shifted": draw_shifted,
}


def orthogonality(matrices: Iterable[Tensor]) -> Tensor:
    """Sum over matrices (k, n) of ‖RRᵀ - I‖² with R their rows at unit length (Zhang et al. 2023, AdaLoRA).

    Only the angles count: the diagonal is 1 by construction, and a row of zeros, as all of `up` is at the start, has
    neither an angle nor a gradient. Matrices of one shape are computed together.
    """
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for matrix in matrices:
        shapes.setdefault(tuple(matrix.shape), []).append(matrix)
    return torch.stack([_non_orthogonality(torch.stack(group)) for group in shapes.values()]).sum()


def _non_orthogonality(rows: Tensor) -> Tensor:
    # Lengths go into the small Gram matrix: normalised copies of the rows would be as large as the adapter.
    gram = rows @ rows.transpose(1, 2)
    squares = gram.diagonal(dim1=1, dim2=2)
    inverse = torch.where(squares > _ZERO_LENGTH**2, squares, torch.inf).rsqrt()
    cosines = gram * inverse.unsqueeze(1) * inverse.unsqueeze(2)
    apart = 1 - torch.eye(rows.shape[1], device=rows.device, dtype=rows.dtype)
    return (cosines * apart).square().sum()
