"""The harness of benchmarks/world: what is compared is apart, tuned and counted as its README says."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def world() -> Iterator[dict[str, ModuleType]]:
    """The modules, with the search path and the table of modules put back afterwards: both have plain names."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("preserve", "world"):  # the last one is searched first: `run` and `report` are the world's
            patch.syspath_prepend(BENCHMARKS / folder)
        yield {name: import_module(name) for name in ("lessons", "plan", "report", "run", "steep", "trial")}
    for name in set(sys.modules) - before:
        if Path(str(getattr(sys.modules[name], "__file__", ""))).is_relative_to(BENCHMARKS):
            del sys.modules[name]


def test_no_caption_that_is_measured_is_trained_on(
    world: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = world["lessons"]
    monkeypatch.setattr(lessons, "REFERENCE", 24)
    for name in lessons.CONCEPT_NAMES:
        few, some, many = (lessons.training(name, count) for count in (3, 12, 50))
        texts = [text for _, text in many]
        assert texts[:12] == [text for _, text in some] and texts[:3] == [text for _, text in few]
        assert all(a.tobytes() == b.tobytes() for (a, _), (b, _) in zip(some, many, strict=False))
        stop, report = ({text for _, text in found(name)} for found in (lessons.validation, lessons.test))
        assert not stop & report and not (stop | report) & set(texts)
        assert {text for _, text in lessons.reference(name)} == report
        assert all(any(word in text.replace(",", "").split() for word in lessons.RARE_WORDS) for text in texts)


def test_steep_spectra_change_no_prediction(world: dict[str, ModuleType]) -> None:
    from trilora_core.backend_diffusers import load_pipeline
    from trilora_core.demo import BASE

    unet = (pipe := load_pipeline(BASE, device="cpu")).unet
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 16, 8, 8, generator=generator), torch.tensor([100, 700])
    captions = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        before = unet(*given, encoder_hidden_states=captions).sample
        world["steep"].steepen(pipe)
        after = unet(*given, encoder_hidden_states=captions).sample
    assert float((after - before).norm() / before.norm()) < 1e-5
    linears = {name: module.weight for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)}
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        values = [torch.linalg.svdvals(weight.detach()) for name, weight in linears.items() if name.endswith(part)]
        assert max(float(found[7] / found[0]) for found in values) < 0.5  # above 0.7 before


def test_rates_are_tried_until_the_best_is_no_edge(world: dict[str, ModuleType]) -> None:
    plan = world["plan"]
    assert plan.next_rates({}) == list(plan.FIRST_RATES)
    assert plan.next_rates({2e-3: 1.0, 4e-3: 0.0, 8e-3: 1.0}) == []
    assert plan.next_rates({2e-3: 2.0, 4e-3: 1.0, 8e-3: 0.0}) == [16e-3]
    assert plan.next_rates({1e-3: 0.0, 2e-3: 0.0, 4e-3: 1.0, 8e-3: 2.0}) == [5e-4]
    records = [_record("lora", c, 100, r, loss) for c in plan.TUNED_ON for r, loss in ((2e-3, 2), (4e-3, 1), (8e-3, 2))]
    assert plan.best_rates(records) == {"lora": 4e-3}
    assert plan.best_rates(records[:-1]) == {}  # one is missing
    main = plan.STAGES["main"](_tuned(plan))
    assert [task.seed for task in main] == sorted(task.seed for task in main)  # what is there at any time is complete
    assert {task.rate for task in plan.STAGES["high"](_tuned(plan))} == {4e-2}


def _tuned(plan: ModuleType) -> list[dict]:
    return [
        _record(m, c, 100, r, loss)
        for m in plan.METHODS
        for c in plan.TUNED_ON
        for r, loss in ((2e-3, 2), (4e-3, 1), (8e-3, 2))
    ]


def _record(method: str, concept: str, seed: int, rate: float, loss: float, **more: object) -> dict:
    curve = [[0, 3.0, 0.0], [50, loss, 0.1], [100, loss + 0.5, 0.2]]
    name = f"{method} | {concept} 12 | {seed} | {rate:.4g} | 200"
    about = {"task": name, "method": method, "concept": concept, "shown": 12, "seed": seed, "rate": rate, "steps": 200}
    return about | {"curve": curve} | more


def test_only_what_is_missing_is_run_in_groups_that_fit(world: dict[str, ModuleType], tmp_path: Path) -> None:
    plan, run = world["plan"], world["run"]
    records = _tuned(plan)
    every = run.missing("main", records)
    names = [task.name for task in every]
    assert len(set(names)) == len(names) == len(plan.MAIN) * 6 * len(plan.SEEDS)
    some = run.missing("main", records, seeds=[2], methods=["svd"])
    assert len(some) == 6 and {(task.seed, task.method) for task in some} == {(2, "svd")}
    grouped = plan.groups(every, 9)
    assert sorted(task.name for group in grouped for task in group) == sorted(names)
    assert all(len(group) <= 9 and len({plan.group_key(task) for task in group}) == 1 for group in grouped)
    file = tmp_path / "results.jsonl"
    run.write(file, every[0], {"curve": [[0, 1.0, 0.0]]})
    run.write(file, every[0], {"curve": [[0, 2.0, 0.0]]})  # done twice counts once
    assert len(run.load(file)) == 1
    assert [task.name for task in run.missing("main", records + run.load(file))] == names[1:]
    assert json.loads(file.read_text().splitlines()[0])["task"] == names[0]


