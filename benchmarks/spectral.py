"""Cost and error of `trilora_core.spectral` beside dense decompositions.

Run from the root of a clone, on one thread: `python benchmarks/spectral.py [--rank 16] [--repeats 5]`. Both sides are
measured as process time, alternating in one run; each figure is the median.
One weight stands for all SDXL layers of its shape; the totals are its time multiplied by their count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.randomized import top_singular_values
from trilora_core.spectral import canonical, canonical_many, singular_values_many

Shape = tuple[int, int]

# SDXL's UNet: transformer blocks by width (down 2x2; down 2x10, middle 10, up 3x10; up 3x2), context of 2048.
SDXL_BLOCKS = {640: 2 * 2 + 3 * 2, 1280: 2 * 10 + 10 + 3 * 10}
SDXL_CONTEXT = 2048

DECAYING: dict[str, Callable[[Tensor], Tensor]] = {
    "1/i": lambda i: 1 / i,
    "1/sqrt(i)": lambda i: i**-0.5,
    "i^-0.25": lambda i: i**-0.25,
    "exp(-i/100)": lambda i: torch.exp(-i / 100),
}
CANONICAL_CASES = ((640, 640, 16), (1280, 1280, 16), (1280, 2048, 16), (1280, 1280, 64))


def sdxl_attention_shapes() -> list[Shape]:
    """(out, in) of the 560 attention linears: q, k, v, out of self-attention, then of cross-attention."""
    shapes: list[Shape] = []
    for width, blocks in SDXL_BLOCKS.items():
        square, cross = (width, width), (width, SDXL_CONTEXT)
        shapes += [square, square, square, square, square, cross, cross, square] * blocks
    return shapes


def alternating(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median process time in ms of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def with_spectrum(shape: Shape, values: Tensor) -> Tensor:
    left = torch.linalg.qr(torch.randn(shape[0], values.numel())).Q
    right = torch.linalg.qr(torch.randn(shape[1], values.numel())).Q
    return (left * values) @ right.T


def plain_subspace_values(weight: Tensor, rank: int) -> Tensor:
    """Randomized subspace iteration with as many passes (8) and columns as ours, keeping the last block only."""
    basis = torch.linalg.qr(weight @ torch.randn(weight.shape[1], rank + 12)).Q
    for _ in range(3):
        basis = torch.linalg.qr(weight @ (weight.T @ basis)).Q
    return torch.linalg.svdvals(basis.T @ weight)[:rank]


def worst_error(found: Tensor, exact: Tensor) -> float:
    """Largest relative error in percent."""
    exact = exact[: found.numel()]
    return float(((found - exact).abs() / exact).max() * 100)


def speed_of_top_values(rank: int, repeats: int) -> None:
    counts = Counter(sdxl_attention_shapes())
    print(f"\nTop {rank} singular values of SDXL's {counts.total()} attention linears, process time in ms a layer\n")
    print("| out x in | layers | svdvals | ours | ours / svdvals |\n|---|---|---|---|---|")
    total = {"svdvals": 0.0, "ours": 0.0}
    for shape, count in counts.items():
        weight = torch.randn(shape)
        calls = {
            "svdvals": lambda w=weight: torch.linalg.svdvals(w),
            "ours": lambda w=weight: top_singular_values(w, rank),
        }
        found = alternating(calls, repeats)
        for name, ms in found.items():
            total[name] += count * ms / 1e3
        ratio = found["ours"] / found["svdvals"]
        print(f"| {shape[0]} x {shape[1]} | {count} | {found['svdvals']:.1f} | {found['ours']:.1f} | {ratio:.1%} |")
    ratio = total["ours"] / total["svdvals"]
    print(f"| all, in s | {counts.total()} | {total['svdvals']:.1f} | {total['ours']:.1f} | {ratio:.1%} |", flush=True)


def errors_of_top_values(rank: int) -> None:
    shapes = sorted(set(sdxl_attention_shapes()))
    names = [f"{out} x {in_}" for out, in_ in shapes]
    print(f"\nLargest relative error of the top {rank} values, in %: ours / plain subspace iteration\n")
    print(f"| spectrum | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name in (*DECAYING, "flat (Gaussian weight)"):
        row = []
        for shape in shapes:
            weight, exact = example(name, shape)
            methods = (top_singular_values, plain_subspace_values)
            row.append(" / ".join(f"{worst_error(method(weight, rank), exact):.3f}" for method in methods))
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def example(name: str, shape: Shape) -> tuple[Tensor, Tensor]:
    """A weight with the named spectrum, and its singular values."""
    if name in DECAYING:
        values = DECAYING[name](torch.arange(1, min(shape) + 1).float())
        return with_spectrum(shape, values), values
    weight = torch.randn(shape)
    return weight, torch.linalg.svdvals(weight)


def speed_by_rank(repeats: int, shape: Shape = (640, 640)) -> None:
    print(f"\nOne {shape[0]} x {shape[1]} weight by rank, ms\n\n| rank | svdvals | ours |\n|---|---|---|")
    weight = torch.randn(shape)
    for rank in (1, 4, 8, 16, 32, 64, 128, 256):
        calls = {
            "svdvals": lambda: torch.linalg.svdvals(weight),
            "ours": lambda r=rank: top_singular_values(weight, r),
        }
        found = alternating(calls, repeats)
        print(f"| {rank} | {found['svdvals']:.1f} | {found['ours']:.1f} |", flush=True)


def speed_of_batches(rank: int, repeats: int, shape: Shape = (1280, 1280), count: int = 4) -> None:
    weights = torch.randn(count, *shape)
    calls = {
        "stacked": lambda: top_singular_values(weights, rank),
        "one by one": lambda: [top_singular_values(weight, rank) for weight in weights],
    }
    found = alternating(calls, repeats)
    text = ", ".join(f"{name} {ms / count:.1f} ms" for name, ms in found.items())
    print(f"\n{count} weights of {shape[0]} x {shape[1]}, a layer: {text}", flush=True)


def canonical_forms(repeats: int) -> None:
    print("\nCanonical form against the SVD of the dense update, ms a layer; error relative to the update in float64\n")
    print("| out x in, r | dense SVD | ours | dense / ours | error of ours |\n|---|---|---|---|---|")
    for out, in_, rank in CANONICAL_CASES:
        up, down = torch.randn(out, rank), torch.randn(rank, in_)
        calls = {
            "dense": lambda a=up, b=down: torch.linalg.svd(a @ b, full_matrices=False),
            "ours": lambda a=up, b=down: [canonical(a, b) for _ in range(20)],
        }
        found = alternating(calls, max(1, repeats // 2))
        found["ours"] /= 20
        svd, exact = canonical(up, down), up.double() @ down.double()
        error = float(((svd.u.double() * svd.s) @ svd.vh.double() - exact).norm() / exact.norm())
        ratio = found["dense"] / found["ours"]
        print(
            f"| {out} x {in_}, {rank} | {found['dense']:.0f} | {found['ours']:.2f} | {ratio:.0f} | {error:.1e} |",
            flush=True,
        )


def looks_at_an_adapter(rank: int, repeats: int) -> None:
    """What a look of --spectrum-every costs on an adapter of SDXL's size, beside its whole canonical form."""
    shapes = sdxl_attention_shapes()
    layers = {str(i): (torch.randn(out, rank), torch.randn(rank, in_)) for i, (out, in_) in enumerate(shapes)}
    calls = {"values": lambda: singular_values_many(layers), "whole": lambda: canonical_many(layers)}
    alternating(calls, 1)
    found = alternating(calls, repeats)
    text = f"{found['values']:.0f} ms; their canonical form: {found['whole']:.0f} ms"
    print(f"\nSingular values of an adapter of {len(layers)} layers, rank {rank}: {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16, help="top singular values wanted (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side; the median counts (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, float32")
    speed_of_top_values(options.rank, options.repeats)
    errors_of_top_values(options.rank)
    speed_by_rank(options.repeats)
    speed_of_batches(options.rank, options.repeats)
    canonical_forms(options.repeats)
    looks_at_an_adapter(options.rank, options.repeats)


if __name__ == "__main__":
    main()
