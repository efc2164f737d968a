"""What is left of the base, as pictures: `python benchmarks/preserve/pictures.py OUT.jpg`, ten minutes on one core.

Every concept is learned by each method with the package's own loop; the columns ask for what was learned, and for
things of the base's own world with the same adapter on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from concepts import CONCEPTS  # noqa: E402
from measure import BATCH, RANK, Bench  # noqa: E402
from methods import CONCEPT_NAMES, METHODS, RATE  # noqa: E402

from trilora_core.adapter import TriLoRA  # noqa: E402
from trilora_core.backend_diffusers import DiffusersPreviewer, apply_adapter  # noqa: E402
from trilora_core.config import AdapterConfig, OptimizerConfig, PreserveConfig, TrainConfig  # noqa: E402
from trilora_core.demo import world  # noqa: E402
from trilora_core.demo.world import Picture  # noqa: E402
from trilora_core.fileformat import Adapter  # noqa: E402
from trilora_core.plots import picture_grid  # noqa: E402
from trilora_core.preserve import Amount  # noqa: E402
from trilora_core.train import Run, train  # noqa: E402

LEARNED = {
    "style": Picture("house", "blue", "at night"),
    "subject": Picture("tree", "red", "on a green field"),
    "layout": Picture("boat", "yellow", "by the sea"),
}
KNOWN = {"purple boat": Picture("boat", "purple", "in the desert"), "red house": Picture("house", "red", "by the sea")}


def learned(bench: Bench, method: dict, concept: str, seed: int, steps: int) -> Adapter:
    """An adapter as the package trains it."""
    optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=method.get("decay", 0.01))
    shape = AdapterConfig(rank=RANK, method=method.get("method", "trilora"), init=method.get("init", "svd-mean"))
    preserve = PreserveConfig("light" if "keep" in method else "off")  # `kept` says how much
    config = TrainConfig(
        steps=steps, batch_size=BATCH, seed=seed, adapter=shape, optimizer=optimizer, preserve=preserve
    )
    adapter = TriLoRA.create(bench.targets, shape, seed=seed, data_hash=concept)
    kept = None
    if "keep" in method:
        kept = bench.kept(concept, Amount(**method["keep"]), method.get("captions", "broad"))
    run = Run(config, bench.denoiser, bench.data(concept)[0], adapter, kept=kept)
    with adapter.attach(bench.targets), closing(train(run)) as training:
        for _ in training:
            pass
    return run.adapter()


def rows(bench: Bench, methods: Sequence[str], seed: int, steps: int) -> tuple[list[str], list[list[Image.Image]]]:
    """Labels and pictures: what was drawn, the base, and each method."""
    previewer = DiffusersPreviewer(bench.pipe, steps=20, guidance=2.0)
    drawn = [
        draw(picture)
        for concept in CONCEPT_NAMES
        for draw, picture in [
            (CONCEPTS[concept][0], LEARNED[concept]),
            *((world.draw, picture) for picture in KNOWN.values()),
        ]
    ]
    asked = {
        concept: [CONCEPTS[concept][1](LEARNED[concept]), *(picture.caption for picture in KNOWN.values())]
        for concept in CONCEPT_NAMES
    }
    count = len(KNOWN) + 1
    base = [picture for texts in asked.values() for picture in previewer.preview(texts, [4] * count)]
    labels, found = ["drawn, not learned", "base"], [drawn, base]
    for name in methods:
        row: list[Image.Image] = []
        for concept, texts in asked.items():
            adapter = learned(bench, METHODS[name], concept, seed, steps)
            with apply_adapter(bench.pipe, adapter):
                row += previewer.preview(texts, [4] * count)
            print(f"{name}: {concept}", flush=True)
        labels.append(name)
        found.append(row)
    return labels, found


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", nargs="+", default=["lora", "keep 0.1 world", "keep 1 world"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    labels, found = rows(Bench(), chosen.methods, chosen.seed, chosen.steps)
    columns = [text for concept in CONCEPT_NAMES for text in (f"{concept} learned", *(f"{n}" for n in KNOWN))]
    with TemporaryDirectory() as place:
        sheet = Path(place) / "sheet.png"
        picture_grid(found, sheet, row_labels=labels, column_labels=columns, cell=96)
        with Image.open(sheet) as picture:
            picture.convert("RGB").save(chosen.output, quality=85)


if __name__ == "__main__":
    main()
