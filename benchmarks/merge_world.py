"""A style and a subject merged by every method, on the demo's small model: losses, drift, and a grid of pictures.

Run from the root of a clone: `python benchmarks/merge_world.py [--seeds 0 1 2]`. One thread. Adapters, calibrations and
measures are kept below `build/merge_world`, and a second start does only what is missing there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "preserve"), str(ROOT)]
from measure import BATCH, RANK, Bench  # noqa: E402

from trilora_core.adapter import TriLoRA  # noqa: E402
from trilora_core.backend_diffusers import DiffusersPreviewer, apply_adapter  # noqa: E402
from trilora_core.calibration import Calibration, calibration_path, read_calibration, write_calibration  # noqa: E402
from trilora_core.config import AdapterConfig, OptimizerConfig, TrainConfig  # noqa: E402
from trilora_core.fileformat import Adapter, read_adapter, write_adapter  # noqa: E402
from trilora_core.merge import METHODS, MergeOptions, merge  # noqa: E402
from trilora_core.plots import picture_grid  # noqa: E402
from trilora_core.train import Run, train  # noqa: E402

STEPS, RATE = 300, 4e-3
LEARNED = ("style", "subject")
SIDES = ("style", "subject", "both")  # of the held-out losses; nothing is trained on both at once
CAPTIONS = {"": "broad", " (world)": "world"}  # of the calibrations that regmean gets
PROMPTS = {
    "house, style": "a blue house at night, ghost style",
    "tree, style": "a green tree on a green field, ghost style",
    "robot": "a red robot on a green field",
    "robot at night": "a yellow robot at night",
    "robot, style": "a red robot on a green field, ghost style",
    "night, style": "a yellow robot at night, ghost style",
    "house": "a red house by the sea",
    "boat": "a purple boat in the desert",
}


@dataclass(frozen=True)
class Case:
    """One row: the base (no weights), one adapter (one weight 0), or a merge."""

    label: str
    weights: tuple[float, float]
    method: str = ""
    rank: int = 0
    captions: str = ""

    @property
    def name(self) -> str:
        return f"{self.label} | {self.weights[0]:g}, {self.weights[1]:g} | rank {self.rank}"


def cases() -> list[Case]:
    """The base, each adapter by itself, and every method at two weights, whole and cut to the rank of the parts."""
    found = [Case("base", (0.0, 0.0)), Case("style alone", (1.0, 0.0)), Case("subject alone", (0.0, 1.0))]
    for method, about in METHODS.items():
        for more, captions in CAPTIONS.items() if about.calibrated else (("", ""),):
            for weight in (1.0, 0.7):
                ranks = (0,) if method == "concatenate" else (0, RANK)
                found += [Case(method + more, (weight, weight), method, rank, captions) for rank in ranks]
    return found


class World:
    """The demo's base, and what one seed has made of it."""

    def __init__(self, bench: Bench, place: Path, seed: int, steps: int) -> None:
        self.bench, self.place, self.seed, self.steps = bench, place, seed, steps
        self.held = {side: bench.rows(bench.data(side)[1]) for side in SIDES}

    def adapter(self, concept: str) -> Adapter:
        """Trained now, or as it was kept."""
        path = self.place / f"{concept}_{self.seed}_{self.steps}.safetensors"
        if not path.is_file():
            write_adapter(path, self._trained(concept), dtype=torch.float32)
            print(f"trained {path.name}", flush=True)
        return read_adapter(path)

    def _trained(self, concept: str) -> Adapter:
        optimizer = OptimizerConfig(learning_rate=RATE, schedule="cosine", warmup_steps=10)
        shape = AdapterConfig(rank=RANK)
        config = TrainConfig(steps=self.steps, batch_size=BATCH, seed=self.seed, adapter=shape, optimizer=optimizer)
        adapter = TriLoRA.create(self.bench.targets, shape, seed=self.seed, data_hash=concept)
        run = Run(config, self.bench.denoiser, self.bench.data(concept)[0], adapter)
        with adapter.attach(self.bench.targets), closing(train(run)) as steps:
            for _ in steps:
                pass
        return run.adapter()

    def calibration(self, concept: str, captions: str) -> Calibration:
        """Gathered now, or as it was kept; no seed of training is in it."""
        path = calibration_path(self.place / f"{concept}_{captions}.safetensors")
        if not path.is_file():
            write_calibration(path, self.bench.calibration(concept, captions))
        return read_calibration(path)

    def merged(self, case: Case) -> tuple[Adapter | None, float, float]:
        """The adapter, the share of energy that is left after the cut, and the share that the method left out."""
        parts = [(self.adapter(concept), weight) for concept, weight in zip(LEARNED, case.weights, strict=True)]
        if not case.method:
            return next((adapter for adapter, weight in parts if weight), None), 1.0, 0.0
        adapters, weights = zip(*parts, strict=True)
        given = [self.calibration(concept, case.captions) for concept in LEARNED] if case.captions else ()
        options = MergeOptions(rank=case.rank)
        found, report = merge(adapters, weights, method=case.method, options=options, calibrations=given)
        return found, report.kept_energy, sum(report.removed) / len(report.removed)

    @torch.no_grad()
    def measured(self, adapter: Adapter | None) -> dict[str, float]:
        """Held-out losses, and drift on the base's own world as `monitor.Measure` defines it."""
        with ExitStack() as stack:
            if adapter is not None:
                stack.enter_context(apply_adapter(self.bench.pipe, adapter))
            losses = {side: float((now - wanted).square().mean()) for side, now, wanted in self._asked()}
            change = (self.bench._asked(self.bench.drift_rows) - self.bench.base_drift).square().mean()
        return losses | {"drift": float(change / self.bench.base_drift.square().mean())}

    def _asked(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        denoiser = self.bench.denoiser
        for side, rows in self.held.items():
            clean, noise = torch.stack([r.sample.latents for r in rows]), torch.stack([r.noise for r in rows])
            times = denoiser.times(torch.cat([row.u for row in rows]))
            yield side, *denoiser.predict(clean, noise, times, [row.sample.cond for row in rows])


def record(world: World, case: Case, file: Path) -> None:
    """Measure one row and append it to the file as a line of JSON."""
    adapter, kept, removed = world.merged(case)
    found = {"case": case.name, "seed": world.seed, "steps": world.steps, "kept": kept, "removed": removed}
    found |= world.measured(adapter)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(found) + "\n")
    print(
        f"{world.seed} {case.name}: " + ", ".join(f"{side} {found[side]:.3f}" for side in (*SIDES, "drift")), flush=True
    )


