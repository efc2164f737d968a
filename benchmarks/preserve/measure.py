"""One run of one method on one concept: held-out loss and drift on its way, and of its result at lower strengths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import torch
from concepts import SHOWN, known, pictures
from torch import Tensor

from trilora_core.adapter import TriLoRA, derive_seed
from trilora_core.backend_diffusers import DiffusersDenoiser, DiffusersEncoder, load_pipeline
from trilora_core.batches import Row
from trilora_core.config import AdapterConfig, DataConfig, OptimizerConfig, TrainConfig
from trilora_core.data import Dataset, MemoryStore, load_tensors
from trilora_core.data.pictures import to_tensor
from trilora_core.demo import BASE
from trilora_core.preserve import Amount, Kept, encode_prior, keep
from trilora_core.train import Run, train

STEPS, BATCH, RANK = 200, 3, 8
MEASURED = (25, 50, 100, 150, 200)
STRENGTHS = (0.5, 0.75)
LOOKS = 32


class Bench:
    """The demo's base with everything that is measured on it."""

    def __init__(self) -> None:
        self.pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
        self.denoiser, self.encoder = DiffusersDenoiser(self.pipe), DiffusersEncoder(self.pipe)
        self.store = MemoryStore()
        self._data: dict[str, tuple[Dataset, Dataset]] = {}
        self._kept: dict[object, Kept] = {}
        self.known = self.encoded(known(16, "drift"))
        self.drift_rows = self.rows(self.known)
        self.base_drift = self.predictions(self.drift_rows)

    def encoded(self, found: list) -> Dataset:
        latents = [self.encoder.pictures(to_tensor(image)[None])[0] for image, _ in found]
        texts = [text for _, text in found]
        return load_tensors(latents, self.encoder.captions(texts), captions=texts, config=DataConfig(resolution=64))

    def data(self, concept: str) -> tuple[Dataset, Dataset]:
        """What is trained on, and what is held out."""
        if concept not in self._data:
            found = pictures(concept)
            self._data[concept] = self.encoded(found[:SHOWN]), self.encoded(found[SHOWN:])
        return self._data[concept]

    def rows(self, data: Dataset) -> list[Row]:
        """LOOKS fixed looks, times in even distances."""
        found = []
        for number in range(LOOKS):
            sample = data.sample(number % len(data), None or __import__("random").Random(0))
            generator = torch.Generator().manual_seed(derive_seed("preserve look", number))
            noise = torch.randn(sample.latents.shape, generator=generator)
            u = ((number * 13) % LOOKS + 0.5) / LOOKS  # every time with every picture's neighbour
            found.append(Row(sample, noise, torch.tensor([u]), 1.0))
        return found

    @torch.no_grad()
    def asked(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        clean, noise = torch.stack([r.sample.latents for r in rows]), torch.stack([r.noise for r in rows])
        times = self.denoiser.times(torch.cat([row.u for row in rows]))
        return self.denoiser.predict(clean, noise, times, [row.sample.cond for row in rows])

    def predictions(self, rows: list[Row]) -> Tensor:
        return self.asked(rows)[0]

    def measure(self, held: list[Row]) -> tuple[float, float]:
        """Held-out loss, and the change of predictions on what the base knows, relative to their mean square."""
        prediction, target = self.asked(held)
        changed = self.predictions(self.drift_rows) - self.base_drift
        return (
            float((prediction - target).square().mean()),
            float(changed.square().mean() / self.base_drift.square().mean()),
        )

    def kept(self, data: Dataset, amount: Amount, captions: str) -> Kept:
        name = (amount.points, amount.paths, captions)
        if name not in self._kept:
            texts = [text for _, text in known(200, "prior")] if captions == "world" else []
            prior = encode_prior(list(dict.fromkeys(texts)), self.encoder, self.store)
            self._kept[name] = keep(self.denoiser, prior, data, amount, torch.device("cpu"))
        return replace(self._kept[name], amount=amount)


@contextmanager
def scaled(adapter: TriLoRA, strength: float) -> Iterator[None]:
    """The adapter at a lower strength."""
    held = [branch.up.data.clone() for branch in adapter.branches.values()]
    for branch in adapter.branches.values():
        branch.up.data.mul_(strength)
    try:
        yield
    finally:
        for branch, up in zip(adapter.branches.values(), held, strict=True):
            branch.up.data.copy_(up)


def one_run(bench: Bench, method: dict, concept: str, seed: int, rate: float, steps: int = STEPS) -> dict:
    """Train and measure; a plain record. `method` is described in methods.py."""
    data, held_out = bench.data(concept)
    held = bench.rows(held_out)
    config = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        seed=seed,
        adapter=AdapterConfig(rank=RANK, method=method.get("method", "trilora"), init=method.get("init", "svd-mean")),
        optimizer=OptimizerConfig(learning_rate=rate, weight_decay=method.get("decay", 0.01)),
    )
    targets = bench.denoiser.targets()
    kept = None
    if "keep" in method:
        kept = bench.kept(data, Amount(**method["keep"]), method.get("captions", "broad"))
    adapter = TriLoRA.create(targets, config.adapter, seed=seed, data_hash=concept)
    run = Run(config, bench.denoiser, data, adapter, kept=kept)
    curve, spent = [], 0.0
    with adapter.attach(targets):
        curve.append([0, *bench.measure(held)])
        started = time.process_time()
        with closing(train(run)) as walk:
            for step in walk:
                if step.step in MEASURED or step.step == steps:
                    spent += time.process_time() - started
                    curve.append([step.step, *bench.measure(held)])
                    started = time.process_time()
        weaker = []
        for strength in STRENGTHS:
            with scaled(adapter, strength):
                weaker.append([strength, *bench.measure(held)])
    return {"curve": curve, "strengths": weaker, "seconds": spent / steps, "losses": _thin(run.losses)}


def _thin(losses: list[float]) -> list[float]:
    return [round(sum(losses[i : i + 20]) / len(losses[i : i + 20]), 5) for i in range(0, len(losses), 20)]
