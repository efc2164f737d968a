"""The table and the curves of what `run.py` measured: `python benchmarks/preserve/report.py [--plot curves.png]`.

All is drift at equal held-out loss. The mark is what plain LoRA reaches at its own best rate, on the same concept with
the same seed; and 95% and 90% of the way there from the untrained base. A run's drift there is the least of what its
course and its result at lower strengths give, log-linear between measures: what somebody gets who stops at the right
step or takes the right strength. LoRA itself is read in the same way.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
MARKS = (1.0, 0.95, 0.9)  # of LoRA's way from the base's held-out loss to its own
RESAMPLED = 2000
SHOWN = ("lora", "svd-mean", "contrast world", "keep 0.1 world", "keep 0.3 world", "keep 1 world")  # in the plot
Point = tuple[float, float]  # held-out loss, drift
# Places in a measure. Runs of the stage `pictures` have all; the others end with the first.
CHANGES = {"predictions for captions": 2, "for the empty caption": 3, "guided": 4, "drawn pictures": 5}


def load(file: Path) -> list[dict]:
    """Every record, once."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record["task"]] = record
    return list(found.values())


def best_rates(records: Sequence[dict], seeds: Sequence[int]) -> dict[str, float]:
    """The rate of the lowest mean held-out loss after all steps on the seeds for tuning; else the one that was run."""
    tuned: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    ran: dict[str, Counter[float]] = defaultdict(Counter)
    for record in records:
        if record["seed"] in seeds:
            tuned[record["method"]][record["rate"]].append(_finite(record["curve"][-1][1]))
        else:
            ran[record["method"]][record["rate"]] += 1
    best = {method: min(by, key=lambda rate: sum(by[rate]) / len(by[rate])) for method, by in tuned.items()}
    return {m: best[m] if ran[m][best.get(m, 0.0)] else by.most_common(1)[0][0] for m, by in ran.items()}


def drift_at(record: dict, held: float, column: int = 2) -> float | None:
    """The least drift with which the run's held-out loss is `held`; None where it never is that low."""
    course = [(point[1], point[column]) for point in record["curve"]]
    weaker = [course[0], *((point[1], point[column]) for point in record["strengths"]), course[-1]]
    found = [d for line in (course, weaker) for d in _crossings(line, held)]
    return min(found) if found else None


def _crossings(line: Sequence[Point], held: float) -> Iterable[float]:
    for (h0, d0), (h1, d1) in pairwise(line):
        if min(h0, h1) <= held <= max(h0, h1) and h0 != h1:
            share = (held - h0) / (h1 - h0)
            low = 1e-9
            yield (
                math.exp((1 - share) * math.log(max(d0, low)) + share * math.log(max(d1, low)))
                if d0 > low
                else d1 * share**2
            )


def compare(records: Sequence[dict], rates: dict[str, float], seeds: Sequence[int]) -> list[dict]:
    """One row for each method: ratios of drift at every mark, held-out loss and drift at the end beside LoRA's."""
    runs = {(r["method"], r["concept"], r["seed"]): r for r in records if r["rate"] == rates.get(r["method"])}
    places = sorted({(c, s) for m, c, s in runs if m == "lora" and s in seeds})
    rows = []
    for method in sorted({m for m, _, _ in runs}, key=lambda m: (m != "lora", m)):
        pairs = [(runs[("lora", *p)], runs[(method, *p)]) for p in places if (method, *p) in runs]
        if not pairs:
            continue
        row: dict = {"method": method, "rate": rates[method], "runs": len(pairs), "marks": {}}
        for mark in MARKS:
            row["marks"][mark] = _at_mark(pairs, mark)
        row["held"] = _mean([r["curve"][-1][1] - base["curve"][-1][1] for base, r in pairs])
        row["drift"] = _ratio([(base["curve"][-1][2], r["curve"][-1][2]) for base, r in pairs])
        row["start"] = _mean([_at(r, 25) - _at(base, 25) for base, r in pairs])
        rows.append(row)
    return rows


def _at_mark(
    pairs: Sequence[tuple[dict, dict]], mark: float, column: int = 2
) -> tuple[int, tuple[float, float, float]]:
    found = []
    for base, run in pairs:
        start, end = base["curve"][0][1], base["curve"][-1][1]
        held = start + mark * (end - start)
        theirs = base["curve"][-1][column] if mark == 1.0 else drift_at(base, held, column)
        ours = drift_at(run, held, column)
        if ours is not None and theirs is not None:
            found.append((theirs, ours))
    return len(found), _ratio(found)


