"""What is measured of runs: held-out loss and drift on their way, and of their results at lower strengths."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from concepts import SHOWN, TRIGGERS, known, pictures
from fleet import Fleet
from methods import Task
from PIL import Image
from torch import Tensor
from tries import Penalty, started

from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import DiffusersDenoiser, DiffusersEncoder, load_pipeline
from trilora_core.batches import Line, Row
from trilora_core.calibrate import calibrate, facts_of
from trilora_core.calibration import Calibration
from trilora_core.config import AdapterConfig
from trilora_core.config_data import DataConfig
from trilora_core.data import Dataset, MemoryStore, load_tensors
from trilora_core.data.pictures import to_tensor
from trilora_core.demo import BASE
from trilora_core.preserve import Amount, Kept, KeptLine, encode_prior, keep
from trilora_core.prompts import BROAD
from trilora_core.start import derive_seed

BATCH, RANK = 3, 8
MEASURED = (10, 25, 50, 75, 100, 150, 200)
STRENGTHS = (0.35, 0.5, 0.65, 0.8, 0.9)
LOOKS = 24
GUIDANCE = 2.0  # what the demo draws with
DRAWN, DRAWN_STEPS = 6, 10


Captioned = list[tuple[Image.Image, str]]


def halves(concept: str) -> tuple[Captioned, Captioned]:
    """Pictures to train on, and others."""
    found = pictures(concept)
    return found[:SHOWN], found[SHOWN:]


class Bench:
    """The demo's base with everything that is measured on it."""

    def __init__(
        self,
        split: Callable[[str], tuple[Captioned, Captioned]] = halves,
        prepare: Callable[[Any], None] = lambda pipe: None,
    ) -> None:
        """`split` gives the pictures of a concept to train on and those that are held out; `prepare` changes the base
        before anything is asked of it."""
        self.pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
        prepare(self.pipe)
        self.pipe.unet.to(memory_format=torch.channels_last)  # a quarter faster on the CPU
        self.denoiser, self.encoder = DiffusersDenoiser(self.pipe), DiffusersEncoder(self.pipe)
        self.targets = self.denoiser.targets()
        self.store, self._split = MemoryStore(), split
        self._data: dict[str, tuple[Dataset, Dataset]] = {}
        self._kept: dict[object, Kept] = {}
        self._calibrations: dict[tuple[str, str], Calibration] = {}
        self.drift_rows = self.rows(self.encoded(known(LOOKS, "drift")))
        self.base_drift = self.asked(self.drift_rows)
        (empty,) = self.encoder.captions([""])
        self.empty_rows = [replace(row, sample=replace(row.sample, cond=empty, text="")) for row in self.drift_rows]
        self.base_empty = self.asked(self.empty_rows)
        self.empty = empty
        self.base_drawn = drawn(self, 1)

    def encoded(self, found: list) -> Dataset:
        latents = [self.encoder.pictures(to_tensor(image)[None])[0] for image, _ in found]
        texts = [text for _, text in found]
        return load_tensors(latents, self.encoder.captions(texts), captions=texts, config=DataConfig(resolution=64))

    def data(self, concept: str) -> tuple[Dataset, Dataset]:
        """What is trained on, and what is held out."""
        if concept not in self._data:
            shown, held = self._split(concept)
            self._data[concept] = self.encoded(shown), self.encoded(held)
        return self._data[concept]

    def rows(self, data: Dataset, looks: int = LOOKS) -> list[Row]:
        """So many fixed looks, times in even distances."""
        found = []
        for number in range(looks):
            sample = data.sample(number % len(data), random.Random(0))
            generator = torch.Generator().manual_seed(derive_seed("preserve look", number))
            noise = torch.randn(sample.latents.shape, generator=generator)
            found.append(Row(sample, noise, torch.tensor([((number * 7) % looks + 0.5) / looks]), 1.0))
        return found

    @torch.no_grad()
    def asked(self, rows: Sequence[Row]) -> Tensor:
        """What the base predicts."""
        clean, noise = torch.stack([r.sample.latents for r in rows]), torch.stack([r.noise for r in rows])
        times = self.denoiser.times(torch.cat([row.u for row in rows]))
        return self.denoiser.predict(clean, noise, times, [row.sample.cond for row in rows])[0]

    def captions(self, kind: str, concept: str) -> list[str]:
        """Those of the base's world, of which none is measured, as they are or every fourth the empty one; the
        concept's own without the trigger word, in turn with the built-in ones; none for the built-in ones alone."""
        if kind == "own":
            own = [text.replace(TRIGGERS[concept], "") for _, text in pictures(concept)[:SHOWN]]
            return [text for index, broad in enumerate(BROAD) for text in (own[index % SHOWN], broad)]
        if not kind.startswith("world"):
            return []
        measured = {text for _, text in known(LOOKS, "drift")}
        texts = [text for text in dict.fromkeys(text for _, text in known(120, "prior")) if text not in measured]
        if kind == "world":
            return texts
        return [text for index, own in enumerate(texts) for text in ([own] if index % 3 else ["", own])]

    def calibration(self, concept: str, captions: str) -> Calibration:
        """Of this concept, against broad captions or those of the base's world."""
        if (concept, captions) not in self._calibrations:
            data, texts = self.data(concept)[0], self.captions(captions, concept) or list(BROAD)
            facts = facts_of(self.denoiser, data, texts, self.encoder.caption_fingerprint)
            prior = self.encoder.captions(texts)
            self._calibrations[concept, captions] = calibrate(self.denoiser, data, prior, facts)
        return self._calibrations[concept, captions]

    def kept(self, concept: str, amount: Amount, captions: str) -> Kept:
        """Points of the base's paths; the same for all concepts unless their captions are among them."""
        name = (amount.points, amount.paths, captions, concept if captions == "own" else "")
        if name not in self._kept:
            prior = encode_prior(self.captions(captions, concept), self.encoder, self.store)
            self._kept[name] = keep(self.denoiser, prior, self.data(concept)[0], amount, torch.device("cpu"))
        return replace(self._kept[name], amount=amount)

    def lines(self, method: dict, task: Task) -> list[Line | KeptLine]:
        """The rows of a run, as trilora_core.train.Run draws them."""
        data = self.data(task.concept)[0]
        lines: list[Line | KeptLine] = [Line(data, task.seed, BATCH, 1.0, "order")]
        if "keep" in method:
            amount = Amount(**method["keep"])
            line = Early if "early" in method else KeptLine
            lines.append(line(self.kept(task.concept, amount, method.get("captions", "broad")), task.seed, BATCH))
        return lines

    def adapter(self, method: dict, task: Task) -> TriLoRA:
        init, calibration = method.get("init", "svd-mean"), None
        if init == "contrast" or "tries" in method:
            calibration = self.calibration(task.concept, method.get("captions", "broad"))
        config = AdapterConfig(rank=RANK, method=method.get("method", "trilora"), init=init)
        adapter = TriLoRA.create(self.targets, config, seed=task.seed, data_hash=task.concept, calibration=calibration)
        return started(adapter, calibration, method["tries"]) if "tries" in method and calibration else adapter


