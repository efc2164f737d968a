"""A style and a subject merged by every method, on the demo's small model: losses, drift, and a grid of pictures.

Run from the root of a clone: `python benchmarks/merge_world.py [--seeds 0 1 2]`. One thread. Adapters, calibrations and
measures are kept below `build/merge_world`, and a second start does only what is missing there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "preserve"), str(ROOT)]
from concepts import CONCEPTS  # noqa: E402
from measure import BATCH, RANK, Bench  # noqa: E402

from trilora_core.adapter import TriLoRA  # noqa: E402
from trilora_core.backend_diffusers import DiffusersPreviewer, apply_adapter  # noqa: E402
from trilora_core.batches import Row  # noqa: E402
from trilora_core.calibration import Calibration, calibration_path, read_calibration, write_calibration  # noqa: E402
from trilora_core.config import AdapterConfig, OptimizerConfig, TrainConfig  # noqa: E402
from trilora_core.demo import world as drawn  # noqa: E402
from trilora_core.demo.world import Picture  # noqa: E402
from trilora_core.fileformat import Adapter, read_adapter, write_adapter  # noqa: E402
from trilora_core.merge import METHODS, MergeOptions, merge  # noqa: E402
from trilora_core.plots import picture_grid  # noqa: E402
from trilora_core.train import Run, train  # noqa: E402

STEPS, RATE = 300, 4e-3
Found = dict[tuple[str, int], dict]  # what was measured, by case and seed
LEARNED = ("style", "subject")
SIDES = ("style", "subject", "both")  # of the held-out losses; nothing is trained on both at once
WEIGHTS, SHOWN = (0.35, 0.5, 0.7, 1.0, 1.4), (0.7, 1.0)  # of both adapters; those of the table and the pictures
DENSITIES, PRIOR_WEIGHTS = (0.2, 0.5, 0.8), (0.1, 0.3, 1.0, 3.0)  # of --tune
MARKS = (1.0, 0.95, 0.9)  # of the way from the base's loss to the best that the sum reaches
PLAIN = (drawn.draw, lambda picture: picture.caption)
CAPTIONS = {"": "broad", " (world)": "world"}  # of the calibrations that regmean gets
PICTURES = {  # the grid's columns: what is asked for, as a concept (none: the base's own world) of a picture
    "blue house, style": ("style", Picture("house", "blue", "at night")),
    "red robot": ("subject", Picture("tree", "red", "on a green field")),
    "red robot, style": ("both", Picture("tree", "red", "on a green field")),
    "yellow robot, style": ("both", Picture("tree", "yellow", "at night")),
    "red house": ("", Picture("house", "red", "by the sea")),
    "purple boat": ("", Picture("boat", "purple", "in the desert")),
}


@dataclass(frozen=True)
class Case:
    """One row: the base (no weights), one adapter (one weight 0), or a merge."""

    label: str
    weights: tuple[float, float]
    method: str = ""
    rank: int = 0
    captions: str = ""
    density: float = MergeOptions.density
    prior_weight: float = MergeOptions.prior_weight

    @property
    def name(self) -> str:
        return f"{self.label} | {self.weights[0]:g}, {self.weights[1]:g} | rank {self.rank}"

    @property
    def options(self) -> MergeOptions:
        return MergeOptions(rank=self.rank, density=self.density, prior_weight=self.prior_weight)


BASE_ALONE = Case("base", (0.0, 0.0))


def cases() -> list[Case]:
    """The base, each adapter by itself, and every method at all weights: whole, and the shown ones cut to RANK."""
    found = [BASE_ALONE, Case("style alone", (1.0, 0.0)), Case("subject alone", (0.0, 1.0))]
    for method, about in METHODS.items():
        for more, captions in CAPTIONS.items() if about.calibrated else (("", ""),):
            for weight in SHOWN if method == "concatenate" else WEIGHTS:
                ranks = (0, RANK) if weight in SHOWN and method != "concatenate" else (0,)
                found += [Case(method + more, (weight, weight), method, rank, captions) for rank in ranks]
    return found


def tuned() -> list[Case]:
    """The base, the sum, and whole merges by the methods that have a setting, at a few values of it."""
    found = [case for case in cases() if not case.rank and case.method in ("", "sum")]
    for method in ("ties", "dare", "dare_ties", "knots"):
        for density in DENSITIES:
            label = f"{method}, density {density:g}"
            found += [Case(label, (weight, weight), method, density=density) for weight in WEIGHTS]
    for more, captions in CAPTIONS.items():
        for prior in PRIOR_WEIGHTS:
            label = f"regmean{more}, prior_weight {prior:g}"
            found += [Case(label, (w, w), "regmean", captions=captions, prior_weight=prior) for w in WEIGHTS]
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
        found, report = merge(adapters, weights, method=case.method, options=case.options, calibrations=given)
        return found, report.kept_energy, sum(report.removed) / len(report.removed)

    @torch.no_grad()
    def measured(self, adapter: Adapter | None) -> dict[str, float]:
        """Held-out losses, and drift on the base's own world as `monitor.Measure` defines it."""
        with ExitStack() as stack:
            if adapter is not None:
                stack.enter_context(apply_adapter(self.bench.pipe, adapter))
            losses = {side: _mean_square(*self._asked(rows)) for side, rows in self.held.items()}
            change = _mean_square(self._asked(self.bench.drift_rows)[0], self.bench.base_drift)
        return losses | {"drift": change / float(self.bench.base_drift.square().mean())}

    def _asked(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Prediction and target of the model as it is now."""
        clean, noise = torch.stack([r.sample.latents for r in rows]), torch.stack([r.noise for r in rows])
        times = self.bench.denoiser.times(torch.cat([row.u for row in rows]))
        return self.bench.denoiser.predict(clean, noise, times, [row.sample.cond for row in rows])


def _mean_square(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


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


def read(file: Path, steps: int) -> Found:
    """What has been measured after so many steps, by case and seed."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [json.loads(line) for line in lines]
    return {(one["case"], one["seed"]): one for one in found if one["steps"] == steps}


def table(found: Found, seeds: Sequence[int]) -> None:
    """Means over the seeds, whole and cut to RANK side by side."""
    heads = " | ".join((*SIDES, "drift", "kept"))
    print(f"\n| method | weights | {heads} | {heads} |\n|---|---|{'---|' * 10}")
    for case in (one for one in cases() if not one.rank and (not one.method or one.weights[0] in SHOWN)):
        cut = Case(case.label, case.weights, case.method, RANK, case.captions)
        weight = f"{case.weights[0]:g}" if case.method else ""
        print(f"| {case.label} | {weight} | {_cells(found, case, seeds)} | {_cells(found, cut, seeds)} |")


def _cells(found: Found, case: Case, seeds: Sequence[int]) -> str:
    rows = [found[case.name, seed] for seed in seeds if (case.name, seed) in found]
    if not rows:
        return " | ".join([""] * 5)
    means = {key: sum(row[key] for row in rows) / len(rows) for key in (*SIDES, "drift", "kept")}
    return " | ".join([*(f"{means[key]:.3f}" for key in (*SIDES, "drift")), f"{means['kept']:.0%}"])


def equal_quality(found: Found, seeds: Sequence[int], chosen: Sequence[Case]) -> None:
    """Drift of each whole merge at the least weight at which its mean loss reaches a mark; mean, least and largest."""
    heads = " | ".join(f"drift at {mark:.0%}" for mark in MARKS)
    print(f"\n| method | least mean loss | {heads} |\n|---|---|{'---|' * len(MARKS)}")
    for label in dict.fromkeys(case.label for case in chosen if case.method not in ("", "concatenate")):
        courses = [_course(found, chosen, label, seed) for seed in seeds]
        least = sum(min(loss for loss, _ in course) for course in courses) / len(seeds)
        cells = []
        for mark in MARKS:
            drifts = []
            for seed, course in zip(seeds, courses, strict=True):
                base, best = course[0][0], min(loss for loss, _ in _course(found, chosen, "sum", seed))
                drifts.append(_drift_at(course, base + mark * (best - base)))
            reached = [drift for drift in drifts if drift is not None]
            mean = f"{sum(reached) / len(reached):.3f} ({min(reached):.3f} to {max(reached):.3f})" if reached else "–"
            cells.append(mean if len(reached) in (0, len(seeds)) else f"{mean}, {len(reached)} of {len(seeds)}")
        print(f"| {label} | {least:.3f} | {' | '.join(cells)} |")


def _course(found: Found, cases: Sequence[Case], label: str, seed: int) -> list[tuple[float, float]]:
    """Mean of the three losses, and drift, from the base on by rising weight."""
    chosen = [BASE_ALONE, *(case for case in cases if case.label == label and not case.rank)]
    rows = [found[case.name, seed] for case in sorted(chosen, key=lambda case: case.weights)]
    return [(sum(row[side] for side in SIDES) / len(SIDES), row["drift"]) for row in rows]


def _drift_at(course: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """Where the loss first falls to this: log-linear between two weights, linear from the base on."""
    for (before, low), (after, high) in pairwise(course):
        if after <= wanted + 1e-9:
            share = (before - wanted) / (before - after)
            return math.exp((1 - share) * math.log(low) + share * math.log(high)) if low else share * high
    return None


def grid(world: World, output: Path) -> None:
    """Every method whole, rows, and what each column asks for; a JPEG."""
    shown = [case for case in cases() if not case.rank and case.method != "concatenate"]
    shown = [case for case in shown if case.weights[0] in (SHOWN if case.method == "sum" else (0.0, 1.0))]
    kinds = [(CONCEPTS.get(concept, PLAIN), picture) for concept, picture in PICTURES.values()]
    labels, rows = ["drawn, not learned"], [[draw(picture) for (draw, _), picture in kinds]]
    previewer = DiffusersPreviewer(world.bench.pipe, steps=20, guidance=2.0)
    for case in shown:
        adapter = world.merged(case)[0]
        with ExitStack() as stack:
            if adapter is not None:
                stack.enter_context(apply_adapter(world.bench.pipe, adapter))
            rows.append(previewer.preview([text(picture) for (_, text), picture in kinds], [4] * len(kinds)))
        labels.append(f"{case.label}, weights 0.7" if case.weights[0] == 0.7 else case.label)
    sheet = world.place / "grid.png"
    picture_grid(rows, sheet, row_labels=labels, column_labels=list(PICTURES), cell=128)
    with Image.open(sheet) as picture:
        picture.save(output, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training (default: {STEPS})")
    parser.add_argument("--place", type=Path, default=ROOT / "build" / "merge_world", help="what is kept")
    parser.add_argument("--grid", type=Path, help="draw the first seed's pictures to this JPEG, two minutes")
    parser.add_argument("--tune", action="store_true", help="a few values of density and prior_weight instead")
    chosen = parser.parse_args()
    wanted = tuned() if chosen.tune else cases()
    torch.set_num_threads(1)
    chosen.place.mkdir(parents=True, exist_ok=True)
    bench, file = Bench(), chosen.place / "results.jsonl"
    for seed in chosen.seeds:
        world = World(bench, chosen.place, seed, chosen.steps)
        there = read(file, chosen.steps)
        for case in wanted:
            if (case.name, seed) not in there:
                record(world, case, file)
    found = read(file, chosen.steps)
    if not chosen.tune:
        table(found, chosen.seeds)
    equal_quality(found, chosen.seeds, wanted)
    if chosen.grid:
        grid(World(bench, chosen.place, chosen.seeds[0], chosen.steps), chosen.grid)


if __name__ == "__main__":
    main()