def changes(records: Sequence[dict], seeds: Sequence[int]) -> str:
    """Markdown: what is left of LoRA's change in predictions and in pictures, for the runs that measured all of it."""
    runs = {(r["method"], r["concept"], r["seed"]): r for r in records if len(r["curve"][-1]) > max(CHANGES.values())}
    places = sorted({(c, s) for m, c, s in runs if m == "lora" and s in seeds})
    lines = ["| method | of | at 90% of LoRA's way | at the end |", "|---|---|---|---|"]
    for method in sorted({m for m, _, _ in runs} - {"lora"}):
        pairs = [(runs[("lora", *p)], runs[(method, *p)]) for p in places if (method, *p) in runs]
        for name, column in CHANGES.items():
            reached, ratio = _at_mark(pairs, 0.9, column)
            end = _ratio([(base["curve"][-1][column], r["curve"][-1][column]) for base, r in pairs])
            lines.append(f"| {method} | {name} | × {_shown(ratio)} ({reached}) | × {_shown(end)} |")
    return "\n".join(lines)


def _at(record: dict, step: int) -> float:
    return next(point[1] for point in record["curve"] if point[0] == step)


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Geometric mean of the ratios with the interval that holds 95% of resampled ones."""
    if not pairs:
        return (math.nan,) * 3
    return tuple(math.exp(value) for value in _mean([math.log(b / a) for a, b in pairs]))  # type: ignore[return-value]


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    if not values or not all(map(math.isfinite, values)):
        return (math.nan,) * 3
    chance, count = random.Random(0), len(values)
    means = sorted(sum(chance.choices(values, k=count)) / count for _ in range(RESAMPLED))
    return sum(values) / count, means[int(0.025 * RESAMPLED)], means[int(0.975 * RESAMPLED)]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def table(rows: Sequence[dict]) -> str:
    """Markdown."""
    marks = " | ".join(f"drift at {mark:.0%}" for mark in MARKS)
    lines = [
        f"| method | rate | runs | {marks} | held out at the end, less LoRA's | after 25 steps | drift at the end |",
        "|" + "---|" * (6 + len(MARKS)),
    ]
    for row in rows:
        cells = []
        for mark in MARKS:
            reached, found = row["marks"][mark]
            cells.append(f"× {_shown(found)} ({reached})" if reached else "– (0)")
        cells += [_signed(row["held"]), _signed(row["start"]), f"× {_shown(row['drift'])}"]
        lines.append(f"| {row['method']} | {row['rate']:g} | {row['runs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _signed(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def plot(
    records: Sequence[dict], rates: dict[str, float], methods: Sequence[str], seeds: Sequence[int], file: Path
) -> None:
    """Held-out loss and drift of the mean course of each method, one panel for each concept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    concepts = sorted({record["concept"] for record in records})
    figure, panels = plt.subplots(1, len(concepts), figsize=(4.4 * len(concepts), 4), constrained_layout=True)
    for panel, concept in zip(panels, concepts, strict=True):
        for number, method in enumerate(methods):
            runs = [
                r
                for r in records
                if (r["method"], r["concept"], r["rate"]) == (method, concept, rates.get(method)) and r["seed"] in seeds
            ]
            if not runs:
                continue
            courses = [[point[1:3] for point in run["curve"][1:]] for run in runs]
            mean = [[sum(p[i] for p in points) / len(points) for i in (0, 1)] for points in zip(*courses, strict=True)]
            panel.plot(*zip(*mean, strict=True), marker="o", ms=3, color=f"C{number}", label=method)
            weaker = [[point[1:3] for point in run["strengths"]] for run in runs]
            line = [[sum(p[i] for p in points) / len(points) for i in (0, 1)] for points in zip(*weaker, strict=True)]
            panel.plot(*zip(*[*line, mean[-1]], strict=True), ls=":", color=f"C{number}")
        panel.set(title=concept, xlabel="held-out loss", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("drift")
    panels[-1].legend(fontsize=8)
    figure.suptitle("Drift against held-out loss: through training (line), at lower strength (dotted)")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuned-on", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--steps", type=int, default=200, help="of the runs that are compared (default: 200)")
    chosen = parser.parse_args()
    records = [record for record in load(chosen.results) if record["steps"] == chosen.steps]
    rates = best_rates(records, chosen.tuned_on)
    print(table(compare(records, rates, chosen.seeds)))
    print("\n" + changes(records, chosen.seeds))
    if chosen.plot:
        plot(records, rates, SHOWN, chosen.seeds, chosen.plot)


if __name__ == "__main__":
    main()
