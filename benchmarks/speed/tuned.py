"""What torch offers to go faster, AdamW in one kernel and a compiled model: what they win, and what they change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from statistics import median
from typing import Any

import torch
from sides import Bench, Case, here
from start import attention
from torch import Tensor

from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, TrainConfig
from trilora_core.train import Run, train

FORMS: dict[str, dict[str, bool]] = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def optimizers(rank: int, rounds: int, tiny: bool) -> dict[str, Any]:
    """Seconds of one AdamW step over an adapter of SDXL's size, and how far each form is from the plain loop."""
    modules = attention("tiny" if tiny else "sdxl")
    generator = torch.Generator().manual_seed(0)
    shapes = [shape for m in modules for shape in ((m.out_features, rank), (rank,), (rank, m.in_features))]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    found: dict[str, Any] = {"parameters": sum(tensor.numel() for tensor in start)}
    results: dict[str, list[Tensor]] = {}
    for name, form in FORMS.items():  # one after another: each holds three copies of the adapter
        parameters = [torch.nn.Parameter(tensor.clone()) for tensor in start]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, **form)
        found[f"s {name}"] = median([_seconds(optimizer.step) for _ in range(rounds + 1)][1:])
        results[name] = [parameter.detach() for parameter in parameters]
    for name in ("foreach", "fused"):
        found[f"difference {name}"] = _furthest(results["loop"], results[name])
    return found


def compiled(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of a step with the model as it is and compiled by torch, what compiling costs, and how the two differ."""
    bench = Bench(case)
    plain = _three_steps(bench)
    model = bench.twin()
    other = bench.with_model(model)
    model.compile()
    begin = _all_processes()
    try:
        after = _three_steps(other)
    except RuntimeError as error:  # no compiler on this machine, or a model that it cannot do
        return {"failed": str(error).strip().splitlines()[0][:200]}
    found: dict[str, Any] = {"s compiling": _all_processes() - begin, "difference": _furthest(plain, after)}
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    with ExitStack() as stack:
        steps = {"plain": stack.enter_context(here(bench)), "compiled": stack.enter_context(here(other))}
        for number in range(-1, rounds):
            for name, step in steps.items():
                seconds = _seconds(step)
                times[name] += [seconds] if number >= 0 else []
    found |= {f"s {name}": median(values) for name, values in times.items()}
    return found | {"x": median(c / p for p, c in zip(times["plain"], times["compiled"], strict=True))}


def _three_steps(bench: Bench) -> list[Tensor]:
    """The adapter's parameters after three steps from the seed."""
    config = TrainConfig(steps=3, batch_size=bench.case.batch, adapter=AdapterConfig(rank=bench.case.rank, init="ones"))
    targets = bench.denoiser.targets(config.adapter.layers)
    adapter = TriLoRA.create(targets, config.adapter, seed=0, data_hash="")
    with adapter.attach(targets), closing(train(Run(config, bench.denoiser, bench.data, adapter))) as steps:
        for _ in steps:
            pass
    return [parameter.detach() for parameter in adapter.trainable()]


def _furthest(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of any number; 0.0 means bit for bit the same."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _all_processes() -> float:
    """Process time with that of children that have ended, such as compilers."""
    return sum(os.times()[:4])
