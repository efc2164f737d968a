"""Cost, error and memory of merges beside the dense SVD and PEFT's `add_weighted_adapter`.

Run from the root of a clone, on one thread: `python benchmarks/merge.py [--ranks 16 64]`. Both sides are measured as
process time in one run. In the tables two layers of random factors stand for all layers of their shape, and the totals
are their time multiplied by the count; the first lines merge five whole adapters. Memory needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import peft
import torch
from spectral import Shape, sdxl_attention_shapes
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.calibration import Calibration, Facts
from trilora_core.fileformat import Adapter, Layer
from trilora_core.merge import METHODS, MergeOptions, merge
from trilora_core.moments import LEARNED, PRIOR, gatherer, sketch_columns
from trilora_core.spectral import canonical_many

# SD1.5's UNet: transformer blocks by width (down 2 a level, middle 1, up 3 a level), context of 768.
SD15_BLOCKS = {320: 2 + 3, 640: 2 + 3, 1280: 2 + 1 + 3}
PEFT_TYPES = ("cat", "linear", "svd", "ties_svd", "dare_linear_svd")
SAMPLES = 2  # layers that stand for all of their shape
DENSITY = 0.5


def sd15_attention_shapes() -> list[Shape]:
    """(out, in) of the 128 attention linears."""
    shapes: list[Shape] = []
    for width, blocks in SD15_BLOCKS.items():
        square, cross = (width, width), (width, 768)
        shapes += [square, square, square, square, square, cross, cross, square] * blocks
    return shapes


def adapter(shapes: Sequence[Shape], rank: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        f"layer_{index}": (
            torch.randn(out, rank, generator=generator) / out**0.5,
            torch.randn(rank, in_, generator=generator) / in_**0.5,
        )
        for index, (out, in_) in enumerate(shapes)
    }
    return Adapter({stem: Layer(svd) for stem, svd in canonical_many(factors).items()}, {})


def calibration(stems: Sequence[str], width: int) -> Calibration:
    """Moments of random inputs, all layers with an input of their own."""
    sides = []
    for storage in (LEARNED, PRIOR):
        held = {stem: gatherer(width, storage, sketch_columns(width, storage, 0)) for stem in stems}
        for stem in stems:
            held[stem].add(torch.randn(2 * width, width))
        sides.append({stem: held[stem].moments() for stem in stems})
    facts = Facts("", "", "", "", 0, "", "", 0, 0, 0, LEARNED, PRIOR)
    return Calibration(facts, {stem: stem for stem in stems}, *sides)


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def peft_model(adapters: Sequence[Adapter], shape: Shape) -> peft.PeftModel:
    """The same factors in PEFT, on a model of these layers."""

    class Standin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for stem in adapters[0].layers:
                self.add_module(stem, nn.Linear(shape[1], shape[0], bias=False))

    rank = len(next(iter(adapters[0].layers.values())).svd.s)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(adapters[0].layers))
    model = peft.get_peft_model(Standin(), config, adapter_name="0")
    for index in range(1, len(adapters)):
        model.add_adapter(str(index), config)
    for index, found in enumerate(adapters):
        for stem, layer in found.layers.items():
            target = model.base_model.model.get_submodule(stem)
            target.lora_A[str(index)].weight.data = layer.svd.s.sqrt().unsqueeze(1) * layer.svd.vh
            target.lora_B[str(index)].weight.data = layer.svd.u * layer.svd.s.sqrt()
    return model


def by_peft(model: peft.PeftModel, count: int, rank: int, kind: str) -> None:
    names = [str(index) for index in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.base_model.add_weighted_adapter(
            names, [1.0] * count, kind, combination_type=kind, svd_rank=count * rank, density=DENSITY
        )


def dense(layer: Layer) -> Tensor:
    u, s, vh = (part.double() for part in layer.svd)
    return u * s @ vh


def dense_svds(adapters: Sequence[Adapter]) -> None:
    for stem in adapters[0].layers:
        torch.linalg.svd(sum(dense(found.layers[stem]) for found in adapters).float(), full_matrices=False)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def one_shape(shape: Shape, rank: int, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """Process time of SAMPLES layers in s and, where the exact sum is wanted, the error against it."""
    adapters = [adapter([shape] * SAMPLES, rank, seed) for seed in range(count)]
    stems = list(adapters[0].layers)
    wanted = sum(dense(found.layers[stems[0]]) for found in adapters)
    times, errors = {"dense SVD": seconds(lambda: dense_svds(adapters))}, {}
    calibrations = [calibration(stems, shape[1])] * count
    for name, method in METHODS.items():
        given = calibrations if method.calibrated else ()
        call = lambda n=name, g=given: merge(  # noqa: E731
            adapters, [1.0] * count, method=n, options=MergeOptions(density=DENSITY), calibrations=g
        )
        times[name] = seconds(call)
    errors["sum"] = error(dense(merge(adapters, [1.0] * count)[0].layers[stems[0]]), wanted)
    model = peft_model(adapters, shape)
    for kind in PEFT_TYPES:
        times[f"PEFT {kind}"] = seconds(lambda k=kind: by_peft(model, count, rank, k))
        if kind in ("cat", "linear", "svd"):
            made = model.base_model.model.get_submodule(stems[0]).get_delta_weight(kind)
            errors[f"PEFT {kind}"] = error(made.detach(), wanted)
    return times, errors


def table(name: str, shapes: Sequence[Shape], ranks: Sequence[int], count: int) -> None:
    totals: dict[tuple[str, int], float] = {}
    worst: dict[tuple[str, int], float] = {}
    for rank in ranks:
        for shape, layers in Counter(shapes).items():
            times, errors = one_shape(shape, rank, count)
            for method, spent in times.items():
                totals[method, rank] = totals.get((method, rank), 0.0) + spent * layers / SAMPLES
            for method, found in errors.items():
                worst[method, rank] = max(worst.get((method, rank), 0.0), found)
    print(f"\n{count} adapters of {name}, {len(shapes)} layers: s for all, times faster than the dense SVD, error\n")
    heads = " | ".join(f"r {rank}, s | dense / it | error of the sum" for rank in ranks)
    print(f"| method | {heads} |\n|---|{'---|' * 3 * len(ranks)}")
    for method in dict.fromkeys(method for method, _ in totals):
        cells = []
        for rank in ranks:
            found = worst.get((method, rank))
            ratio = totals["dense SVD", rank] / totals[method, rank]
            cells += [f"{totals[method, rank]:.2f}", f"{ratio:.1f}", "" if found is None else f"{found:.1e}"]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def memory() -> float:
    """MiB that this process has in memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def peak(call: Callable[[], object]) -> tuple[float, float]:
    """Process time in s, and MiB at most beyond those before, looked at every 5 ms."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed earlier would hide what is taken now
    before, seen, done = memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(memory())

    thread = threading.Thread(target=watch)
    thread.start()
    spent = seconds(call)
    done.set()
    thread.join()
    return spent, max(seen) - before


def whole_adapters(rank: int, count: int = 5) -> None:
    shapes = sdxl_attention_shapes()
    made = []
    spent = [seconds(lambda s=seed: made.append(adapter(shapes, rank, s))) for seed in range(count)]
    numbers = sum(part.numel() for layer in made[0].layers.values() for part in layer.svd)
    print(f"\nSDXL, rank {rank}: {min(spent):.2f} s to draw and canonicalise an adapter of {numbers / 2**18:.0f} MiB")
    for method in ("sum", "knots", "tsv", "orthogonal"):
        spent, more = peak(lambda m=method: merge(made, [1.0] * count, method=m))
        print(
            f"{count} of them by {method}: {spent:.2f} s, {more:.0f} MiB at most beside them, result included",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--count", type=int, default=2, help="adapters that are merged in the tables (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, PEFT {peft.__version__}, one thread, float32, density {DENSITY}")
    one_shape((64, 64), 4, 2)  # what is slow only once
    for rank in options.ranks[:1]:  # first: memory that the tables give back would hide what this takes
        whole_adapters(rank)
    table("SD1.5's size", sd15_attention_shapes(), options.ranks, options.count)
    table("SDXL's size", sdxl_attention_shapes(), options.ranks, options.count)


if __name__ == "__main__":
    main()
