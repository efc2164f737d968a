"""Cost and error of `truncated_svd` on layers of SDXL's sizes, beside dense SVD and ComfyUI's own extract node.

Run from the root of a clone, on one thread: `python benchmarks/extract.py [--rank 32] [--host PATH/OF/ComfyUI]`.
Process time, all sides in turns in one run; each figure is the median. One weight stands for all layers of its shape;
totals are its time multiplied by their count. Errors are above the least possible one (Eckart and Young 1936).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.randomized import truncated_svd

# (out, in) -> how many of SDXL's 560 attention linears and 140 feed-forward linears have this shape
ATTENTION = {(640, 640): 60, (640, 2048): 20, (1280, 1280): 360, (1280, 2048): 120}
FEED_FORWARD = {(5120, 640): 10, (640, 2560): 10, (10240, 1280): 60, (1280, 5120): 60}
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "1/i": lambda i: 1 / i,
    "1/sqrt(i)": lambda i: i**-0.5,
    "i^-0.25": lambda i: i**-0.25,
    "exp(-i/100)": lambda i: torch.exp(-i / 100),
    "flat (Gaussian)": torch.ones_like,
}


def dense(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """What kohya's extract_lora_from_models.py computes for a layer: all of U and V, then the first columns."""
    u, s, vh = torch.linalg.svd(weight)
    return u[:, :rank] * s[:rank], vh[:rank]


def thin(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same without the columns that no singular value belongs to."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


def ours(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    svd, _ = truncated_svd(weight, rank)
    return svd.u * svd.s, svd.vh


def host_node(path: Path) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """The function behind ComfyUI's node LoraSave ("Extract and Save Lora"), which clamps the largest 1% of entries."""
    sys.path.insert(0, str(path))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location("lora_extract", path / "comfy_extras" / "nodes_lora_extract.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.extract_lora  # type: ignore[no-any-return]


def example(shape: tuple[int, int], name: str) -> Tensor:
    """A difference with the named spectrum."""
    if name.startswith("flat"):
        return torch.randn(shape) * 1e-3
    k = min(shape)
    values = SPECTRA[name](torch.arange(1, k + 1).float())
    left, right = torch.linalg.qr(torch.randn(shape[0], k)).Q, torch.linalg.qr(torch.randn(shape[1], k)).Q
    return (left * values) @ right.T * 1e-2


def relative_error(weight: Tensor, factors: tuple[Tensor, Tensor]) -> float:
    up, down = factors
    return float((weight - up.float() @ down.float()).double().norm() / weight.double().norm())


def table_of_times(sides: dict[str, Any], shapes: dict[tuple[int, int], int], rank: int, repeats: int) -> None:
    names = list(sides)
    print(f"| out x in | layers | {' | '.join(names)} | dense / ours |\n|---|---|{'---|' * (len(names) + 1)}")
    total = dict.fromkeys(names, 0.0)
    for shape, count in shapes.items():
        weight = example(shape, "1/sqrt(i)")
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(repeats):
            for name, call in sides.items():
                start = time.process_time()
                call(weight, rank)
                times[name].append(time.process_time() - start)
        found = {name: statistics.median(values) for name, values in times.items()}
        for name, seconds in found.items():
            total[name] += seconds * count
        cells = " | ".join(f"{seconds * 1e3:.0f} ms" for seconds in found.values())
        print(f"| {shape[0]} x {shape[1]} | {count} | {cells} | {found['dense'] / found['ours']:.0f} |", flush=True)
    cells = " | ".join(f"{seconds:.0f} s" for seconds in total.values())
    print(f"| all | {sum(shapes.values())} | {cells} | **{total['dense'] / total['ours']:.0f}** |\n", flush=True)


def table_of_errors(sides: dict[str, Any], rank: int, shape: tuple[int, int]) -> None:
    print(f"Relative error at rank {rank} of a {shape[0]} x {shape[1]} difference, and how far above the least\n")
    print(f"| spectrum | least | {' | '.join(sides)} |\n|---|---|{'---|' * len(sides)}")
    for name in SPECTRA:
        weight = example(shape, name)
        values = torch.linalg.svdvals(weight.double())
        least = float((values[rank:].square().sum() / values.square().sum()).sqrt())
        found = [relative_error(weight, call(weight, rank)) for call in sides.values()]
        cells = " | ".join(f"{error:.4f} (+{100 * (error / least - 1):.2f}%)" for error in found)
        print(f"| {name} | {least:.4f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; the median counts (default 3)")
    parser.add_argument("--host", type=Path, help="a ComfyUI of 0.33 or so, whose node is measured too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides: dict[str, Any] = {"ours": ours, "thin": thin, "dense": dense}
    if options.host:
        sides["ComfyUI's node"] = host_node(options.host.expanduser())
    print(f"torch {torch.__version__}, one thread, float32, rank {options.rank}\n")
    with torch.no_grad():
        table_of_times(sides, ATTENTION, options.rank, options.repeats)
        table_of_times(sides, {shape: FEED_FORWARD[shape] for shape in ((640, 2560), (1280, 5120))}, options.rank, 1)
        table_of_errors({name: call for name, call in sides.items() if name != "thin"}, options.rank, (640, 640))


if __name__ == "__main__":
    main()
