"""What prior pictures and masks do, on the demo's small model.

Run from the root of a clone: `python benchmarks/prior.py [--steps 300]`. Trains the demo's style three times from the
same seed: as the demo does, with one prior picture beside every three, and on pictures of which the mask keeps only the
left half, beside the same without mask, to see what is learned of the right half. One thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import DiffusersDenoiser, DiffusersEncoder, DiffusersPreviewer, load_pipeline
from trilora_core.batches import Line
from trilora_core.config import AdapterConfig, OptimizerConfig, TrainConfig
from trilora_core.config_data import DataConfig, MaskConfig, PriorConfig
from trilora_core.data import Dataset, load_folder
from trilora_core.data.prior import ensure_prior
from trilora_core.demo import BASE, PICTURES, TRIGGER_WORD
from trilora_core.train import Run, train

CLASSES = "\n".join(
    f"{colour} {thing} {place}"
    for colour, thing in (("a red", "house"), ("a blue", "boat"), ("a green", "tree"), ("a white", "cat"))
    for place in ("at night", "by the sea", "in the snow", "on a green field")
)
SIDE = 64


class World:
    """The demo's model and pictures, and the measures."""

    def __init__(self, place: Path, steps: int) -> None:
        self.pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
        self.denoiser, self.encoder = DiffusersDenoiser(self.pipe), DiffusersEncoder(self.pipe)
        self.place = place
        optimizer = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=10)
        self.config = TrainConfig(
            steps=steps, batch_size=3, seed=0, adapter=AdapterConfig(rank=16), optimizer=optimizer
        )

    def data(self, folder: Path, **options: object) -> Dataset:
        config = DataConfig(str(folder), SIDE, TRIGGER_WORD)
        return load_folder(replace(config, **options), self.encoder)

    def drawn(self, name: str, seed: int, count: int) -> Dataset:
        """Pictures that the base model draws of what it knows."""
        previewer = DiffusersPreviewer(self.pipe, steps=20, guidance=2.0)
        ensure_prior(PriorConfig(str(self.place / name), CLASSES, count, seed), previewer)
        return self.data(self.place / name)

    def trained(self, data: Dataset, prior: Dataset | None = None) -> Run:
        targets = self.denoiser.targets()
        adapter = TriLoRA.create(targets, self.config.adapter, seed=0, data_hash="the same for all")
        run = Run(self.config, self.denoiser, data, adapter, prior)
        with adapter.attach(targets), closing(train(run)) as steps:
            for _ in steps:
                pass
        return run

    @torch.no_grad()
    def measure(self, data: Dataset, run: Run | None) -> tuple[Tensor, Tensor]:
        """Predictions and targets of four looks at each picture with fixed noise, with the adapter of a run if any."""
        rows = Line(data, 99, 4 * len(data), 1.0, "measure").batch(0)
        clean, noise = (torch.stack(part) for part in zip(*((r.sample.latents, r.noise) for r in rows), strict=True))
        times, cond = self.denoiser.times(torch.cat([row.u for row in rows])), [row.sample.cond for row in rows]
        if run is None:
            return self.denoiser.predict(clean, noise, times, cond)
        with run.trainable.attach(self.denoiser.targets()):
            return self.denoiser.predict(clean, noise, times, cond)

    def drift(self, data: Dataset, run: Run) -> float:
        """Mean squared change of the predictions."""
        return float((self.measure(data, run)[0] - self.measure(data, None)[0]).square().mean())

    def loss(self, data: Dataset, run: Run | None) -> float:
        prediction, target = self.measure(data, run)
        return float((prediction - target).square().mean())


def compare_prior(world: World) -> None:
    style, prior, other = world.data(PICTURES), world.drawn("prior", 0, 32), world.drawn("other", 1000, 32)
    print(f"loss on the style's pictures without adapter {world.loss(style, None):.4f}\n")
    print("| prior pictures | loss on the style | drift on other pictures of the base | share |\n|---|---|---|---|")
    drifts = []
    for label, beside in (("none", None), ("1 beside 3", prior)):
        run = world.trained(style, beside)
        drifts.append(world.drift(other, run))
        share = f"{drifts[-1]:.5f} | {drifts[-1] / drifts[0]:.2f}"
        print(f"| {label} | {world.loss(style, run):.4f} | {share} |", flush=True)


def compare_masks(world: World) -> None:
    masks = world.place / "masks"
    masks.mkdir()
    for picture in PICTURES.glob("*.png"):
        mask = Image.new("L", Image.open(picture).size, 0)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        mask.save(masks / picture.name)
    whole = world.data(PICTURES)
    print("\n| mask | loss in the left half | in the right half, of that before training |\n|---|---|---|")
    before = halves(world, whole, None)
    for label, data in (("none", whole), ("left half", world.data(PICTURES, masks=MaskConfig("folder", str(masks))))):
        after = halves(world, whole, world.trained(data))
        print(f"| {label} | {after[0] / before[0]:.3f} | {after[1] / before[1]:.3f} |", flush=True)


def halves(world: World, data: Dataset, run: Run | None) -> tuple[float, float]:
    prediction, target = world.measure(data, run)
    error = (prediction - target).square()
    middle = error.shape[-1] // 2
    return float(error[..., :middle].mean()), float(error[..., middle:].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place), steps)
        compare_prior(world)
        compare_masks(world)


if __name__ == "__main__":
    main()
