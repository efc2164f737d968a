"""A base by its content: alike in every number format that holds it, other for other weights, names or shapes."""

from __future__ import annotations

import torch
from torch import nn

from tests.matrices import draw
from trilora_core.branch import Target
from trilora_core.content import content_of


def linear(weight: torch.Tensor, rows: tuple[int, int] | None = None) -> Target:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return Target(module, rows)


def test_it_follows_content_and_nothing_else() -> None:
    a, b = draw(24, 40).half(), draw(24, 8, seed=1).half()
    known = content_of({"a": linear(a), "b": linear(b)})
    assert content_of({"b": linear(b.float()), "a": linear(a.double())}) == known
    fused = linear(torch.cat([b.repeat(1, 5), a]), (24, 48))  # some rows of a wider layer, as SD3 has q, k and v
    assert content_of({"a": fused, "b": linear(b)}) == known
    assert content_of({"a": linear(a), "c": linear(b)}) != known
    assert content_of({"a": linear(a), "b": linear(b.T.contiguous())}) != known
    changed = a.clone()
    changed += 0.01
    assert content_of({"a": linear(changed), "b": linear(b)}) != known
