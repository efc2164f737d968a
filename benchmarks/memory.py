"""The estimate of a run's memory beside what the run takes.

Run from the root of a clone: `python benchmarks/memory.py`. Every line is a fresh process, with a random U-Net of
SD1.5's shape and a fifth of its channels, or the demo's. It trains three steps and asks the system how far its resident
memory had grown, then a fourth under torch's profiler, which knows what the allocator has given out, and only then
estimates for a run that starts anew. The loaded model is not in the figures. One thread. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import DiffusersDenoiser, load_pipeline
from trilora_core.config import AdapterConfig, OptimizerConfig, TrainConfig
from trilora_core.data.dataset import load_tensors
from trilora_core.demo import BASE
from trilora_core.memory import estimate
from trilora_core.recompute import checkpointed
from trilora_core.train import Run, train

STEPS = 3
# model, side of the latents, batch, accumulation, checkpointing
CASES = [
    ("mid", 32, 1, 1, False),
    ("mid", 32, 4, 1, False),
    ("mid", 32, 4, 1, True),
    ("mid", 64, 1, 1, False),
    ("mid", 64, 1, 1, True),
    ("mid", 32, 2, 2, False),
    ("demo", 8, 1, 1, False),
    ("demo", 8, 16, 1, False),
    ("demo", 8, 16, 1, True),
]


def mid_unet(of: Any) -> Any:
    """SD1.5's U-Net with 64, 128, 256, 256 channels instead of 320 to 1280, random, with the ends of another one."""
    torch.manual_seed(0)
    return type(of)(
        in_channels=of.config.in_channels,
        out_channels=of.config.out_channels,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=of.config.cross_attention_dim,
        attention_head_dim=8,
    )


def make_run(model: str, side: int, batch: int, accumulation: int, checkpointing: bool) -> Run:
    pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
    if model == "mid":
        pipe.unet = mid_unet(pipe.unet)
    denoiser = DiffusersDenoiser(pipe, model)
    config = pipe.unet.config
    tokens = torch.randn(77, config.cross_attention_dim)
    latents = [torch.randn(config.in_channels, side, side) for _ in range(2 * batch)]
    data = load_tensors(latents, [{"tokens": tokens}] * len(latents))
    options = TrainConfig(
        steps=STEPS + 1,
        batch_size=batch,
        gradient_checkpointing=checkpointing,
        adapter=AdapterConfig(rank=16),
        optimizer=OptimizerConfig(accumulation=accumulation),
    )
    adapter = TriLoRA.create(denoiser.targets(), options.adapter, seed=0, data_hash="")
    return Run(options, denoiser, data, adapter)


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measured(run: Run) -> dict[str, float]:
    """Growth of the process and of its allocator, in bytes, and seconds of a step."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from now on
    before = resident("VmRSS")
    with ExitStack() as stack:
        stack.enter_context(run.trainable.attach(run.denoiser.targets()))
        if run.config.gradient_checkpointing:
            stack.enter_context(checkpointed(run.denoiser.blocks(), in_place_safe=run.denoiser.in_place_safe))
        steps = stack.enter_context(closing(train(run)))
        seconds = [step.seconds for _, step in zip(range(STEPS), steps, strict=False)]
        grown = resident("VmHWM") - before
        state = sum(value.nbytes for each in run.optimizer.state.values() for value in each.values())
        allocated = state + profiled(lambda: next(steps))
    return {"process": grown, "allocator": allocated, "step": min(seconds)}


def profiled(work: Any) -> int:
    """Most bytes beyond the start that the allocator had given out."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def estimated(run: Run) -> dict[str, float]:
    found = estimate(run)
    return {"ahead": found.ahead, "seconds": found.seconds}


def ask(case: tuple[Any, ...]) -> dict[str, float]:
    """One line in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        case = json.loads(arguments.one)
        print(json.dumps({**measured(make_run(*case)), **estimated(make_run(*case))}))
        return
    print("| U-Net | latents | batch | recomputed | estimate | allocator | ratio | process | ratio | s a step, dry |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        model, side, batch, accumulation, checkpointing = case
        found = ask(case)
        ahead, allocator, process = (found[name] / 2**20 for name in ("ahead", "allocator", "process"))
        times = f" x {accumulation}" if accumulation > 1 else ""
        print(
            f"| {model} | {side} x {side} | {batch}{times} | {'on' if checkpointing else 'off'} | {ahead:.1f}"
            f" | {allocator:.1f} | {ahead / allocator:.2f} | {process:.1f} | {ahead / process:.2f}"
            f" | {found['step']:.2f}, {found['seconds']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
