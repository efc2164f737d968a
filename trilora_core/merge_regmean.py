"""RegMean: the merge that needs calibrations, which say what each layer reads."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from .merge_methods import Layers, Merged, nothing_removed
from .moments import Moments
from .spectral import canonical

__all__ = ["DAMPING", "RegMean"]

DAMPING = 1e-2
"""Added to the diagonal, as a share of the mean eigenvalue: directions without inputs hold rounding alone."""

_CACHED = 8  # factors at once; q, k and v of a block read the same, and all blocks read the same text


class RegMean:
    """RegMean (Jin et al. 2023, "Dataless knowledge fusion by merging weights of language models") with a prior term.

    The ΔW nearest to w_i ΔW_i on the inputs of adapter i, for all i, and to no change on the base model's own inputs:
    (Σ w_i ΔW_i C_i) (Σ C_i + λ C_0)^-1, with C their second moments and λ = prior_weight. Exact on the factors: only
    matrices of in x in are solved, in float64, each once.
    """

    def __init__(self) -> None:
        self._factors: OrderedDict[tuple[int, ...], tuple[Tensor, object]] = OrderedDict()

    def __call__(self, layers: Layers) -> Merged:
        """Merge the only layer of the batch, on the moments of its inputs."""
        own = [moments for moments, _ in layers.moments]
        pulled = [moments.times(svd.vh.double()) for svd, moments in zip(layers.svds, own, strict=True)]
        right = torch.cholesky_solve(torch.cat(pulled, -2).mT, self._factor(layers)).mT
        left = torch.cat([svd.u for svd in layers.svds], -1)
        sigma = torch.cat([weight * svd.s for weight, svd in zip(layers.weights, layers.svds, strict=True)], -1)
        return nothing_removed(layers, canonical(left, right.to(left), sigma))

    def _factor(self, layers: Layers) -> Tensor:
        """The Cholesky factor of Σ C_i + λ C_0, with C_0 the mean of the calibrations' own."""
        key = tuple(id(moments) for pair in layers.moments for moments in pair)
        if key in self._factors:
            self._factors.move_to_end(key)
            return self._factors[key][0]
        device = layers.svds[0].u.device
        gram = torch.zeros(layers.moments[0][0].width, layers.moments[0][0].width, dtype=torch.float64, device=device)
        for part, moments in self._shares(layers):
            gram.add_(_dense(moments.to(device)), alpha=part)
        factor = _cholesky(gram)
        self._factors[key] = factor, layers.moments  # the moments too: an id is only theirs while they live
        if len(self._factors) > _CACHED:
            self._factors.popitem(last=False)
        return factor

    @staticmethod
    def _shares(layers: Layers) -> list[tuple[float, Moments]]:
        """What is summed: C_i of each adapter, and of the C_0 those that differ, for most often all are the same."""
        share = layers.options.prior_weight / len(layers.moments)
        priors: list[tuple[float, Moments]] = []
        for _, prior in layers.moments:
            known = next((i for i, (_, one) in enumerate(priors) if _same(one, prior)), None)
            if known is None:
                priors.append((share, prior))
            else:
                priors[known] = priors[known][0] + share, priors[known][1]
        return [(1.0, own) for own, _ in layers.moments] + priors


def _same(a: Moments, b: Moments) -> bool:
    """Whether two are equal bit for bit."""
    if a is b:
        return True
    one, other = a.tensors(), b.tensors()
    return a.trace == b.trace and one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _cholesky(gram: Tensor) -> Tensor:
    """L of gram + damping · I = L · L^T; what rounding in the moments made negative is taken for 0."""
    damping = DAMPING * gram.diagonal().mean()
    damping = torch.where(damping > 0, damping, torch.ones_like(damping))
    damped = gram.clone()
    damped.diagonal().add_(damping)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed):
        values, vectors = torch.linalg.eigh(damped)
        factor = torch.linalg.cholesky((vectors * torch.maximum(values, damping)) @ vectors.mT)
    return factor


def _dense(moments: Moments) -> Tensor:
    """C (in, in) in float64."""
    matrix = moments.matrix
    if matrix is not None:
        return matrix.double()
    assert moments.vectors is not None and moments.values is not None
    vectors, rest = moments.vectors.double(), moments.rest
    found: Tensor = (vectors * (moments.values.double() - rest)) @ vectors.T
    found.diagonal().add_(rest)
    return found
