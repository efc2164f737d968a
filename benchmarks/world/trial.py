"""Train runs together and measure each: on its way, where early stopping would end it, and at its end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from fleet import Fleet
from forms import forms, start
from judges import Judges, load
from lessons import Captioned, reference, split, test
from measure import Bench
from PIL import Image
from plan import BASE, METHODS, RANK, STEPS, Task
from rare import teach
from steep import steepen
from torch import Tensor

from trilora_core.adapter import TriLoRA
from trilora_core.batches import Line, Row
from trilora_core.config import AdapterConfig
from trilora_core.data.pictures import to_tensor
from trilora_core.evaluate import artefacts, frechet_distance, kernel_distance
from trilora_core.objective import orthogonality

MEASURED = (10, 25, 50, 75, 100, 150)  # steps; from STEPS on every STEPS / 2
ON_THE_WAY, AT_THE_END = 16, 32  # looks at validation pictures; at test pictures and at those trained on
DRIFT_LOOKS = 12  # on the way; all of them at the end
DRAWING_STEPS, GUIDANCE = 10, 2.0  # the demo's own guidance
PRIOR_PICTURES, TOGETHER = 32, 8
SPIKE, BEFORE = 3.0, 25  # a gradient's norm beside the median of so many steps before it

Numbers = dict[str, float]


class World:
    """The base with its rare words, the judges, and what every run is measured on."""

    def __init__(self, place: Path, *, steep: bool = False) -> None:
        """`place` keeps what was drawn; `steep` is the base with the spectra of steep.py."""
        self.bench, self.place = Bench(split, _taught_and_steep if steep else teach), place
        self.judges: Judges = load()
        self._captions: dict[str, Tensor] = {}
        self.shown = cache(lambda concept: self.bench.rows(self.bench.data(concept)[0], AT_THE_END))
        self.validated = cache(lambda concept: self.bench.rows(self.bench.data(concept)[1], ON_THE_WAY))
        self.asked_for = cache(lambda about: [text for _, text in test(about)])
        self.tested = cache(lambda about: self.bench.rows(self.bench.encoded(test(about)), AT_THE_END))
        self.reference = cache(lambda about: self.judges.features(_stacked(reference(about))))
        self.prior = cache(self._prior)

    def adapter(self, task: Task) -> TriLoRA:
        """As the run begins."""
        method = METHODS.get(task.method, {})
        config = AdapterConfig(
            rank=method.get("rank", RANK),
            alpha=method.get("alpha"),
            init=method.get("init", "svd-mean"),
            method=method.get("method", "trilora"),
            companion_rank=method.get("companion", 0),
        )
        calibration = None
        if config.init == "contrast":
            calibration = self.bench.calibration(task.concept, method["captions"])
        targets = self.bench.targets
        made = TriLoRA.create(targets, config, seed=task.seed, data_hash=task.concept, calibration=calibration)
        for branch in made.branches.values():
            branch.sigma.requires_grad_(branch.sigma.requires_grad and "frozen" not in method)
        return start(method.get("kind", "plain"), made, targets)

    def fleet(self, tasks: Sequence[Task]) -> Fleet:
        """The runs before their first step."""
        methods = [METHODS.get(task.method, {}) for task in tasks]
        adapters = [self.adapter(task) for task in tasks]
        meaning = forms(methods[0].get("kind", "plain"), adapters, self.bench.targets)
        rates, decays = [task.rate for task in tasks], [method.get("decay", 0.01) for method in methods]
        return Fleet(self.bench.denoiser, self.bench.targets, adapters, rates, decays, meaning)

    def lines(self, task: Task) -> list:
        """The rows of a run, as trilora_core.train.Run draws them."""
        method = METHODS[task.method]
        found = self.bench.lines(method, task)
        if "prior" in method:
            found.append(Line(self.prior(), task.seed, 1, 1.0, "prior"))
        return found

    def _prior(self) -> object:
        """Pictures of the base's world, drawn by the base."""
        texts = self.bench.captions("world", "")[:PRIOR_PICTURES]
        nothing = self.fleet([Task(BASE, "ink", 3, 0, 0.0, 0)])
        (drawn,) = self.paint(nothing, [texts], "prior")
        images = [(Image.fromarray(_bytes(picture)), text) for picture, text in zip(drawn, texts, strict=True)]
        return self.bench.encoded(images)

    @torch.no_grad()
    def paint(self, fleet: Fleet, texts: Sequence[Sequence[str]], noise: str = "test") -> Tensor:
        """Pictures (K, N, 3, 64, 64) of every run's own captions, from the same noise for all runs."""
        parts = [slice(first, first + TOGETHER) for first in range(0, len(texts[0]), TOGETHER)]
        with fleet.attached():
            return torch.cat([self._painted(fleet.count, texts, part, noise) for part in parts], dim=1)

    def _painted(self, count: int, texts: Sequence[Sequence[str]], part: slice, domain: str) -> Tensor:
        """DDIM with guidance (Ho & Salimans 2022); rows of a run lie together, those without caption first."""
        pipe, asked = self.bench.pipe, torch.stack([self._cond(own[part]) for own in texts])
        blank = self._cond([""]).expand_as(asked)
        cond = torch.cat([blank, asked], dim=1).flatten(0, 1)
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(DRAWING_STEPS)
        latents = torch.stack([_noise(domain, part.start + n) for n in range(asked.shape[1])]).repeat(count, 1, 1, 1, 1)
        for moment in scheduler.timesteps:
            rows = torch.cat([latents, latents], dim=1).flatten(0, 1)
            both = pipe.unet(rows, moment, encoder_hidden_states=cond).sample.unflatten(0, (count, -1))
            without, with_ = both.chunk(2, dim=1)
            guided = without + GUIDANCE * (with_ - without)
            latents = scheduler.step(guided, moment, latents).prev_sample
        decoded = pipe.vae.decode(self.bench.denoiser.raw(latents.flatten(0, 1))).sample
        return (decoded / 2 + 0.5).clamp(0, 1).unflatten(0, (count, -1))

    def _cond(self, texts: Sequence[str]) -> Tensor:
        for text in set(texts) - set(self._captions):
            self._captions[text] = self.bench.encoder.captions([text])[0]["tokens"]
        return torch.stack([self._captions[text] for text in texts])


