"""What happens before the first step, at SDXL's full size: Σ from W0, the adapter, its hooks; beside dense SVDs."""

from __future__ import annotations

import time
from collections import Counter
from statistics import median

import models
import torch
from torch import nn

from trilora_core import spectral
from trilora_core.adapter import Target, TriLoRA
from trilora_core.config import AdapterConfig
from trilora_core.randomized import top_singular_values


def measure(rank: int, rounds: int) -> dict[str, float]:
    """Seconds of process time for all attention linears; one weight of each shape stands for those of its shape."""
    modules = _attention()
    found = {name: 0.0 for name in ("create", "singular values", "svdvals", "canonical", "dense svd")}
    for (out, into), count in Counter(tuple(module.weight.shape) for module in modules).items():
        weight, up, down = torch.randn(out, into), torch.randn(out, rank), torch.randn(rank, into)
        config, dense = AdapterConfig(rank=rank), up @ down
        calls = {
            "create": lambda w=weight: _created(w, config),
            "singular values": lambda w=weight: top_singular_values(w, rank),
            "svdvals": lambda w=weight: torch.linalg.svdvals(w),
            "canonical": lambda u=up, d=down: spectral.canonical(u, d),
            "dense svd": lambda d=dense: torch.linalg.svd(d, full_matrices=False),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                begin = time.process_time()
                call()
                times[name].append(time.process_time() - begin)
        for name, values in times.items():
            found[name] += count * median(values)
    return {"layers": len(modules), **found, "attach": _attaching(modules, rank)}


def _created(weight: torch.Tensor, config: AdapterConfig) -> TriLoRA:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight * (1 + 1e-3 * torch.rand(())), requires_grad=False)  # never the same twice
    return TriLoRA.create({"layer": Target(layer)}, config, seed=0, data_hash="")


def _attention() -> list[nn.Linear]:
    model = models.unet("sdxl", "meta")
    return [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".attn" in name]


def _attaching(modules: list[nn.Linear], rank: int) -> float:
    """Seconds to make and to hook in all branches, Σ at one: no weight is read."""
    targets = {str(number): Target(module) for number, module in enumerate(modules)}
    begin = time.process_time()
    adapter = TriLoRA.create(targets, AdapterConfig(rank=rank, init="ones"), seed=0, data_hash="", device="cpu")
    with adapter.attach(targets):
        return time.process_time() - begin
