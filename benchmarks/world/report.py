"""Tables and curves of what `run.py` measured: `python benchmarks/world/report.py --plot benchmarks/world/curves.png`.

A run is compared with plain LoRA's on the same concept, pictures and seed, each at its own best rate. Intervals hold
95% of the means that come out when concepts are drawn anew, and then runs within each.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "preserve"), str(HERE.parents[1])]
from lessons import CONCEPT_NAMES  # noqa: E402
from plan import BASE, HIGH, LONG, MEAN, METHODS, SEEDS, STEPS, best_rates, tuned  # noqa: E402

TOO_HIGH = [*((method, float(HIGH)) for method in METHODS), ("svd-max", HIGH / MEAN)]  # as if it started as large
DECAYED = [  # one is best at twice the rate of the other, so both at 0.02 and at 0.04; and at 0.02 without decay
    *(("lora", HIGH), ("lora, decay 1", HIGH / 2), ("lora, decay 1", HIGH)),
    *(("svd-mean", HIGH), ("svd-mean, decay 1", HIGH), ("svd-mean, decay 1", 2 * HIGH)),
]
RESAMPLED, MARK = 2000, 0.9  # of LoRA's way from the base to its lowest validation loss
Place = tuple[str, int]  # concept, seed
Found = tuple[float, float, float]  # mean and interval
Value = Callable[[dict, dict, dict], float]  # of a run, LoRA's run, the base's record


def load(file: Path) -> list[dict]:
    """Every record, once."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record["task"]] = record
    return list(found.values())


def interval(values: Mapping[Place, float]) -> Found:
    """Mean over runs, and its interval; not a number where one of the values is none."""
    if not values or not all(map(math.isfinite, values.values())):
        return (math.nan,) * 3
    by: dict[str, list[float]] = defaultdict(list)
    for (concept, _), value in values.items():
        by[concept].append(value)
    chance, groups, means = random.Random(0), list(by.values()), []
    for _ in range(RESAMPLED):
        drawn = [v for group in chance.choices(groups, k=len(groups)) for v in chance.choices(group, k=len(group))]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return sum(values.values()) / len(values), means[int(0.025 * RESAMPLED)], means[int(0.975 * RESAMPLED)]


def steps_to(record: dict, loss: float) -> float:
    """The step at which the validation loss first is this low, linear between measures; infinite where it never is."""
    for (s0, l0, _), (s1, l1, _) in pairwise(record["curve"]):
        if l1 <= loss < l0:
            return float(s0 + (s1 - s0) * (l0 - loss) / (l0 - l1))
    return math.inf


def _mark(lora: dict, share: float) -> float:
    losses = [point[1] for point in lora["curve"]]
    return float(losses[0] + share * (min(losses) - losses[0]))


def _log(ratio: float) -> float:
    return math.log(max(ratio, 1e-9))


def _far(found: dict) -> float:
    """The distance of drawn pictures; infinite where they were not finite."""
    return float(found.get("frechet", math.inf))


def _text(found: dict) -> float:
    return float(found.get("text", math.nan))


def _gap(found: dict) -> float:
    return float(found["test"] - found["shown"])


def _speed(run: dict, lora: dict, base: dict) -> float:
    loss = _mark(lora, MARK)
    return _log(steps_to(run, loss) / steps_to(lora, loss))


# Of what is reported at the best step: (heading, value, whether its mean is that of a ratio's logarithm)
AT_BEST: tuple[tuple[str, Value, bool], ...] = (
    ("held-out loss", lambda run, lora, base: _log(run["best"]["test"] / lora["best"]["test"]), True),
    (
        "gap to the pictures trained on",
        lambda run, lora, base: (
            run["best"]["test"] - run["best"]["shown"] - lora["best"]["test"] + lora["best"]["shown"]
        ),
        False,
    ),
    ("drift", lambda run, lora, base: _log(run["best"]["drift"] / lora["best"]["drift"]), True),
    ("world Fréchet distance", lambda run, lora, base: _log(_far(run["best"]) / _far(lora["best"])), True),
    ("picture-text score", lambda run, lora, base: _text(run["best"]) - _text(lora["best"]), False),
    (f"steps to {MARK:.0%} of the way", _speed, True),
    ("spikes in a run", lambda run, lora, base: run["norms"]["spikes"], False),
)
# Of a run that is over, beside the same method at its best rate, step and length.
AT_LAST: tuple[tuple[str, Value, bool], ...] = (
    ("held-out loss", lambda run, own, base: _log(run["last"]["test"] / own["best"]["test"]), True),
    ("at its own best step", lambda run, own, base: _log(run["best"]["test"] / own["best"]["test"]), True),
    ("drift", lambda run, own, base: _log(run["last"]["drift"] / own["best"]["drift"]), True),
    ("world Fréchet distance", lambda run, own, base: _log(_far(run["last"]) / _far(own["best"])), True),
    ("picture-text score", lambda run, own, base: _text(run["last"]) - _text(own["best"]), False),
    ("spots in a picture", lambda run, own, base: float(run["last"].get("spots", math.nan)), False),
    ("clipped pixels", lambda run, own, base: float(run["last"].get("clipped", math.nan)), False),
    ("spikes in a run", lambda run, own, base: run["norms"]["spikes"], False),
)


