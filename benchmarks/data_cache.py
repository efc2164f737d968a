"""10,000 pictures: how fast they are encoded, how fast a second run starts, and whether memory stays flat.

Run from the root of a clone: `python benchmarks/data_cache.py [--pictures 10000] [--steps 300]`. Pictures are made by
this script, encoded by the text encoder and VAE of the demo's model and trained on with its U-Net, on one thread. Each
line is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import DiffusersDenoiser, DiffusersEncoder, load_pipeline
from trilora_core.config import AdapterConfig, TrainConfig
from trilora_core.config_data import DataConfig
from trilora_core.data import DiskStore, MemoryStore, load_folder
from trilora_core.demo import BASE
from trilora_core.train import Run, train

SIZES = ((96, 96), (128, 80), (80, 128), (112, 96), (160, 72))
COLOURS = ("red", "green", "blue", "orange", "white", "black", "purple")
THINGS = ("cat", "house", "tree", "fish", "boat", "flower", "car")
LIMIT = 32 * 2**30


def make_pictures(folder: Path, count: int) -> None:
    """Smooth noise, each picture unlike any other, with one of 2,401 captions beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        chance = numpy.random.default_rng(index)
        small = chance.integers(0, 256, (6, 6, 3), dtype=numpy.uint8)
        picture = Image.fromarray(small).resize(SIZES[index % len(SIZES)], Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05d}.jpg", quality=90)
        words = random.Random(index)
        text = f"a {words.choice(COLOURS)} {words.choice(THINGS)} and a {words.choice(COLOURS)} {words.choice(THINGS)}"
        (folder / f"{index:05d}.txt").write_text(text, encoding="utf-8")


def measure(folder: Path, cache: Path | None, steps: int) -> dict[str, float]:
    """Load the set and train on it; seconds of the load, peak memory after it and after training, in MiB."""
    torch.set_num_threads(1)
    pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
    encoder, denoiser = DiffusersEncoder(pipe), DiffusersDenoiser(pipe)
    empty = peak()
    start = time.perf_counter()
    store = MemoryStore() if cache is None else DiskStore(cache, LIMIT)
    data = load_folder(DataConfig(str(folder), 64), encoder, store)
    found = {"pictures": len(data), "load_s": time.perf_counter() - start, "empty": empty, "loaded": peak()}
    found["sample_ms"] = sample_time(data)
    config = TrainConfig(steps=max(steps, 1), batch_size=4, adapter=AdapterConfig(rank=4))
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=0, data_hash=data.content_hash)
    run = Run(config, denoiser, data, adapter)
    peaks = []
    with adapter.attach(denoiser.targets()), closing(train(run)) as walk:
        for step in walk:
            if step.step in (steps // 4, steps):
                peaks.append(peak())
    return found | {"trained_quarter": peaks[0], "trained": peaks[-1]}


def sample_time(data) -> float:
    """Milliseconds to fetch one picture with its caption, as the loop does."""
    chosen = random.Random(0).choices(range(len(data)), k=1000)
    start = time.perf_counter()
    for index in chosen:
        data.sample(index, random.Random(index))
    return time.perf_counter() - start


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)


def in_a_process(folder: Path, cache: Path | None, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(folder), "--steps", str(steps)]
    command += ["--cache", str(cache)] if cache else []
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=300, help="training steps of batch 4 in each process")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        cache = Path(chosen.cache) if chosen.cache else None
        return print(json.dumps(measure(Path(chosen.one), cache, chosen.steps)))
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place), chosen.pictures, chosen.steps)
    return None


def compare(place: Path, count: int, steps: int) -> None:
    """Print the table."""
    print("| pictures | cache | load, s | pictures/s | sample, ms | MiB before, loaded, trained 1/4, trained |")
    print("|---|---|---|---|---|---|")

    def show(label: str, folder: Path, cache: Path | None) -> None:
        found = in_a_process(folder, cache, steps)
        memory = ", ".join(f"{found[key]:.0f}" for key in ("empty", "loaded", "trained_quarter", "trained"))
        rate = found["pictures"] / found["load_s"]
        line = f"{found['load_s']:.1f} | {rate:,.0f} | {found['sample_ms']:.2f} | {memory}"
        print(f"| {found['pictures']:,} | {label} | {line} |", flush=True)

    for size in (count // 10, count):
        folder, cache = place / f"set_{size}", place / f"cache_{size}" / "data.sqlite"
        make_pictures(folder, size)
        show("disk, cold", folder, cache)
        show("disk, warm", folder, cache)
        noise = numpy.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(folder / "00003.jpg")
        show("disk, one picture edited", folder, cache)
        show("memory", folder, None)
    print(f"\ncache file of {count:,} pictures: {cache.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
