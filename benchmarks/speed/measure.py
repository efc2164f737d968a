"""Process time of steps in alternated turns, and the bytes that they take."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from sides import SIDES, Bench

from trilora_core.meter import Meter


def clock(device: torch.device) -> float:
    """Seconds: this process's own on a CPU, the wall's on an accelerator that has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def turns(bench: Bench, sides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Median seconds of a step for each side; for all but the first median and range of its ratios to the first.

    Sides take turns step by step, in the other order in every second round; the first step of each is left out.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    with ExitStack() as stack:
        steps = {side: stack.enter_context(SIDES[side](bench)) for side in sides}
        for number in range(-1, rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                gc.collect()
                start = clock(bench.device)
                steps[side]()
                times[side] += [clock(bench.device) - start] if number >= 0 else []
    found: dict[str, Any] = {"rounds": rounds} | {f"s {side}": median(times[side]) for side in sides}
    for side in sides[1:]:
        ratios = [own / first for first, own in zip(times[sides[0]], times[side], strict=True)]
        found |= {f"x {side}": median(ratios), f"range {side}": [min(ratios), max(ratios)]}
    return found


def memory(bench: Bench, side: str) -> dict[str, float]:
    """MiB that two steps take beyond the frozen weights: adapter, gradients, optimizer and activations at the peak."""
    gc.collect()
    meter = Meter(bench.device, ())
    with meter, SIDES[side](bench) as step:
        step()
        step()
    return {f"MiB {side}": meter.peak / 2**20}


def weights(bench: Bench) -> float:
    """MiB of the frozen model."""
    return sum(tensor.nbytes for tensor in bench.unet.state_dict().values()) / 2**20
