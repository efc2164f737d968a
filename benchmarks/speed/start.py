"""What happens before the first step, at SDXL's full size: Σ from W0, the adapter, its hooks; beside dense SVDs."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from statistics import median

import models
import torch
from torch import nn

from trilora_core import spectral
from trilora_core.adapter import TriLoRA
from trilora_core.branch import Target
from trilora_core.config import AdapterConfig
from trilora_core.randomized import top_singular_values


def measure(rank: int, rounds: int, model: str) -> dict[str, float]:
    """Seconds of process time for all attention linears; one weight of each shape stands for those of its shape."""
    modules = attention(model)
    found: dict[str, float] = {"layers": len(modules)}
    for (out, into), count in Counter(tuple(module.weight.shape) for module in modules).items():
        weight, up, down = torch.randn(out, into), torch.randn(out, rank), torch.randn(rank, into)
        calls = {
            "singular values": partial(top_singular_values, weight, rank),
            "create": partial(_created, weight, AdapterConfig(rank=rank)),
            "svdvals": partial(torch.linalg.svdvals, weight),
            "canonical": partial(spectral.canonical, up, down),
            "dense svd": partial(torch.linalg.svd, up @ down, full_matrices=False),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                begin = time.process_time()
                call()
                times[name].append(time.process_time() - begin)
        for name, values in times.items():
            found[name] = found.get(name, 0.0) + count * median(values)
    return {**found, "attach": _attaching(modules, rank), "rounds": rounds}


def _created(weight: torch.Tensor, config: AdapterConfig) -> TriLoRA:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    weight[0, 0] += 1.0  # else its singular values are known from the last time
    return TriLoRA.create({"layer": Target(layer)}, config, seed=0, data_hash="")


def attention(name: str) -> list[nn.Linear]:
    """The attention linears of a model, without their weights."""
    model = models.unet(name, "meta")
    return [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".attn" in name]


def _attaching(modules: list[nn.Linear], rank: int) -> float:
    """Seconds to make and to hook in all branches, Σ at one: no weight is read."""
    targets = {str(number): Target(module) for number, module in enumerate(modules)}
    begin = time.process_time()
    made = TriLoRA.create(targets, AdapterConfig(rank=rank, init="ones"), seed=0, data_hash="", device="cpu")
    with made.attach(targets):
        return time.process_time() - begin