class Early(KeptLine):
    """Points count by the square of their u, three times as much at pure noise, where a picture's plan is made."""

    def batch(self, step: int) -> list[Row]:
        return [replace(row, weight=3 * row.weight * float(row.u) ** 2) for row in super().batch(step)]


def run_together(bench: Bench, methods: Sequence[dict], tasks: Sequence[Task]) -> list[dict]:
    """Train and measure runs with as many rows and steps; a plain record of each. `methods` are those of the tasks."""
    adapters = [bench.adapter(method, task) for method, task in zip(methods, tasks, strict=True)]
    decays = [method.get("decay", 0.01) for method in methods]
    fleet = Fleet(bench.denoiser, bench.targets, adapters, [task.rate for task in tasks], decays)
    lines = [bench.lines(method, task) for method, task in zip(methods, tasks, strict=True)]
    held = [bench.rows(bench.data(task.concept)[1]) for task in tasks]
    penalty = Penalty.of(bench, methods, tasks, fleet)
    curves: list[list] = [[] for _ in tasks]
    losses: list[Tensor] = []
    _note(curves, 0, measured(bench, fleet, held))
    spent = 0.0
    for step in range(tasks[0].steps):
        began = time.process_time()
        rows = [[row for line in own for row in line.batch(step)] for own in lines]
        losses.append(fleet.step(rows, penalty))
        spent += time.process_time() - began
        if step + 1 in MEASURED or step + 1 == tasks[0].steps:
            _note(curves, step + 1, measured(bench, fleet, held))
    weaker: list[list] = [[] for _ in tasks]
    for strength in STRENGTHS:
        _note(weaker, strength, measured(bench, fleet, held, strength))
    mean = (
        torch.stack(losses).unflatten(0, (-1, 20)).mean(dim=1).T
        if len(losses) % 20 == 0
        else torch.zeros(len(tasks), 0)
    )
    return [
        {"curve": curve, "strengths": weak, "losses": [round(x, 5) for x in loss.tolist()], "fleet_seconds": spent}
        for curve, weak, loss in zip(curves, weaker, mean, strict=True)
    ]


