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
from dataclasses import replace
from pathlib import Path

import peft
import torch
from spectral import Shape, sdxl_attention_shapes
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.calibration import Calibration, Facts
from trilora_core.fileformat import Adapter, Layer
from trilora_core.merge import METHODS, MergeOptions, merge
from trilora_core.merge_regmean import DAMPING
from trilora_core.moments import LEARNED, PRIOR, Moments, gatherer, sketch_columns
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


def shared_inputs(shapes: Sequence[Shape]) -> list[str]:
    """What each attention linear reads: q, k and v of self-attention the same, k and v of cross-attention the text."""
    blocks = [f"{index // 8}" for index in range(len(shapes))]
    names = ("self", "self", "self", "self out", "cross", "text", "text", "cross out")
    return [names[i % 8] if names[i % 8] == "text" else f"{names[i % 8]} {block}" for i, block in enumerate(blocks)]


def model_calibrations(shapes: Sequence[Shape], count: int) -> list[Calibration]:
    """As calibrate writes them: inputs of their own for each adapter, the same of the base's; one draw a width."""
    names, made = shared_inputs(shapes), []
    widths = {name: shape[1] for name, shape in zip(names, shapes, strict=True)}
    drawn = [{width: calibration(["x"], width) for width in set(widths.values())} for _ in range(count)]
    for found in drawn:
        learned = {name: replace(found[width].learned["x"]) for name, width in widths.items()}
        prior = {name: replace(drawn[0][width].prior["x"]) for name, width in widths.items()}
        inputs = {f"layer_{index}": name for index, name in enumerate(names)}
        made.append(Calibration(found[widths["text"]].facts, inputs, learned, prior))
    return made


def dense_regmean(layers: Sequence[Layer], moments: Sequence[tuple[Moments, Moments]]) -> Tensor:
    """The published formula in float64, one dense layer by itself."""
    own, priors = ([one.times(torch.eye(one.width).double()) for one in side] for side in zip(*moments, strict=True))
    gram = sum(own) + sum(priors) / len(priors)
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    pulled = sum(dense(layer) @ matrix for layer, matrix in zip(layers, own, strict=True))
    return torch.linalg.solve(gram, pulled.T).T


def whole_regmean(name: str, shapes: Sequence[Shape], rank: int, count: int) -> None:
    """RegMean of whole models, measured whole; its dense form on SAMPLES layers of each shape."""
    made = [adapter(shapes, rank, seed) for seed in range(count)]
    given = model_calibrations(shapes, count)
    held = sum(one.size for one in given) / 2**20
    kept: list[Adapter] = []
    spent = seconds(lambda: kept.append(merge(made, [1.0] * count, method="regmean", calibrations=given)[0]))
    formula = whole = worst = 0.0
    for shape, times in Counter(shapes).items():
        for index in [i for i, one in enumerate(shapes) if one == shape][:SAMPLES]:
            stem, found = f"layer_{index}", []
            layers, moments = [one.layers[stem] for one in made], [one.moments(stem) for one in given]
            taken = seconds(lambda a=layers, m=moments, f=found: f.append(dense_regmean(a, m)))
            formula += taken * times / SAMPLES
            whole += (taken + seconds(lambda f=found: torch.linalg.svd(f[0].float(), False))) * times / SAMPLES
            worst = max(worst, error(dense(kept[0].layers[stem]), found[0]))
    print(
        f"| {name} | {len(set(shared_inputs(shapes)))} | {held:.0f} | {spent:.1f} | {formula:.0f} | {whole:.0f} |",
        end="",
    )
    print(f" {formula / spent:.1f} | {whole / spent:.1f} | {worst:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--count", type=int, default=2, help="adapters that are merged in the tables (default 2)")
    parser.add_argument("--only-whole", action="store_true", help="leave the tables of all methods out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, PEFT {peft.__version__}, one thread, float32, density {DENSITY}")
    one_shape((64, 64), 4, 2)  # what is slow only once
    for rank in options.ranks[:1]:  # first: memory that the tables give back would hide what this takes
        whole_adapters(rank)
    print(f"\nRegMean of {options.count} whole adapters of rank 16, s; q, k and v of a block share their input\n")
    print("| model | inputs | MiB of moments | ours | formula | with SVD | formula / ours | with SVD / ours | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, shapes in (("SD1.5", sd15_attention_shapes()), ("SDXL", sdxl_attention_shapes())):
        whole_regmean(name, shapes, 16, options.count)
    if options.only_whole:
        return
    table("SD1.5's size", sd15_attention_shapes(), options.ranks, options.count)
    table("SDXL's size", sdxl_attention_shapes(), options.ranks, options.count)


if __name__ == "__main__":
    main()
