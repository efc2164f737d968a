"""What a calibration costs, how many looks it needs, and how much of the contrast its storage keeps.

Run from the root of a clone: `python benchmarks/calibration.py [--gold 512]`, on one thread. The model and pictures are
the demo's. "Kept" is the contrast trace((V·A·Vᵀ)⁻¹·V·C1·Vᵀ), A = C0 + λI, that the 8 directions V of a layer reach
under the moments of a much longer calibration, as a share of what the best 8 reach there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import DiffusersDenoiser, DiffusersEncoder, load_pipeline
from trilora_core.calibrate import calibrate, facts_of
from trilora_core.calibration import Calibration
from trilora_core.config import AdapterConfig, TrainConfig
from trilora_core.config_data import DataConfig
from trilora_core.contrast import DAMPING, contrast
from trilora_core.data import MemoryStore, load_folder
from trilora_core.demo import BASE, PICTURES
from trilora_core.moments import LEARNED, PRIOR, Moments, gatherer, sketch_columns
from trilora_core.prompts import BROAD
from trilora_core.train import Run, train

RANK = 8
LOOKS = (16, 32, 64, 128, 256)
SHARES = (0.2, 0.3, 0.5)  # of a layer's width: eigenvectors kept


class Bench:
    """The demo's model, its pictures, and calibrations of them."""

    def __init__(self) -> None:
        pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
        self.encoder, self.denoiser = DiffusersEncoder(pipe), DiffusersDenoiser(pipe)
        self.data = load_folder(DataConfig(str(PICTURES), 64, "zorb"), self.encoder, MemoryStore())
        self.cond = self.encoder.captions(BROAD)

    def calibrated(self, looks: int = 64, prompts: slice = slice(None), seed: int = 0) -> Calibration:
        facts = facts_of(self.denoiser, self.data, BROAD[prompts], "", looks=looks, seed=seed)
        return calibrate(self.denoiser, self.data, self.cond[prompts], facts)

    def step_seconds(self, batch: int) -> float:
        """Median of ten training steps."""
        targets = self.denoiser.targets()
        adapter = TriLoRA.create(targets, AdapterConfig(), seed=0, data_hash="")
        run = Run(TrainConfig(steps=12, batch_size=batch), self.denoiser, self.data, adapter)
        with adapter.attach(targets):
            return sorted(step.seconds for step in train(run))[6]


def reached(rows: torch.Tensor, c1: torch.Tensor, c0: torch.Tensor) -> float:
    """The contrast of a subspace."""
    against = c0 + DAMPING * c0.trace() / len(c0) * torch.eye(len(c0), dtype=c0.dtype)
    v = rows.double()
    return float(torch.linalg.solve(v @ against @ v.T, v @ c1 @ v.T).trace())


def kept(found: Calibration | None, gold: Calibration) -> float:
    """Mean over distinct inputs; None: random rows."""
    generator, shares = torch.Generator().manual_seed(0), []
    for name, learned in gold.learned.items():
        prior = gold.prior[name]
        assert learned.matrix is not None and prior.matrix is not None
        sides = (learned.matrix.double(), prior.matrix.double())
        rows = torch.randn(RANK, learned.width, generator=generator)
        if found is not None:
            rows = contrast(found.learned[name], found.prior[name], RANK)
        shares.append(reached(rows, *sides) / reached(contrast(learned, prior, RANK), *sides))
    return mean(shares)


def sketched(found: Calibration, share: float, *, prior: bool) -> Calibration:
    """As if the training set, and the prior too, were held by this share of the width in eigenvectors."""

    def cut(moments: Moments) -> Moments:
        assert moments.matrix is not None
        values, vectors = torch.linalg.eigh(moments.matrix.double())
        count = max(RANK, int(share * moments.width))
        best = (vectors.flip(1)[:, :count].float(), values.flip(0)[:count].clamp_min(0.0).float())
        return Moments(moments.count, moments.trace, None, *best)

    learned = {name: cut(moments) for name, moments in found.learned.items()}
    rest = {name: cut(moments) for name, moments in found.prior.items()} if prior else found.prior
    return Calibration(found.facts, found.inputs, learned, rest)


def solve_times() -> None:
    print("\n| width | gather 4096 rows, C1 / C0 | finish | directions | file, C1 + C0 (MB) |\n|---|---|---|---|---|")
    for width in (320, 640, 1280, 1536, 2048, 3072, 11520):
        x = torch.randn(4096, width, generator=torch.Generator().manual_seed(0)) * torch.arange(1, width + 1) ** -0.5
        taken, held = [], []
        for storage in (LEARNED, PRIOR):
            gathered = gatherer(width, storage, sketch_columns(width, storage, 0))
            start = time.process_time()
            gathered.add(x)
            taken.append(time.process_time() - start)
            start = time.process_time()
            held.append(gathered.moments())
            taken.append(time.process_time() - start)
        start = time.process_time()
        contrast(*held, 16)
        solved = time.process_time() - start
        size = (LEARNED.kept_bytes(width) + PRIOR.kept_bytes(width)) / 1e6
        print(f"| {width} | {taken[0]:.2f} / {taken[2]:.2f} | {taken[1] + taken[3]:.2f} | {solved:.2f} | {size:.1f} |")


def main() -> None:
    """Print the tables of benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gold", type=int, default=512, help="looks of the calibration that judges the others")
    gold_looks = parser.parse_args().gold
    torch.set_num_threads(1)
    bench = Bench()
    start = time.perf_counter()
    found = bench.calibrated()
    seconds, steps = time.perf_counter() - start, [bench.step_seconds(batch) for batch in (1, 4)]
    print(
        f"calibration: {seconds:.1f} s; {seconds / steps[0]:.0f} steps of batch 1, {seconds / steps[1]:.0f} of batch 4"
    )
    gold = bench.calibrated(gold_looks, seed=99)
    print("\n| calibration | kept |\n|---|---|")
    print(f"| random rows | {kept(None, gold):.2f} |")
    for looks in LOOKS:
        print(f"| {looks} looks | {kept(bench.calibrated(looks), gold):.2f} |", flush=True)
    print(f"| 64 looks, 12 prompts of people | {kept(bench.calibrated(prompts=slice(4, 16)), gold):.2f} |")
    for share in SHARES:
        for prior, name in ((False, "C1"), (True, "C1 and C0")):
            cut = sketched(found, share, prior=prior)
            print(f"| 64 looks, {name} by {share:.0%} of the eigenvectors | {kept(cut, gold):.2f} |")
    solve_times()


if __name__ == "__main__":
    main()
