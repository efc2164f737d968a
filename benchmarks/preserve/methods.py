"""Every method that is compared, and which runs each stage of the comparison is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONCEPT_NAMES = ("style", "subject", "layout")

LORA = {"method": "lora", "init": "ones"}
METHODS: dict[str, dict] = {
    "lora": LORA,
    "lora decay 1": LORA | {"decay": 1.0},
    "lora decay 3": LORA | {"decay": 3.0},
    "lora decay 10": LORA | {"decay": 10.0},
    "svd-mean": {},
    "contrast": {"init": "contrast"},
    "contrast world": {"init": "contrast", "captions": "world"},
    "keep 1": {"keep": {"weight": 1.0}},
    "keep 3": {"keep": {"weight": 3.0}},
    "keep 10": {"keep": {"weight": 10.0}},
    "keep 3 world": {"keep": {"weight": 3.0}, "captions": "world"},
    "keep 1 world": {"keep": {"weight": 1.0}, "captions": "world"},
    "keep 0.03 world": {"keep": {"weight": 0.03}, "captions": "world"},
    "keep 0.1 world": {"keep": {"weight": 0.1}, "captions": "world"},
    "keep 0.3 world": {"keep": {"weight": 0.3}, "captions": "world"},
    "keep 10 world": {"keep": {"weight": 10.0}, "captions": "world"},
    "keep 3 share 1": {"keep": {"weight": 3.0, "share": 1.0}},
    "keep 3 points 4": {"keep": {"weight": 3.0, "points": 4}},
    "keep 3 points 16": {"keep": {"weight": 3.0, "points": 16}},
    "both 1": {"init": "contrast", "keep": {"weight": 1.0}},
    "both 1 world": {"init": "contrast", "keep": {"weight": 1.0}, "captions": "world"},
    "both 3": {"init": "contrast", "keep": {"weight": 3.0}},
    "both 10": {"init": "contrast", "keep": {"weight": 10.0}},
    "both 3 world": {"init": "contrast", "keep": {"weight": 3.0}, "captions": "world"},
    "both 0.03 world": {"init": "contrast", "keep": {"weight": 0.03}, "captions": "world"},
    "both 0.1 world": {"init": "contrast", "keep": {"weight": 0.1}, "captions": "world"},
    "both 0.3 world": {"init": "contrast", "keep": {"weight": 0.3}, "captions": "world"},
    "both 10 world": {"init": "contrast", "keep": {"weight": 10.0}, "captions": "world"},
    "keep 3 own": {"keep": {"weight": 3.0}, "captions": "own"},
    "both 3 own": {"init": "contrast", "keep": {"weight": 3.0}, "captions": "own"},
    "keep 0.1 world empty": {"keep": {"weight": 0.1}, "captions": "world empty"},
    "keep 0.3 world empty": {"keep": {"weight": 0.3}, "captions": "world empty"},
    "keep 0.1 world early": {"keep": {"weight": 0.1}, "captions": "world", "early": True},
    "keep 0.3 world early": {"keep": {"weight": 0.3}, "captions": "world", "early": True},
    "penalty 1": {"tries": {"penalty": 1.0}},
    "penalty 10": {"tries": {"penalty": 10.0}},
    "mix": {"tries": {"mix": 0.5}},
    "precondition": {"tries": {"precondition": 0.5}},
}


@dataclass(frozen=True)
class Task:
    """One run."""

    method: str
    concept: str
    seed: int
    rate: float
    steps: int = 200

    @property
    def name(self) -> str:
        return f"{self.method} | {self.concept} | {self.seed} | {self.rate:g} | {self.steps}"


SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)
RATE = 4e-3  # the best of every method that was tuned, to a factor of two
WEIGHTS = ("0.03", "0.1", "0.3", "1", "3")
MAIN = (
    *("lora", "lora decay 3", "svd-mean", "contrast world"),
    *(f"{what} {weight} world" for what in ("keep", "both") for weight in WEIGHTS),
)
TUNED = ("lora", "svd-mean", "keep 0.1 world", "keep 0.3 world", "keep 1 world")
LONG = ("lora", "keep 0.1 world", "keep 0.3 world", "keep 1 world")
GUIDED = tuple(f"keep {weight} world {what}" for weight in ("0.1", "0.3") for what in ("empty", "early"))
TRIED = (
    *("keep 3", "both 3", "contrast", "keep 3 own", "both 3 own", "keep 10 world", "both 10 world"),
    *("keep 3 share 1", "keep 3 points 4", "keep 3 points 16", "penalty 1", "penalty 10", "mix", "precondition"),
    *("lora decay 1", "lora decay 10"),
)


def _all(methods: Sequence[str], seeds: Sequence[int], rates: Sequence[float]) -> list[Task]:
    return [Task(m, c, s, r) for s in seeds for m in methods for r in rates for c in CONCEPT_NAMES]


STAGES: dict[str, Callable[[], list[Task]]] = {
    "tune": lambda: _all(TUNED, TUNING_SEEDS, (8e-3, 4e-3, 2e-3)),
    "main": lambda: _all(MAIN, SEEDS, (RATE,)),
    "tries": lambda: _all(TRIED, SEEDS[:2], (RATE,)),
    "pictures": lambda: _all(("lora", "keep 0.1 world", "keep 0.3 world"), SEEDS, (RATE,)),  # a part of main
    "guided": lambda: _all(GUIDED, SEEDS[:1], (RATE,)),
    "stable": lambda: _all(("lora", "svd-mean", "keep 0.1 world"), SEEDS[:2], (10 * RATE,)),
    "long": lambda: [Task(m, c, s, RATE, 600) for s in SEEDS[:2] for m in LONG for c in CONCEPT_NAMES],
}


def tasks(stage: str) -> list[Task]:
    """The runs of a stage, in their order."""
    return STAGES[stage]()
