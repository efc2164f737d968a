"""Tables and plot of what was measured; each goal beside its figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sides import Case

Records = Mapping[str, dict[str, Any]]
Sweeps = Mapping[str, Sequence[Case]]
LABELS = {"here": "TriLoRA", "peft": "peft + diffusers"}
COLOURS = {"here": "#0072b2", "peft": "#d55e00"}  # told apart by colour-blind readers, by their markers too
MARKERS = {"here": "o", "peft": "s"}
GOAL = 1.1  # of the floor
HOST_GOALS = {"batch 1, the same layers": 1.1, "batch 1, as it ships": 2.0, "batch 4, the same layers": 3.5}


def tables(records: Records, sweeps: Sweeps) -> list[str]:
    """Lines of markdown."""
    parts = (_machines(records), _paper(records), _steps(records, sweeps), _host(records), _start(records))
    return [line for part in (*parts, _tuned(records), _gpu(records)) for line in part]


def _table(title: str, *heads: str) -> Iterator[str]:
    yield from (f"\n{title}\n", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads))


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _machines(records: Records) -> Iterator[str]:
    found = sorted({f"{r['machine']}, torch {r['torch']}" for r in records.values()})
    loads = [r["load"] for r in records.values()]
    if found:
        yield f"\n{'; '.join(found)}; load while measuring {min(loads)} to {max(loads)}"


def _paper(records: Records) -> Iterator[str]:
    found = {name.removeprefix("paper "): r for name, r in records.items() if name.startswith("paper ")}
    if not found:
        return
    heads = ("model, latents", "TFLOP forward", "TFLOP a step", "adapter adds", "GB kept", "adapter adds")
    title = (
        "**On paper**: bf16, batch 1, rank 16, attention linears; what must be computed, and kept for the backward pass"
    )
    yield from _table(title, *heads, "state of the adapter, GB", "all with the model")
    for name, r in found.items():
        floor, own = r["floor saved"], r["adapter saved"]
        whole = (r["model"] + own + r["adapter state"]) / (r["model"] + floor) - 1
        tera = [f"{r[key] / 1e12:.2f}" for key in ("floor forward", "floor step")]
        more = f"{r['adapter step'] / r['floor step'] - 1:+.1%}"
        kept = [f"{floor / 1e9:.2f}", f"{own / floor - 1:+.1%}", f"{r['adapter state'] / 1e9:.2f}", f"{whole:+.1%}"]
        yield _row(name, *tera, more, *kept)


def _steps(records: Records, sweeps: Sweeps) -> Iterator[str]:
    for sweep, cases in sweeps.items():
        rows = [(case, records[f"steps {case.name}"]) for case in cases if f"steps {case.name}" in records]
        if not rows:
            continue
        heads = ("floor, s", "TriLoRA / floor", "peft / floor", "peft / TriLoRA", "MiB: floor, TriLoRA, peft")
        yield from _table(f"**By {sweep}**", sweep, *heads, "with the model, / floor: TriLoRA, peft")
        yield from (_row(_value(case, sweep), *_step_cells(record)) for case, record in rows)


def _value(case: Case, sweep: str) -> str:
    if sweep == "resolution":
        return f"{8 * case.side} pixels"
    if sweep == "recomputed":
        return "on" if case.recomputed else "off"
    return str(getattr(case, sweep))


def _step_cells(r: dict[str, Any]) -> Iterator[str]:
    sides = [side for side in LABELS if f"x {side}" in r]
    low, high = r["range here"]
    yield f"{r['s floor']:.2f}"
    yield f"**{r['x here']:.2f}** ({low:.2f} to {high:.2f})"
    yield f"{r['x peft']:.2f}" if "peft" in sides else ""
    yield f"{r['x peft'] / r['x here']:.2f}" if "peft" in sides else ""
    yield ", ".join(f"{r[f'MiB {side}']:.0f}" for side in ("floor", *sides))
    yield ", ".join(f"{_whole(r, side):.2f}" for side in sides)


def _whole(r: dict[str, Any], side: str) -> float:
    return float((r["model MiB"] + r[f"MiB {side}"]) / (r["model MiB"] + r["MiB floor"]))


def _host(records: Records) -> Iterator[str]:
    for before, model in (("host", "107 million weights"), ("host sd15", "SD1.5's shape, 860 million weights")):
        found = {name.removeprefix(f"{before} "): r for name, r in records.items() if name.startswith(f"{before} ")}
        timed = {name: found[name] for name in HOST_GOALS if name in found}
        if timed:
            title = f"**The host's Train LoRA node**, {model}, 256 pixels, s a step"
            yield from _table(title, "case", "TriLoRA", "native", "ratio", "goal")
            for name, r in timed.items():
                yield _row(name, f"{r['here']:.2f}", f"{r['native']:.2f}", _ratio(r), f"≥ {HOST_GOALS[name]}")
        weighed = {name.removeprefix("memory "): r for name, r in found.items() if name.startswith("memory ")}
        yield from _weighed(weighed)
        if "apply" in found:
            r = found["apply"]
            title = f"From the file to patched weights, {model}, s"
            yield from _table(title, "", "native loader", "TriLoRA", "ratio", "goal")
            yield _row("all", f"{r['native']:.3f}", f"{r['here']:.3f}", _ratio(r), "≤ 1.1")
            yield _row("of it in the nodes", f"{r['native node']:.3f}", f"{r['here node']:.3f}", "", "")


def _ratio(r: Mapping[str, Any]) -> str:
    low, high = r["range"]
    return f"**{r['x']:.2f}** ({low:.2f} to {high:.2f})"


def _weighed(weighed: dict[str, dict[str, Any]]) -> Iterator[str]:
    own = weighed.pop("here, batch 1", {}).get("peak")
    if own and weighed:
        title = f"Memory above the loaded model, resident: TriLoRA {own:.0f} MiB"
        yield from _table(title, "beside", "MiB", "TriLoRA / it", "goal")
        for name, r in weighed.items():
            yield _row(name, f"{r['peak']:.0f}", f"**{own / r['peak']:.2f}**", "≤ 0.65")


def _start(records: Records) -> Iterator[str]:
    if "start sdxl" not in records:
        return
    r = records["start sdxl"]
    title = f"**Before the first step**: SDXL's {r['layers']} attention linears, s on one thread"
    yield from _table(title, "", "TriLoRA", "dense SVD of torch", "dense / TriLoRA")
    for name, own, dense in (("Σ from W0", "singular values", "svdvals"), ("canonical form", "canonical", "dense svd")):
        yield _row(name, f"{r[own]:.2f}", f"{r[dense]:.1f}", f"**{r[dense] / r[own]:.1f}**")
    yield _row("whole start of the adapter, Σ included", f"{r['create']:.2f}", "", "")
    yield _row("start with Σ = 1, hooks included", f"{r['attach']:.2f}", "", "")


def _tuned(records: Records) -> Iterator[str]:
    r = records.get("tuned optimizers")
    if r:
        title = f"**AdamW over {r['parameters'] / 1e6:.0f} million numbers** (SDXL, rank 16), s a step"
        yield from _table(title, "form", "s", "furthest number from the loop's")
        yield _row("loop", f"{r['s loop']:.3f}", "")
        yield from (_row(n, f"{r[f's {n}']:.3f}", f"{r[f'difference {n}']:.1g}") for n in ("foreach", "fused"))
    r = records.get("tuned compile")
    if r:
        yield from _table("**torch.compile**", "compiling, s", "a step, s", "compiled, s", "ratio", "furthest number")
        if "failed" in r:
            yield _row(r["failed"], "", "", "", "")
        else:
            seconds = [f"{r[key]:.2f}" for key in ("s compiling", "s plain", "s compiled")]
            yield _row(*seconds, f"**{r['x']:.2f}**", f"{r['difference']:.1g}")


def _gpu(records: Records) -> Iterator[str]:
    rows = {name.removeprefix("gpu "): record for name, record in records.items() if name.startswith("gpu ")}
    if rows:
        yield from _table("**On the GPU**, bf16", "case", "s", "MiB")
    for name, r in rows.items():
        yield _row(name, r.get("failed") or f"{r.get('s', r.get('all', 0.0)):.3f}", f"{r.get('MiB', 0):.0f}")


def plot(records: Records, sweeps: Sweeps, file: Path) -> None:
    """Time of a step and memory over the floor, for each sweep of numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = {"rank": "rank", "batch": "batch", "resolution": "side"}
    figure, axes = plt.subplots(2, len(numbers), figsize=(10, 5.4), sharey="row", layout="constrained")
    for column, (sweep, field) in zip(axes.T, numbers.items(), strict=True):
        rows = [(case, records[f"steps {case.name}"]) for case in sweeps[sweep] if f"steps {case.name}" in records]
        at = [getattr(case, field) * (8 if sweep == "resolution" else 1) for case, _ in rows]
        _curves(column, at, [record for _, record in rows])
        for axis in column:
            axis.set_xscale("log", base=2)
            axis.set_xticks(at, [str(value) for value in at], minor=False)
        column[1].set_xlabel("pixels a side" if sweep == "resolution" else sweep)
    axes[0, 0].set_ylabel("time of a step / floor")
    axes[1, 0].set_ylabel("memory with the model / floor")
    axes[0, 0].legend(frameon=False)
    title = "A training step beside the frozen forward and backward alone (1.0); dotted: the goal, 10% more"
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curves(column: Any, at: list[int], rows: list[dict[str, Any]]) -> None:
    for side, label in LABELS.items():
        if rows and all(f"x {side}" in record for record in rows):
            style: dict[str, Any] = {"label": label, "color": COLOURS[side], "marker": MARKERS[side]}
            column[0].plot(at, [record[f"x {side}"] for record in rows], **style)
            column[1].plot(at, [_whole(record, side) for record in rows], **style)
    for axis in column:
        axis.axhline(1.0, color="0.4", linewidth=1)
        axis.axhline(GOAL, color="0.4", linewidth=1, linestyle=":")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
