"""What was tried beside the methods that are kept: a penalty, mixed rows, a preconditioned `down`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trilora_core.adapter import TriLoRA
from trilora_core.calibration import Calibration
from trilora_core.contrast import DAMPING


@torch.no_grad()
def started(adapter: TriLoRA, calibration: Calibration, how: dict[str, float]) -> TriLoRA:
    """The adapter with another start: `mix`, the share of its rows that is contrastive; `precondition`, a power."""
    branches = adapter.branches
    found = calibration.directions({stem: len(branch.sigma) for stem, branch in branches.items()})
    for stem, branch in branches.items():
        down, moments = branch.down, calibration.moments(stem)
        assert moments is not None
        if "mix" in how:
            count = min(len(found[stem]), round(how["mix"] * len(down)))
            down[:count] = found[stem][:count] * down.shape[1] ** 0.5 / len(down)
        if "precondition" in how:
            turned = down @ _against(moments[1].matrix, how["precondition"])
            down.copy_(turned * down.norm(dim=1, keepdim=True) / turned.norm(dim=1, keepdim=True))
    return adapter


def _against(matrix: Tensor | None, power: float) -> Tensor:
    """(C0 + λI)^-power."""
    assert matrix is not None
    values, vectors = torch.linalg.eigh(matrix.double())
    floor = DAMPING * values.sum() / len(values)
    return ((vectors * (values.clamp(min=0) + floor) ** -power) @ vectors.T).float()


class Penalty:
    """Mean over layers of tr(ΔW·C0·ΔWᵀ) / tr(W0·C0·W0ᵀ), with a weight for each run; no dense ΔW."""

    def __init__(self, weights: Tensor, priors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        self.weights, self.priors, self.own = weights, priors, own

    @classmethod
    def of(cls, bench: Any, methods: Sequence[dict], tasks: Sequence[Any], fleet: Any) -> Penalty | None:
        """None where no run is penalised."""
        weights = [method.get("tries", {}).get("penalty", 0.0) for method in methods]
        if not any(weights):
            return None
        kinds = [(t.concept, m.get("captions", "broad")) for m, t in zip(methods, tasks, strict=True)]
        found = [bench.calibration(*kind) for kind in kinds]
        priors = {stem: torch.stack([one.moments(stem)[1].matrix for one in found]) for stem in fleet.stems}
        own = {}
        for stem in fleet.stems:
            base = bench.targets[stem].base_weight().float()
            own[stem] = ((base @ priors[stem]) * base).sum(dim=(1, 2))
        return cls(torch.tensor(weights), priors, own)

    def __call__(self, fleet: Any) -> Tensor:
        total = torch.zeros(len(self.weights))
        for stem, up, sigma, down in fleet.layers():
            gained = down * sigma.unsqueeze(2)
            small = gained @ self.priors[stem] @ gained.mT
            total = total + ((up.mT @ up) * small).sum(dim=(1, 2)) / self.own[stem]
        return (self.weights * total / len(fleet.stems)).sum()