class Results:
    """Records by what they are."""

    def __init__(self, records: Sequence[dict], seeds: Sequence[int]) -> None:
        self.records, self.rates, self.means = records, best_rates(records), tuned(records)
        self.seeds = seeds
        self.base = {r["concept"]: r for r in records if r["method"] == BASE}

    def runs(self, method: str, shown: int = 12, times: float = 1, longer: int = 1) -> dict[Place, dict]:
        """Those of one method at its best rate, or so many times it, and so many times the steps."""
        if method not in self.rates:
            return {}
        wanted = (method, shown, times * self.rates[method], longer * STEPS)
        return {
            (r["concept"], r["seed"]): r
            for r in self.records
            if (r["method"], r["shown"], r["rate"], r["steps"]) == wanted and r["seed"] in self.seeds and "best" in r
        }

    def beside(
        self, ours: Mapping[Place, dict], theirs: Mapping[Place, dict], columns: Sequence[tuple[str, Value, bool]]
    ) -> list[str]:
        """One cell for each column, over the places that both have."""
        cells = []
        for _, value, ratio in columns:
            values = {p: value(ours[p], theirs[p], self.base.get(p[0], {})) for p in ours if p in theirs}
            cells.append(shown(values, ratio))
        return cells

    def normalised(self, runs: Mapping[Place, dict], which: str = "best") -> str:
        """The distance beside the base's on the same captions."""
        found = {
            place: _log(_far(run[which]) / _far(self.base[place[0]]["best"]))
            for place, run in runs.items()
            if place[0] in self.base
        }
        return shown(found, True)


def shown(values: Mapping[Place, float], ratio: bool) -> str:
    """Mean with its interval; where some are not finite, how many are."""
    finite = {place: value for place, value in values.items() if math.isfinite(value)}
    if not finite:
        return "–"
    mean, low, high = interval(finite)
    if ratio:
        text = f"× {math.exp(mean):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"
    else:
        text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return text if len(finite) == len(values) else f"{text} ({len(finite)} of {len(values)})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def at_best(found: Results, shown_pictures: int, more: Sequence[tuple[str, float]] = ()) -> str:
    """Every method at its best rate and step, and some at other rates, beside LoRA."""
    lora = found.runs("lora", shown_pictures)
    heads = ["method", "rate", "runs", "stops at", *(head for head, _, _ in AT_BEST), "beside the base's distance"]
    rows = []
    for method, factor in [*((method, 1) for method in METHODS), *more]:
        runs = {p: run for p, run in found.runs(method, shown_pictures, factor).items() if p in lora}
        if runs:
            at = sum(run["best_step"] for run in runs.values()) / len(runs)
            cells = found.beside(runs, lora, AT_BEST)
            rate = f"{factor * found.rates[method]:g}"
            rows.append([method, rate, str(len(runs)), f"{at:.0f}", *cells, found.normalised(runs)])
    return _table(heads, rows)


def at_same_rate(found: Results, times: float) -> str:
    """Those whose best rate is so many times LoRA's, and TriLoRA, beside LoRA at that rate; 12 pictures, best step."""
    lora, rate = found.runs("lora", times=times), times * found.rates.get("lora", math.nan)
    heads, rows = ["method", "runs", *(head for head, _, _ in AT_BEST)], []
    for method, factor in [("svd-mean", times), *((m, 1.0) for m in METHODS if found.rates.get(m) == rate)]:
        runs = {place: run for place, run in found.runs(method, times=factor).items() if place in lora}
        if runs:
            rows.append([method, str(len(runs)), *found.beside(runs, lora, AT_BEST)])
    return _table(heads, rows)


