"""Speed and memory of a step, of the start and of applying, beside whatever peers are there: one table, one plot.

Run from the root of a clone: `python benchmarks/speed/run.py`. What results.jsonl holds of this machine is not measured
again; what it holds of another one is left alone. PEFT is compared where it is installed, the host's own nodes where a
ComfyUI 0.33 or newer is found (COMFYUI_PATH or ~/comfy/ComfyUI), full-size models where there is a CUDA device.
`--tiny --folder DIR` shows in a few minutes that all of it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
import gpu  # noqa: E402
import host  # noqa: E402
import native  # noqa: E402
import paper  # noqa: E402
import plan  # noqa: E402
import report  # noqa: E402
import start  # noqa: E402
import tuned  # noqa: E402
from measure import memory, turns, weights  # noqa: E402
from sides import Bench, Case  # noqa: E402

LARGE = 1024  # latent points in a batch
PAPER = (("reduced", 16), ("sd15", 64), ("sdxl", 128))
Records = dict[str, dict[str, Any]]


class Book:
    """Results of this machine by name, a line of JSON each; what is there is not measured again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        found, here = map(json.loads, lines), machine()["machine"]
        self.records: Records = {record["name"]: record for record in found if record["machine"] == here}

    def once(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Measure and write down, with the machine and its load."""
        if name in self.records:
            return
        record = {"name": name, **rounded(work()), "load": round(os.getloadavg()[0], 1), **machine()}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        self.records[name] = record
        print(json.dumps(record), flush=True)


def rounded(value: Any) -> Any:
    """Four digits of every number that is no count, in dicts and lists too."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """What was measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }


def stage_paper(book: Book, options: argparse.Namespace) -> None:
    """What a step must compute and store, on shapes alone."""
    for name, side in (("tiny", 8),) if options.tiny else PAPER:
        book.once(f"paper {name} {side}", lambda n=name, s=side: paper.count(n, s, 1, 16))


def stage_steps(book: Book, options: argparse.Namespace) -> None:
    """This package and PEFT beside the floor."""
    sides = ["floor", "here"] + (["peft"] if importlib.util.find_spec("peft") else [])
    bench: Bench | None = None
    for case in plan.cases(options.tiny):
        if f"steps {case.name}" in book.records:
            continue
        bench = Bench(case) if bench is None else bench.like(case)
        book.once(f"steps {case.name}", lambda b=bench: _both(b, sides, options.rounds))


def _both(bench: Bench, sides: list[str], rounds: int) -> dict[str, Any]:
    if bench.case.batch * bench.case.side**2 > LARGE:
        rounds = max(3, rounds // 2)  # long steps vary less
    found: dict[str, Any] = {"model MiB": weights(bench)}
    for side in sides:
        found |= memory(bench, side)
    return found | turns(bench, sides, rounds)


def stage_start(book: Book, options: argparse.Namespace) -> None:
    """Σ from W0, canonical form and attaching, for all of SDXL's attention."""
    book.once("start sdxl", lambda: start.measure(16, 1 if options.tiny else 3, "tiny" if options.tiny else "sdxl"))


def stage_host(book: Book, options: argparse.Namespace) -> None:
    """The host's own Train LoRA node and its loader."""
    _beside_the_host(book, "tiny" if options.tiny else "reduced", options.rounds)


def stage_host_sd15(book: Book, options: argparse.Namespace) -> None:
    """The same at the size of SD1.5, only when asked for: a quarter of an hour, and 14 GB of memory."""
    _beside_the_host(book, "sd15", options.rounds)


def _beside_the_host(book: Book, size: str, rounds: int) -> None:
    if native.version() < host.OLDEST:
        print("no ComfyUI 0.33 or newer at COMFYUI_PATH or ~/comfy/ComfyUI: its own nodes are left out", flush=True)
        return
    for name, work in host.tasks(size, (rounds + 1) // 2, book.records):  # steps of the host's node are long
        book.once(name, work)


def stage_tuned(book: Book, options: argparse.Namespace) -> None:
    """AdamW's forms, and torch.compile."""
    book.once("tuned optimizers", lambda: tuned.optimizers(16, options.rounds, options.tiny))
    case = Case("tiny", side=8) if options.tiny else Case()
    book.once("tuned compile", lambda: tuned.compiled(case, options.rounds))


def stage_gpu(book: Book, options: argparse.Namespace) -> None:
    """Full-size random models, where there is a CUDA device."""
    if not torch.cuda.is_available():
        print("no CUDA device: full-size models are left out", flush=True)
        return
    for name, work in gpu.tasks(options.rounds):
        book.once(name, work)


STAGES: dict[str, Callable[[Book, argparse.Namespace], None]] = {
    "paper": stage_paper,
    "steps": stage_steps,
    "start": stage_start,
    "host": stage_host,
    "tuned": stage_tuned,
    "gpu": stage_gpu,
    "host-sd15": stage_host_sd15,
}
UNASKED = [name for name in STAGES if name != "host-sd15"]


def main() -> None:
    """Measure what is missing, print and write the tables, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)} (default: all but the last)")
    parser.add_argument("--folder", type=Path, help="of results.jsonl, tables.md and speed.png (default: this one's)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--tiny", action="store_true", help="small models that only show that all of this runs")
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    if options.tiny and options.folder is None:
        parser.error("--tiny needs a --folder of its own, so that its results are not taken for real ones")
    folder = options.folder or HERE
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    book = Book(folder / "results.jsonl")
    for stage in options.stages or UNASKED:
        STAGES[stage](book, options)
    sweeps = plan.sweeps(options.tiny)
    tables = "\n".join(report.tables(book.records, sweeps)) + "\n"
    print(tables)
    (folder / "tables.md").write_text("# What was measured\n" + tables, encoding="utf-8")
    report.plot(book.records, sweeps, folder / "speed.png")


if __name__ == "__main__":
    main()
