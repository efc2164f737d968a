"""Full-size random models on a CUDA device: seconds a step and peak memory in bfloat16, and the host's own path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import clock
from sides import SIDES, Bench, Case

from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, TrainConfig
from trilora_core.train import Run

HERE = Path(__file__).resolve().parent
FULL = (Case("sd15", 64), Case("sdxl", 128))  # 512² and 1024² pixels
PARTS = ("floor", "here", "peft")


def tasks(rounds: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, work); each side in a process of its own, so that no allocator remembers another."""
    for case in FULL:
        for recomputed in (False, True):
            for side in PARTS:
                full = replace(case, recomputed=recomputed)
                yield f"gpu {side} {full.name}", partial(_alone, full, side, rounds)
        yield f"gpu start {case.name}", partial(_alone, case, "start", rounds)


def _alone(case: Case, side: str, rounds: int) -> dict[str, Any]:
    job = json.dumps({"case": vars(case), "side": side, "rounds": rounds})
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([sys.executable, __file__, job], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(
    case: Case, side: str, rounds: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Seconds of a step after two that warm up, and the allocator's peak, model included."""
    bench = Bench(case, device, dtype)
    if side == "start":
        return first_step(bench)
    times = []
    with SIDES[side](bench) as step:
        for number in range(-2, 2 * rounds):
            begin = clock(bench.device)
            step()
            times += [clock(bench.device) - begin] if number >= 0 else []
    peak = torch.cuda.max_memory_allocated() / 2**20 if bench.device.type == "cuda" else 0.0
    return {"s": sorted(times)[len(times) // 2], "MiB": peak, "device": _name(bench.device)}


def first_step(bench: Bench) -> dict[str, Any]:
    """Seconds for Σ and the adapter, for the run and its hooks, and for the first step."""
    begin = clock(bench.device)
    config = TrainConfig(steps=2, adapter=AdapterConfig(rank=bench.case.rank))
    targets = bench.denoiser.targets()
    adapter = TriLoRA.create(targets, config.adapter, seed=0, data_hash="")
    made = clock(bench.device)
    run = Run(config, bench.denoiser, bench.data, adapter)
    with adapter.attach(targets):
        attached = clock(bench.device)
        run.advance()
        done = clock(bench.device)
    parts = {"create": made - begin, "attach": attached - made, "first step": done - attached}
    return {**parts, "all": done - begin, "device": _name(bench.device)}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(one(Case(**asked["case"]), asked["side"], asked["rounds"])))