def at_last(found: Results, wanted: Iterable[tuple[str, float]], longer: int, beside: str | None = None) -> str:
    """The end of runs at so many times the best rate or steps, beside the best run of the same or of one method."""
    rows = []
    for method, times in wanted:
        best, hard = found.runs(beside or method), found.runs(method, times=times, longer=longer)
        hard = {place: run for place, run in hard.items() if place in best}
        if hard:
            cells, rate = found.beside(hard, best, AT_LAST), times * found.rates[method]
            rows.append([method, f"{rate:.3g}", str(len(hard)), *cells, found.normalised(hard, "last")])
    return _table(["method", "rate", "runs", *(head for head, _, _ in AT_LAST), "beside the base's distance"], rows)


def tuning(found: Results) -> str:
    """What each rate gave: the geometric mean of the best validation loss."""
    rates = sorted({rate for means in found.means.values() for rate in means})
    rows = []
    for method, means in found.means.items():
        best = found.rates.get(method)
        cells = [f"{math.exp(means[r]):.4f}" if r in means else "" for r in rates]
        rows.append([method, *(f"**{c}**" if r == best else c for c, r in zip(cells, rates, strict=True))])
    return _table(["method", *(f"{rate:g}" for rate in rates)], rows)


def by_concept(found: Results, methods: Sequence[str]) -> str:
    """Held-out loss and distance of each concept, means over seeds."""
    rows = []
    for concept in CONCEPT_NAMES:
        base, cells = found.base.get(concept), []
        for method in methods:
            runs = [run for (about, _), run in found.runs(method).items() if about == concept]
            pair = [sum(run["best"][name] for run in runs) / len(runs) for name in ("test", "frechet")] if runs else []
            cells.append(" / ".join(f"{value:.3f}" for value in pair) or "–")
        own = f"{base['best']['test']:.3f} / {base['best']['frechet']:.3f}" if base else "–"
        rows.append([concept, own, *cells])
    return _table(["concept", "base", *methods], rows)


def plot(found: Results, methods: Sequence[str], file: Path, longer: int = 1) -> None:
    """Mean validation loss and drift by step, one column for each concept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, len(CONCEPT_NAMES), figsize=(3.2 * len(CONCEPT_NAMES), 6), constrained_layout=True)
    for column, concept in enumerate(CONCEPT_NAMES):
        for number, method in enumerate(methods):
            runs = [r for (about, _), r in found.runs(method, longer=longer).items() if about == concept]
            if not runs:
                continue
            steps = [point[0] for point in runs[0]["curve"]]
            for row in (0, 1):
                mean = [sum(run["curve"][i][row + 1] for run in runs) / len(runs) for i in range(len(steps))]
                panels[row][column].plot(steps[row:], mean[row:], marker=".", color=f"C{number}", label=method)
        panels[0][column].set(title=concept, yscale="log")
        panels[1][column].set(xlabel="step", yscale="log")
    panels[0][0].set_ylabel("validation loss")
    panels[1][0].set_ylabel("drift")
    panels[0][-1].legend(fontsize=7)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    """Print every table that there are runs for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--plot", type=Path, help="draw the curves to this file")
    parser.add_argument("--methods", nargs="+", default=["lora", "svd-mean", "svd", "dora", "pissa", "svd-mean, light"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    chosen = parser.parse_args()
    found = Results(load(chosen.results), chosen.seeds)
    print(f"### Tuning\n\n{tuning(found)}")
    for pictures in (12, 3, 50):
        more = [(method, 2.0) for method in ("lora", "svd-mean")] if pictures == 12 else []  # others' best rate
        print(f"\n### {pictures} pictures\n\n{at_best(found, pictures, more)}")
    print(f"\n### At LoRA's other rate\n\n{at_same_rate(found, 2.0)}")
    print(f"\n### {HIGH} times the best rate\n\n{at_last(found, TOO_HIGH, 1)}")
    print(f"\n### With weight decay, beside LoRA's best\n\n{at_last(found, DECAYED, 1, 'lora')}")
    print(f"\n### {LONG} times the steps\n\n{at_last(found, [(method, 1) for method in METHODS], LONG)}")
    print(f"\n### By concept\n\n{by_concept(found, chosen.methods)}")
    if chosen.plot:
        plot(found, chosen.methods, chosen.plot)


if __name__ == "__main__":
    main()
