"""DoRA and PiSSA as peft computes them, for many runs in one forward pass (`preserve/fleet.py`).

tests/test_benchmarks_fleet.py holds both against peft's own layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from fleet import Form
from torch import Tensor, nn

from trilora_core.adapter import TriLoRA
from trilora_core.branch import Target

KINDS = ("plain", "dora", "pissa")


def dora(weight: Tensor, bias: Tensor | None) -> Form:
    """m · (W0 + up·down) / ‖W0 + up·down‖ by rows, the norm held in the backward pass (Liu et al. 2024, section 4.3).

    What a branch calls sigma is the magnitude m (out,).
    """
    weight, squares = weight.float(), weight.float().square().sum(dim=1)

    def change(x: Tensor, output: Tensor, up: Tensor, magnitude: Tensor, down: Tensor) -> Tensor:
        with torch.no_grad():
            mixed = 2 * ((weight @ down.mT) * up).sum(dim=2) + ((up @ (down @ down.mT)) * up).sum(dim=2)
            norm = (squares + mixed).clamp(min=0.0).sqrt()
        gain = (magnitude / norm).unsqueeze(1)
        plain = output if bias is None else output - bias
        return (gain - 1) * plain + gain * (x @ down.mT @ up.mT)

    return change


def principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (out, r) and down (r, in) whose product is the best rank-r part of W0, in equal shares."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root.unsqueeze(1) * vh[:rank]


def pissa(up0: Tensor, down0: Tensor) -> Form:
    """The principal part of W0 learns and the rest is frozen (Meng et al. 2024): up·down less what they were."""

    def change(x: Tensor, output: Tensor, up: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
        return x @ down.mT @ up.mT - x @ down0.T @ up0.T

    return change


@torch.no_grad()
def start(kind: str, adapter: TriLoRA, targets: Mapping[str, Target]) -> TriLoRA:
    """A plain LoRA that has just been made, with the parameters that this kind begins with."""
    for stem, branch in adapter.branches.items() if kind != "plain" else ():
        weight = targets[stem].base_weight().float()
        if kind == "dora":
            branch.sigma = nn.Parameter(torch.linalg.vector_norm(weight, dim=1))
        else:
            up, down = principal(weight, len(branch.sigma))
            branch.up.copy_(up)
            branch.down.copy_(down)
    return adapter


def forms(kind: str, adapters: Sequence[TriLoRA], targets: Mapping[str, Target]) -> dict[str, Form] | None:
    """What the parameters mean, layer by layer; None: what they mean to trilora_core."""
    if kind == "plain":
        return None
    found: dict[str, Form] = {}
    for stem, branch in adapters[0].branches.items():
        weight, module = targets[stem].base_weight(), targets[stem].module
        if kind == "dora":
            found[stem] = dora(weight, getattr(module, "bias", None))
        else:
            found[stem] = pissa(*principal(weight, branch.down.shape[0]))
    return found
