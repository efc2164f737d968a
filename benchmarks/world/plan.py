"""Every method that is compared, and which runs each stage is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lessons import CONCEPT_NAMES

RANK, BATCH, STEPS = 8, 3, 200
LORA = {"method": "lora", "init": "ones"}
WORLD = {"captions": "world"}  # what is to stay: captions of the base's own world, of which none is measured
LIGHT, STRONG = {"keep": {"weight": 0.1}} | WORLD, {"keep": {"weight": 0.3}} | WORLD  # as preserve_base has them

METHODS: dict[str, dict] = {
    "lora": LORA,
    "svd-mean": {},  # what the package does unless it is told otherwise
    "svd": {"init": "svd"},  # the paper's
    "dora": LORA | {"kind": "dora"},
    "pissa": LORA | {"kind": "pissa"},
    "svd-mean, light": LIGHT,
    "rslora": LORA | {"alpha": RANK * math.sqrt(RANK)},  # scale √r in place of 1 (Kalajdzievski 2023)
    "lora, decay 1": LORA | {"decay": 1.0},
    "svd-mean, decay 1": {"decay": 1.0},
    "ones": {"init": "ones"},
    "svd-max": {"init": "svd-max"},
    "svd-fro": {"init": "svd-fro"},
    "svd-mean, Σ frozen": {"frozen": True},
    "svd, Σ frozen": {"init": "svd", "frozen": True},
    "contrast": {"init": "contrast"} | WORLD,
    "orthogonality 0.1": {"orthogonality": 0.1},
    "companion 6 + 2": {"rank": 6, "companion": 2},
    "svd-mean, prior pictures": {"prior": True},
    "lora, prior pictures": LORA | {"prior": True},
    "lora, light": LORA | LIGHT,
    "svd-mean, strong": STRONG,
    "contrast, light": {"init": "contrast"} | LIGHT,
}
MAIN = ("lora", "svd-mean", "svd", "dora", "pissa", "svd-mean, light")
MORE = tuple(name for name in METHODS if name not in MAIN)
BASE = "base"  # no adapter
SEEDS, TUNING_SEEDS, HARD_SEEDS = (0, 1, 2, 3, 4), (100,), (0, 1, 2, 3, 4)
TUNED_ON = ("ink", "robot", "double")  # one of each sort
FIRST_RATES = (2e-3, 4e-3, 8e-3)
MOST_TRIED = 9  # rates of one method
HIGH, LONG = 10, 5  # times the best rate, times the steps
MEAN = 0.89  # of σ / σ_max, over the first 8 directions of all layers of the base: where svd-max starts in the mean


@dataclass(frozen=True)
class Task:
    """One run. `stage` says what it is for, not what it does."""

    method: str
    about: str  # the concept
    shown: int
    seed: int
    rate: float
    steps: int = STEPS
    stage: str = ""

    @property
    def concept(self) -> str:
        """As lessons.split reads it."""
        return f"{self.about} {self.shown}"

    @property
    def name(self) -> str:
        return f"{self.method} | {self.concept} | {self.seed} | {self.rate:.4g} | {self.steps}"


def course_best(record: dict) -> float:
    """The lowest validation loss after the start; infinite where none is finite."""
    return min((point[1] for point in record["curve"] if point[0] and math.isfinite(point[1])), default=math.inf)


def tuned(records: Iterable[dict]) -> dict[str, dict[float, float]]:
    """By method and rate, the mean over all tuning runs of the log of the best validation loss."""
    runs = [r for r in records if r["seed"] in TUNING_SEEDS and r["steps"] == STEPS]
    wanted = len(TUNING_SEEDS) * len(TUNED_ON)
    found: dict[str, dict[float, float]] = {}
    for method in METHODS:
        for rate in sorted({r["rate"] for r in runs if r["method"] == method}):
            mine = [math.log(course_best(r)) for r in runs if (r["method"], r["rate"]) == (method, rate)]
            if len(mine) == wanted:
                found.setdefault(method, {})[rate] = sum(mine) / wanted
    return found


def best_rate(means: dict[float, float]) -> float:
    """The rate with the lowest mean."""
    return min(means, key=lambda rate: means[rate])


def next_rates(means: dict[float, float]) -> Sequence[float]:
    """What is still to be tried: first three, then a neighbour of the best while that is at the edge."""
    missing = [rate for rate in FIRST_RATES if rate not in means]
    if missing or len(means) >= MOST_TRIED:
        return missing
    best = best_rate(means)
    if best == max(means):
        return [2 * best]
    return [best / 2] if best == min(means) else []


def best_rates(records: Sequence[dict]) -> dict[str, float]:
    """Of each method whose tuning has come to an end."""
    return {method: best_rate(means) for method, means in tuned(records).items() if not next_rates(means)}


def _tuning(methods: Sequence[str], records: Sequence[dict]) -> list[Task]:
    means = tuned(records)
    return [
        Task(method, about, 12, seed, rate, STEPS, "tune")
        for method in methods
        for rate in next_rates(means.get(method, {}))
        for seed in TUNING_SEEDS
        for about in TUNED_ON
    ]


def _compared(
    methods: Sequence[str], shown: int, seeds: Sequence[int], stage: str, times: float = 1, longer: int = 1
) -> Callable[[Sequence[dict]], list[Task]]:
    """Every method at its own best rate, seed by seed, so that what there is at any time is a smaller comparison."""

    def tasks(records: Sequence[dict]) -> list[Task]:
        rates = best_rates(records)
        return [
            Task(method, about, shown, seed, times * rates[method], longer * STEPS, stage)
            for seed in seeds
            for method in methods
            if method in rates
            for about in CONCEPT_NAMES
        ]

    return tasks


def _base(records: Sequence[dict]) -> list[Task]:
    return [Task(BASE, about, 12, 0, 0.0, 0, "base") for about in CONCEPT_NAMES]


# From the records so far to the runs of a stage, in their order.
STAGES: dict[str, Callable[[Sequence[dict]], list[Task]]] = {
    "base": _base,
    "tune": lambda records: _tuning(MAIN, records),
    "main": _compared(MAIN, 12, SEEDS, "main"),
    "high": _compared(MAIN, 12, HARD_SEEDS[:2], "high", times=HIGH),
    "double": _compared(("lora", "svd-mean"), 12, SEEDS, "double", times=2),  # the rate at which others are best
    "matched": _compared(("svd-max",), 12, HARD_SEEDS[:2], "high", times=HIGH / MEAN),
    # each at ten times the other's best rate, which is twice or half its own
    "decayed": lambda records: [
        *_compared(("lora, decay 1",), 12, SEEDS, "high", times=HIGH / 2)(records),
        *_compared(("svd-mean, decay 1",), 12, SEEDS, "high", times=2 * HIGH)(records),
    ],
    "few": _compared(MAIN, 3, SEEDS, "few"),
    "many": _compared(MAIN, 50, SEEDS, "many"),
    "long": _compared(MAIN, 12, HARD_SEEDS[:2], "long", longer=LONG),
    "tune more": lambda records: _tuning(MORE, records),
    "more": _compared(MORE, 12, SEEDS, "more"),
    "high more": _compared(tuple(METHODS), 12, HARD_SEEDS, "high", times=HIGH),
    "long more": _compared(tuple(METHODS), 12, HARD_SEEDS, "long", longer=LONG),
    "few more": _compared(MORE, 3, SEEDS, "few"),
    "many more": _compared(MORE, 50, SEEDS, "many"),
}


def group_key(task: Task) -> tuple:
    """Runs of one key go through one forward pass: as many rows and steps, parameters of one shape and meaning."""
    method = METHODS.get(task.method, {})
    beside = "keep" in method or "prior" in method
    shape = (method.get("kind", "plain"), method.get("rank", RANK), method.get("companion", 0))
    return (task.stage, *shape, beside, method.get("orthogonality", 0.0), task.steps)


def groups(wanted: Sequence[Task], most: int) -> list[list[Task]]:
    """Runs that go together, in their order."""
    found: dict[tuple, list[list[Task]]] = {}
    for task in wanted:
        parts = found.setdefault(group_key(task), [[]])
        if len(parts[-1]) == most:
            parts.append([])
        parts[-1].append(task)
    together = [part for parts in found.values() for part in parts]
    return sorted(together, key=lambda part: wanted.index(part[0]))