def test_intervals_and_steps(world: dict[str, ModuleType]) -> None:
    report, trial = world["report"], world["trial"]
    values = {(concept, seed): float(number) for number, concept in enumerate("abc") for seed in range(4)}
    mean, low, high = report.interval(values)
    assert mean == 1.0 and low < 0.5 and high > 1.5  # few concepts: wide, however many seeds
    assert report.interval(dict.fromkeys(values, 2.0)) == (2.0, 2.0, 2.0)
    run = {"curve": [[0, 3.0, 0.0], [10, 2.0, 0.1], [20, 2.5, 0.1], [30, 1.0, 0.2]]}
    assert report.steps_to(run, 2.5) == 5.0 and report.steps_to(run, 1.5) == pytest.approx(20 + 10 * 2 / 3)
    assert report.steps_to(run, 0.5) == math.inf
    norms = torch.ones(60)
    norms[40], norms[10] = 5.0, 50.0  # the first ones have nothing before them
    assert trial.spikes(norms) == {"spikes": 1, "longest": 5.0}
    found = report.Results(
        [
            *(_tuned(world["plan"])),
            *(_record(m, "ink", 0, 4e-3, 1.0, best=_best(x), norms={"spikes": 0}, best_step=50)
              for m, x in (("lora", 0.5), ("svd", 0.25))),
        ],
        (0,),
    )  # fmt: skip
    (row,) = [line for line in report.at_best(found, 12).splitlines() if line.startswith("| svd |")]
    assert "× 0.50 [0.50, 0.50]" in row


def test_beside_lora_at_the_same_rate(world: dict[str, ModuleType]) -> None:
    """`dora` is best at twice LoRA's best rate, so it is put beside LoRA there, and `svd` at LoRA's own is left out."""
    plan, report = world["plan"], world["report"]
    best_at = {"lora": 2e-3, "svd-mean": 2e-3, "svd": 2e-3, "dora": 4e-3}
    tuned = [
        _record(method, concept, 100, rate, 1 + abs(math.log2(rate / best)))
        for method, best in best_at.items()
        for concept in plan.TUNED_ON
        for rate in (1e-3, *plan.FIRST_RATES)
    ]
    losses = {
        ("lora", 2e-3): 0.8,
        ("lora", 4e-3): 0.5,
        ("svd-mean", 4e-3): 0.4,
        ("svd", 2e-3): 0.1,
        ("dora", 4e-3): 0.25,
    }
    runs = [
        _record(method, "ink", 0, rate, 1.0, best=_best(loss), norms={"spikes": 0}, best_step=50)
        for (method, rate), loss in losses.items()
    ]
    lines = report.at_same_rate(report.Results([*tuned, *runs], (0,)), 2.0).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[2:]}
    assert set(rows) == {"svd-mean", "dora"}
    assert "× 0.80 [0.80, 0.80]" in rows["svd-mean"] and "× 0.50 [0.50, 0.50]" in rows["dora"]


def test_the_end_of_a_run_is_put_beside_its_own_best_or_that_of_another(world: dict[str, ModuleType]) -> None:
    report = world["report"]
    runs = [
        _record(method, "ink", 0, rate, 1.0, best=_best(best), last=_best(last), norms={"spikes": 2})
        for method, rate, best, last in (("lora", 4e-3, 0.5, 0.5), ("svd", 4e-3, 0.4, 0.4), ("svd", 4e-2, 0.4, 0.8))
    ]
    found = report.Results([*_tuned(world["plan"]), *runs], (0,))
    (own,) = report.at_last(found, [("svd", 10), ("dora", 10)], 1).splitlines()[2:]  # of dora there is no run
    (other,) = report.at_last(found, [("svd", 10)], 1, "lora").splitlines()[2:]
    assert own.startswith("| svd | 0.04 | 1 | × 2.00 [2.00, 2.00] | × 1.00 [1.00, 1.00] |")
    assert other.startswith("| svd | 0.04 | 1 | × 1.60 [1.60, 1.60] | × 0.80 [0.80, 0.80] |")


def _best(loss: float) -> dict[str, float]:
    return {"test": loss, "shown": loss, "drift": 0.1, "frechet": 1.0, "text": 50.0}


def test_every_method_starts_from_the_base_and_is_measured(
    world: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One short run of each sort on the real base: the start is the base's, the files are there, all is finite."""
    plan, trial = world["plan"], world["trial"]
    monkeypatch.setattr(world["lessons"], "REFERENCE", 24)
    monkeypatch.setattr(world["lessons"], "TESTED", 8)
    monkeypatch.setattr(trial, "DRAWING_STEPS", 1)
    monkeypatch.setattr(trial, "MEASURED", (2,))
    at = trial.World(tmp_path)
    tasks = [plan.Task(method, "robot", 3, 0, 1e-3, 20, "main") for method in ("lora", "dora", "pissa")]
    (base,) = trial.run_together(at, [plan.Task(plan.BASE, "robot", 3, 0, 0.0, 0, "base")])
    for task in tasks:
        (record,) = trial.run_together(at, [task])
        assert record["curve"][0] == pytest.approx(base["curve"][0], abs=1e-4)
        assert record["curve"][0][2] < 1e-6 and record["best_step"] == 2
        assert record["best"]["test"] < base["best"]["test"] and record["last"]["shown"] < record["best"]["shown"]
        assert all(math.isfinite(value) for value in record["best"].values())
        assert {"frechet", "text"} <= set(record["best"]) and "frechet" not in record["last"]
        assert trial.drawing(tmp_path, task, "best").is_file()
