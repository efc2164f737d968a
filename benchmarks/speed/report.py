"""Tables and plot of what was measured; each goal beside its figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plan import SWEEPS

Records = Mapping[str, dict[str, Any]]
LABELS = {"here": "TriLoRA", "peft": "peft + diffusers"}
COLOURS = {"here": "#0072b2", "peft": "#d55e00"}  # told apart by colour-blind readers, by their markers too
MARKERS = {"here": "o", "peft": "s"}


def tables(records: Records) -> list[str]:
    """Lines of markdown."""
    parts = (_paper(records), _steps(records), _host(records), _start(records), _gpu(records))
    return [line for part in parts for line in part]


def _paper(records: Records) -> Iterator[str]:
    found = {name: record for name, record in records.items() if name.startswith("paper ")}
    if not found:
        return
    yield "\n**On paper**, bf16, batch 1, rank 16, attention linears: what must be computed and stored.\n"
    yield "| model, latents | TFLOP forward | a step | adapter's share | GB stored | adapter's share | with model, state |"
    yield "|---|---|---|---|---|---|---|"
    for name, r in found.items():
        floor, adapter = r["floor saved"], r["adapter saved"]
        whole = (r["model"] + adapter + r["adapter state"]) / (r["model"] + floor) - 1
        yield (
            f"| {name.removeprefix('paper ')} | {r['floor forward'] / 1e12:.3f} | {r['floor step'] / 1e12:.3f}"
            f" | {r['adapter step'] / r['floor step'] - 1:+.1%} | {floor / 1e9:.2f} | {adapter / floor - 1:+.1%}"
            f" | {whole:+.1%} |"
        )


def _steps(records: Records) -> Iterator[str]:
    for sweep, cases in SWEEPS.items():
        rows = [(case, records[f"steps {case.name}"]) for case in cases if f"steps {case.name}" in records]
        if not rows:
            continue
        yield f"\n**By {sweep}**\n"
        yield f"| {sweep} | floor, s | here / floor | peft / floor | peft / here | MiB floor, here, peft | with model: here / floor, peft / here |"
        yield "|---|---|---|---|---|---|---|"
        yield from (f"| {_value(case, sweep)} | {_step_cells(record)} |" for case, record in rows)


def _value(case: Any, sweep: str) -> str:
    if sweep == "resolution":
        return f"{8 * case.side} pixels"
    if sweep == "recomputed":
        return "on" if case.recomputed else "off"
    return str(getattr(case, sweep))


def _step_cells(r: dict[str, Any]) -> str:
    model, floor, here = r["model MiB"], r["MiB floor"], r["MiB here"]
    cells = [f"{r['s floor']:.2f}", f"{r['x here']:.2f}"]
    whole = f"{(model + here) / (model + floor):.2f}"
    if "x peft" not in r:
        return " | ".join([*cells, "", "", f"{floor:.0f}, {here:.0f}", whole])
    cells += [f"{r['x peft']:.2f}", f"{r['x peft'] / r['x here']:.2f}", f"{floor:.0f}, {here:.0f}, {r['MiB peft']:.0f}"]
    return " | ".join([*cells, f"{whole}, {(model + r['MiB peft']) / (model + here):.2f}"])


def _host(records: Records) -> Iterator[str]:
    timed = {"batch 1, the same layers": 1.1, "batch 1, as it ships": 2.0, "batch 4, the same layers": 3.5}
    rows = [(name, goal, records[f"host {name}"]) for name, goal in timed.items() if f"host {name}" in records]
    if rows:
        yield "\n**The host's Train LoRA node**, s a step\n"
        yield "| case | here | native | native / here | goal |\n|---|---|---|---|---|"
        yield from (f"| {n} | {r['here']:.2f} | {r['native']:.2f} | **{r['x']:.2f}** | {goal} |" for n, goal, r in rows)
    weighed = {n.removeprefix("host memory "): r for n, r in records.items() if n.startswith("host memory ")}
    if weighed:
        own = weighed.get("here, batch 1", {}).get("peak")
        yield "\n| memory above the loaded model | MiB | here / it (goal 0.65) |\n|---|---|---|"
        yield from (f"| {n} | {r['peak']:.0f} | {own / r['peak']:.2f} |" for n, r in weighed.items() if own)
    if "host apply" in records:
        r = records["host apply"]
        yield "\n| from file to patched weights | native loader | here | here / native | goal |\n|---|---|---|---|---|"
        yield f"| s, of them in nodes | {r['native']:.2f}, {r['native node']:.2f} | {r['here']:.2f}, {r['here node']:.2f} | **{r['x']:.2f}** | 1.1 |"


def _start(records: Records) -> Iterator[str]:
    if "start sdxl" not in records:
        return
    r = records["start sdxl"]
    yield f"\n**Before the first step**, SDXL's {r['layers']} attention linears, s on one thread\n"
    yield "| what | here | dense SVD of torch | dense / here |\n|---|---|---|---|"
    for name, own, dense in (("Σ from W0", "singular values", "svdvals"), ("canonical form", "canonical", "dense svd")):
        yield f"| {name} | {r[own]:.2f} | {r[dense]:.1f} | {r[dense] / r[own]:.1f} |"
    yield f"| whole start of the adapter | {r['create']:.2f} | | |\n| start with Σ = 1, and hooks | {r['attach']:.2f} | | |"


def _gpu(records: Records) -> Iterator[str]:
    rows = {name.removeprefix("gpu "): record for name, record in records.items() if name.startswith("gpu ")}
    if not rows:
        return
    yield "\n**On the GPU**, bf16\n"
    yield "| case | s | MiB |\n|---|---|---|"
    for name, r in rows.items():
        told = r.get("failed") or f"{r.get('s', r.get('all', 0.0)):.3f}"
        yield f"| {name} | {told} | {r.get('MiB', 0):.0f} |"


def plot(records: Records, file: Path) -> None:
    """Time of a step and memory over the floor, for each sweep of numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = {"rank": "rank", "batch": "batch", "resolution": "side"}
    figure, axes = plt.subplots(2, len(numbers), figsize=(10, 5.2), sharey="row", layout="constrained")
    for column, (sweep, field) in zip(axes.T, numbers.items(), strict=True):
        rows = [(case, records[f"steps {case.name}"]) for case in SWEEPS[sweep] if f"steps {case.name}" in records]
        at = [getattr(case, field) * (8 if sweep == "resolution" else 1) for case, _ in rows]
        for side, label in LABELS.items():
            if rows and all(f"x {side}" in r for _, r in rows):
                style = {"label": label, "color": COLOURS[side], "marker": MARKERS[side]}
                column[0].plot(at, [r[f"x {side}"] for _, r in rows], **style)
                column[1].plot(at, [_whole(r, side) for _, r in rows], **style)
        for axis in column:
            axis.axhline(1.0, color="0.4", linewidth=1)
            axis.axhline(1.1, color="0.4", linewidth=1, linestyle=":")
            axis.set_xscale("log", base=2)
            axis.set_xticks(at, [str(value) for value in at], minor=False)
            axis.spines[["top", "right"]].set_visible(False)
        column[1].set_xlabel("pixels a side" if sweep == "resolution" else sweep)
    axes[0, 0].set_ylabel("time of a step / floor")
    axes[1, 0].set_ylabel("memory with model / floor")
    axes[0, 0].legend(frameon=False)
    figure.suptitle("A training step beside the frozen forward and backward alone (1.0); dotted: 10% more", fontsize=11)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _whole(r: dict[str, Any], side: str) -> float:
    return float((r["model MiB"] + r[f"MiB {side}"]) / (r["model MiB"] + r["MiB floor"]))