def _taught_and_steep(pipe: Any) -> None:
    teach(pipe)
    steepen(pipe)


def run_together(world: World, tasks: Sequence[Task]) -> list[dict]:
    """A plain record of each run; `tasks` are a group of plan.groups."""
    fleet, steps, brief = world.fleet(tasks), tasks[0].steps, tasks[0].stage == "tune"
    lines = [world.lines(task) for task in tasks] if steps else []
    weight = METHODS.get(tasks[0].method, {}).get("orthogonality", 0.0)
    penalty = (lambda fleet: _penalty(fleet, weight)) if weight else None
    course, losses, norms, spent = Course(world, fleet, tasks), [], [], 0.0
    course.measure(0)
    for step in range(steps):
        began = time.process_time()
        losses.append(fleet.step([[row for line in own for row in line.batch(step)] for own in lines], penalty))
        spent += time.process_time() - began
        norms.append(fleet.norms)
        if step + 1 in MEASURED or (step + 1) % (STEPS // 2) == 0:
            course.measure(step + 1)
    records: list[dict] = [{"curve": curve, "seconds": round(spent / len(tasks), 2)} for curve in course.curves]
    if steps:
        for record, loss, norm in zip(records, torch.stack(losses).T, torch.stack(norms).T, strict=True):
            record["losses"] = [round(x, 5) for x in loss.view(-1, 20).mean(dim=1).tolist()]
            record["norms"] = spikes(norm)
    if not brief:
        with_last = tasks[0].stage in ("high", "long")
        for record, found in zip(records, finished(world, fleet, tasks, "last", with_last), strict=True):
            record["last"] = found
        course.go_back()
        for record, found in zip(records, finished(world, fleet, tasks, "best", True), strict=True):
            record["best"] = found
    for record, at in zip(records, course.best, strict=True):
        record["best_step"] = at
    return records


class Course:
    """Measures on the way, and the parameters of each run where its validation loss was lowest."""

    def __init__(self, world: World, fleet: Fleet, tasks: Sequence[Task]) -> None:
        self._world, self._fleet = world, fleet
        self._rows = [world.validated(task.concept) for task in tasks]
        self._known = world.bench.drift_rows[:DRIFT_LOOKS]
        self.curves: list[list] = [[] for _ in tasks]
        self.best = [0] * len(tasks)
        self._lowest = [float("inf")] * len(tasks)
        self._flat = fleet.flat.detach().clone()

    @torch.no_grad()
    def measure(self, step: int) -> None:
        """Validation loss and drift of every run; the start is never the best."""
        validation = errors(self._fleet, self._rows)
        drifts = drift(self._world, self._fleet, self._known)
        for run, (loss, change) in enumerate(zip(validation, drifts, strict=True)):
            self.curves[run].append([step, round(loss, 5), round(change, 5)])
            if step and loss < self._lowest[run]:
                self._lowest[run], self.best[run] = loss, step
                self._flat[run] = self._fleet.flat[run]

    @torch.no_grad()
    def go_back(self) -> None:
        """Every run to where it was best."""
        self._fleet.flat.copy_(self._flat)


@torch.no_grad()
def errors(fleet: Fleet, rows: Sequence[Sequence[Row]]) -> list[float]:
    """Mean squared error of each run on rows of its own."""
    with fleet.attached():
        prediction, target = fleet.asked(rows)
    found: list[float] = (prediction - target).square().flatten(1).mean(dim=1).tolist()
    return found


@torch.no_grad()
def drift(world: World, fleet: Fleet, rows: Sequence[Row]) -> list[float]:
    """Mean squared change of each run's predictions on what the base knows, relative to their mean square."""
    base = world.bench.base_drift[: len(rows)]
    with fleet.attached():
        now, _ = fleet.asked([rows] * fleet.count)
    found: list[float] = ((now - base).square().flatten(1).mean(dim=1) / base.square().mean()).tolist()
    return found


def finished(world: World, fleet: Fleet, tasks: Sequence[Task], which: str, draws: bool) -> list[Numbers]:
    """Losses on test pictures and on those trained on, drift, and what the judges say of drawn ones."""
    names = ("test", "shown", "drift")
    columns = [
        errors(fleet, [world.tested(task.about) for task in tasks]),
        errors(fleet, [world.shown(task.concept) for task in tasks]),
        drift(world, fleet, world.bench.drift_rows),
    ]
    found = [dict(zip(names, map(_short, values), strict=True)) for values in zip(*columns, strict=True)]
    if draws:
        pictures = world.paint(fleet, [world.asked_for(task.about) for task in tasks])
        for record, task, drawn in zip(found, tasks, pictures, strict=True):
            record.update(judged(world, task.about, drawn))
            keep(drawn, world.place, task, which)
    return found


def judged(world: World, about: str, drawn: Tensor) -> Numbers:
    """World Fréchet distance and kernel distance to pictures of the concept, picture-text score, and artefacts."""
    if not bool(drawn.isfinite().all()):
        return {}
    features, near = world.judges.features(drawn), world.reference(about)
    found = {
        "frechet": frechet_distance(features, near),
        "kernel": kernel_distance(features, near),
        "text": float(world.judges.fit(drawn, world.asked_for(about)).mean()),
    }
    flaws = [artefacts((picture * 255).round().byte()) for picture in drawn]
    found |= {"spots": sum(flaw.spots for flaw in flaws) / len(flaws)}
    found |= {"clipped": sum(flaw.clipped for flaw in flaws) / len(flaws)}
    return {name: _short(value) for name, value in found.items()}


def drawing(place: Path, task: Task, which: str) -> Path:
    """Where the pictures of a run are kept."""
    return place / f"{hashlib.sha256(task.name.encode()).hexdigest()[:16]}_{which}.png"


def keep(drawn: Tensor, place: Path, task: Task, which: str) -> None:
    """All pictures of a run side by side, without loss."""
    place.mkdir(parents=True, exist_ok=True)
    row = torch.cat(list(drawn.nan_to_num()), dim=2)
    Image.fromarray(_bytes(row)).save(drawing(place, task, which))


def spikes(norms: Tensor) -> Numbers:
    """How many steps had a gradient far longer than those before, and the longest of all beside its median."""
    if len(norms) <= BEFORE:
        return {"spikes": 0, "longest": 1.0}
    beside = norms[BEFORE:] / norms.unfold(0, BEFORE, 1)[:-1].median(dim=1).values
    return {"spikes": int((beside > SPIKE).sum()), "longest": _short(float(beside.max()))}


def _penalty(fleet: Fleet, weight: float) -> Tensor:
    """The package's penalty on U and V, of all runs together."""
    matrices = [part[run] for _, up, _, down in fleet.layers() for run in range(fleet.count) for part in (up.mT, down)]
    return weight * orthogonality(matrices) / len(fleet.stems)


def _noise(domain: str, number: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(f"trilora world {domain} {number}".encode()).digest()[:6], "big")
    return torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(seed))


def _stacked(captioned: Captioned) -> Tensor:
    return torch.stack([to_tensor(image) for image, _ in captioned])


def _bytes(picture: Tensor) -> Any:
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def _short(value: float) -> float:
    return round(value, 6)