def read(file: Path, steps: int) -> dict[tuple[str, int], dict]:
    """What has been measured after so many steps, by case and seed."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [json.loads(line) for line in lines]
    return {(one["case"], one["seed"]): one for one in found if one["steps"] == steps}


def table(found: dict[tuple[str, int], dict], seeds: Sequence[int]) -> None:
    """Means over the seeds, whole and cut to RANK side by side."""
    heads = " | ".join(("style", "subject", "both", "drift"))
    print(f"\n| method | weights | {heads} | left out | {heads} | kept |\n|---|---|{'---|' * 10}")
    for case in (one for one in cases() if not one.rank):
        cut = Case(case.label, case.weights, case.method, RANK, case.captions)
        cells = [_cells(found, case.name, seeds, "removed"), _cells(found, cut.name, seeds, "kept")]
        weight = f"{case.weights[0]:g}" if case.method else ""
        print(f"| {case.label} | {weight} | {' | '.join(cells)} |")


def _cells(found: dict[tuple[str, int], dict], name: str, seeds: Sequence[int], share: str) -> str:
    rows = [found[name, seed] for seed in seeds if (name, seed) in found]
    if not rows:
        return " | ".join([""] * 5)
    means = {key: sum(row[key] for row in rows) / len(rows) for key in (*SIDES, "drift", share)}
    return " | ".join([*(f"{means[key]:.3f}" for key in (*SIDES, "drift")), f"{means[share]:.0%}"])


def grid(world: World, output: Path) -> None:
    """Every method whole, rows, at the prompts, columns; a JPEG."""
    shown = [case for case in cases() if not case.rank and (case.method in ("", "sum") or case.weights[0] == 1)]
    previewer = DiffusersPreviewer(world.bench.pipe, steps=20, guidance=2.0)
    rows: list[list[Image.Image]] = []
    for case in shown:
        adapter = world.merged(case)[0]
        with ExitStack() as stack:
            if adapter is not None:
                stack.enter_context(apply_adapter(world.bench.pipe, adapter))
            rows.append(previewer.preview(list(PROMPTS.values()), list(range(len(PROMPTS)))))
    labels = [f"{case.label} × 0.7" if case.weights[0] == 0.7 else case.label for case in shown]
    sheet = world.place / "grid.png"
    picture_grid(rows, sheet, row_labels=labels, column_labels=list(PROMPTS), cell=128)
    with Image.open(sheet) as picture:
        picture.save(output, quality=85, subsampling=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training (default: {STEPS})")
    parser.add_argument("--place", type=Path, default=ROOT / "build" / "merge_world", help="what is kept")
    parser.add_argument("--grid", type=Path, help="draw the first seed's pictures to this JPEG, two minutes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.place.mkdir(parents=True, exist_ok=True)
    bench, file = Bench(), chosen.place / "results.jsonl"
    for seed in chosen.seeds:
        world = World(bench, chosen.place, seed, chosen.steps)
        there = read(file, chosen.steps)
        for case in cases():
            if (case.name, seed) not in there:
                record(world, case, file)
    table(read(file, chosen.steps), chosen.seeds)
    if chosen.grid:
        grid(World(bench, chosen.place, chosen.seeds[0], chosen.steps), chosen.grid)


if __name__ == "__main__":
    main()
