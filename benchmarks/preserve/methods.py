"""Every method that is compared, and which runs each stage of the comparison is made of."""

from __future__ import annotations

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
    "keep 10 world": {"keep": {"weight": 10.0}, "captions": "world"},
    "keep 3 share 1": {"keep": {"weight": 3.0, "share": 1.0}},
    "keep 3 points 4": {"keep": {"weight": 3.0, "points": 4}},
    "keep 3 points 16": {"keep": {"weight": 3.0, "points": 16}},
    "both 1": {"init": "contrast", "keep": {"weight": 1.0}},
    "both 3": {"init": "contrast", "keep": {"weight": 3.0}},
    "both 10": {"init": "contrast", "keep": {"weight": 10.0}},
    "both 3 world": {"init": "contrast", "keep": {"weight": 3.0}, "captions": "world"},
    "both 10 world": {"init": "contrast", "keep": {"weight": 10.0}, "captions": "world"},
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


RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def _all(methods, seeds, rates) -> list[Task]:
    return [Task(m, c, s, r) for s in seeds for m in methods for r in rates for c in CONCEPT_NAMES]


STAGES = {
    "a": lambda: _all(["lora", "contrast"], (100,), (1e-3, 2e-3, 4e-3)),
    "c": lambda: _all(["both 3 world", "both 10 world", "keep 3 world"], (100,), (4e-3,)),
}


def tasks(stage: str) -> list[Task]:
    """The runs of a stage, in their order."""
    return STAGES[stage]()