def _note(into: list[list], at: float, found: list[list[float]]) -> None:
    for curve, values in zip(into, found, strict=True):
        curve.append([at, *(round(value, 6) for value in values)])


@torch.no_grad()
def measured(bench: Bench, fleet: Fleet, held: list[list[Row]], strength: float = 1.0) -> list[list[float]]:
    """Of each run: held-out loss, and the change of predictions on what the base knows, relative to their square.

    That of the predictions for captions, of those for the empty one on the same pictures, and of guided ones.
    """
    with fleet.attached(strength):
        prediction, target = fleet.asked(held)
        now, _ = fleet.asked([bench.drift_rows] * fleet.count)
        empty, _ = fleet.asked([bench.empty_rows] * fleet.count)
        pictures = drawn(bench, fleet.count)
    errors = (prediction - target).square().flatten(1).mean(dim=1)
    guided, base_guided = (e + GUIDANCE * (c - e) for c, e in ((now, empty), (bench.base_drift, bench.base_empty)))
    drifts = [_change(now, bench.base_drift), _change(empty, bench.base_empty), _change(guided, base_guided)]
    drifts.append(_change(pictures, bench.base_drawn))
    return [list(values) for values in zip(errors.tolist(), *drifts, strict=True)]


@torch.no_grad()
def drawn(bench: Bench, count: int) -> Tensor:
    """Latents (count, DRAWN, C, h, w) of guided pictures of what the base knows, for as many runs as are attached."""
    rows = bench.drift_rows[:DRAWN]
    noise = torch.stack([row.noise for row in rows]).repeat(count, 1, 1, 1)
    cond = [row.sample.cond for row in rows] * count
    clean, times = torch.zeros_like(noise), bench.denoiser.times(torch.linspace(1, 0, DRAWN_STEPS + 1)[:-1])
    for moment in times:
        many = moment.repeat(len(noise))
        given, target = bench.denoiser.predict(clean, noise, many, cond)
        free, _ = bench.denoiser.predict(clean, noise, many, [bench.empty] * len(cond))
        change = free + GUIDANCE * (given - free) - target
        ratio = bench.denoiser.snr(moment[None]).sqrt().view(1, 1, 1, 1)
        spread = (1 + ratio.square()).rsqrt()
        clean, noise = clean - spread * change, noise + ratio * spread * change  # the demo's base predicts v
    return clean.unflatten(0, (count, DRAWN))


def _change(now: Tensor, base: Tensor) -> list[float]:
    return ((now - base).square().flatten(1).mean(dim=1) / base.square().mean()).tolist()
