"""Show what an adapter file holds (base model, ranks, layers, energy, trigger words), or how a run went by its log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..anatomy import overlap_lines
from ..cover import cover_size
from ..errors import InputError, clear_line
from ..fileformat import Adapter, read_adapter, tensor_hash
from ..jsontext import finite, read_json
from ..keys import is_text
from ..metadata import architecture_of, base_model, rank_summary, trigger_words
from ..plots import short_name
from ..plots_run import plot_run
from ..plots_spectrum import plot_adapters
from ..runrecord import read_log
from ..spectral import effective_rank, energy
from .parser import Arguments, OneLineParser
from .run_report import run_report, run_table
from .saving import check_picture

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

_LOG = ".jsonl"
_LONGEST = 300  # letters of one fact: the metadata of a file can hold anything

USAGE = "FILE [FILE ...] [options]"
EXAMPLES = """\
examples:
  python -m trilora_core inspect style.safetensors
  python -m trilora_core inspect style.safetensors --layers
  python -m trilora_core inspect style.safetensors --json
  python -m trilora_core inspect style.safetensors --plot spectrum.png
  python -m trilora_core inspect style.safetensors subject.safetensors --plot both.png
  python -m trilora_core inspect style.log.jsonl --plot run.png"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="adapters (.safetensors), ours or any plain LoRA, of several also how far they overlap; or the log of a"
        " run (.log.jsonl)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON, singular values and metadata too"
    )
    parser.add_argument("--layers", action="store_true", help="list every layer, not only sums over blocks")
    parser.add_argument(
        "--plot",
        metavar="OUT.png",
        type=Path,
        help="also draw the singular values by layer, the energy curve, effective ranks and where the adapter acts; of"
        " up to six files a comparison with their overlap; of a log its curves: loss, validation, drift,"
        " singular values",
    )


def run(arguments: Arguments) -> int:
    """Print the report and draw the picture that was asked for."""
    paths = [Path(file) for file in arguments.files]
    if any(path.suffix == _LOG for path in paths):
        return _run_of_log(paths, arguments)
    output = check_picture(arguments.plot) if arguments.plot else None
    adapters = [read_adapter(path) for path in paths]
    names = [path.stem for path in paths]
    shared = overlap_lines(adapters, names)
    if arguments.json:
        told = [report(path, adapter) for path, adapter in zip(paths, adapters, strict=True)]
        print(json.dumps(told[0] if len(told) == 1 else {"files": told, "overlap": shared}, indent=2))
    else:
        tables = [table(p, a, every_layer=arguments.layers) for p, a in zip(paths, adapters, strict=True)]
        print("\n\n".join([*tables, *(["\n".join(shared)] if shared else [])]))
    if output:
        plot_adapters(adapters, names, output)
        if not arguments.json:
            print(f"\npicture: {output.resolve()}")
    return 0


def _run_of_log(paths: list[Path], arguments: Arguments) -> int:
    path, *others = paths
    if others:
        raise InputError("logs of runs are read one at a time; give one .log.jsonl, or adapters only")
    if arguments.layers:
        raise InputError("--layers is for adapters; leave it out for a log, whose --json has every layer")
    record = read_log(path)
    print(json.dumps(run_report(record), indent=2) if arguments.json else run_table(record))
    if arguments.plot:
        name = path.name.removesuffix(_LOG).removesuffix(".log")
        plot_run(record, check_picture(arguments.plot), title=f"Training of {name}")
        if not arguments.json:
            print(f"\ncurves: {arguments.plot.resolve()}")
    return 0


def report(path: Path, adapter: Adapter) -> dict[str, Any]:
    """Everything about an adapter as plain data that JSON can hold."""
    ranks = rank_summary(adapter)
    layers = {stem: _layer(adapter, stem) for stem in adapter.layers}
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "architecture": architecture_of(adapter),
        "base_model": base_model(adapter),
        "trigger_words": list(trigger_words(adapter)),
        "layer_count": ranks.layers,
        "rank": {"least": ranks.least, "most": ranks.most, "effective_mean": ranks.effective},
        "energy": sum(layer["energy"] for layer in layers.values()),
        "training": training_options(adapter),
        "layers": layers,
        "sha256": tensor_hash(path),
        "metadata": dict(sorted(adapter.metadata.items())),
    }


def training_options(adapter: Adapter) -> dict[str, Any]:
    """The options of the run that made the file, as they were given; {} when it does not say."""
    options: dict[str, Any] = finite(json_entry(adapter, "trilora.config"))
    return options


def json_entry(adapter: Adapter, key: str) -> dict[str, Any]:
    """One of the metadata's entries that hold JSON; {} when it is not there. InputError when it is no JSON."""
    try:
        entry = read_json(adapter.metadata.get(key, "{}"))
    except ValueError as error:
        what = "training options" if key == "trilora.config" else key
        raise InputError(f"the {what} in the metadata are not JSON ({error}); save the file again") from error
    return entry if isinstance(entry, dict) else {}


def table(path: Path, adapter: Adapter, *, every_layer: bool = False) -> str:
    """The report for a person: facts first, then the blocks (or every layer)."""
    facts = _facts(path, adapter)
    width = max(len(name) for name, _ in facts)
    head = "\n".join(f"{name:<{width}}  {clear_line(value, _LONGEST)}" for name, value in facts)
    groups = {stem: [stem] for stem in adapter.layers} if every_layer else _blocks(adapter)
    return f"{head}\n\n{_rows(adapter, groups)}"


def _facts(path: Path, adapter: Adapter) -> list[tuple[str, str]]:
    words = ", ".join(trigger_words(adapter))
    total = sum(float(energy(layer.svd.s)) for layer in adapter.layers.values())
    facts = [
        ("file", f"{path} ({path.stat().st_size / 1e6:.2f} MB)"),
        ("made for", architecture_of(adapter) or "unknown"),
        ("base model", base_model(adapter) or "unknown"),
        ("size", str(rank_summary(adapter))),
        ("energy", f"{total:.4g} (sum of the squared singular values)"),
        ("trigger words", words or "none named"),
    ]
    return [*facts, *_history(adapter), ("hash", _hash(path, adapter))]


def _hash(path: Path, adapter: Adapter) -> str:
    """Of the tensors, by which tools recognise a file whose metadata changed; and whether the file says the same."""
    found, said = tensor_hash(path), adapter.metadata.get("sshs_model_hash", "")
    return found if said in ("", found) else f"{found} (its metadata says {said}: the tensors were changed since)"


def _history(adapter: Adapter) -> list[tuple[str, str]]:
    """How it was trained or merged, in a few lines."""
    told = adapter.metadata
    options = training_options(adapter)
    lines: list[tuple[str, str]] = []
    if told.get("ss_num_train_images"):
        size = told.get("ss_resolution", "")
        lines.append(("trained on", f"{told['ss_num_train_images']} pictures{f' at {size}' if size else ''}"))
    if told.get("ss_steps"):
        early = _early(told)
        batch = told.get("ss_total_batch_size", "1")
        lines.append(("steps", f"{told['ss_steps']}{early}, batch {batch}, seed {told.get('ss_seed', '?')}"))
    if told.get("ss_learning_rate"):
        schedule = f"{told.get('ss_lr_scheduler', '')} {told.get('ss_optimizer', '')}".strip()
        lines.append(("learning rate", f"{told['ss_learning_rate']}{_text_rate(adapter)} ({schedule})"))
    if isinstance(method := options.get("adapter"), dict):
        lines.append(("method", f"{method.get('method')}, init {method.get('init')}"))
    if told.get("modelspec.merged_from"):
        lines.append(("merged from", told["modelspec.merged_from"]))
    if done := json_entry(adapter, "trilora.extract"):
        lines.append(("extracted", f"{done.get('tuned')} less {done.get('base')}, error {done.get('relative_error')}"))
    if done := json_entry(adapter, "trilora.resize"):
        kept = done.get("kept_energy")
        share = f"{kept:.2%}" if isinstance(kept, float) else "an unknown share"
        lines.append(("resized", f"{share} of the energy kept"))
    if cover := cover_size(told):
        lines.append(("cover", f"{cover[0]} x {cover[1]} pixels"))
    return lines


def _text_rate(adapter: Adapter) -> str:
    """The learning rate of text encoders, where the file has layers of them and says it."""
    rate = adapter.metadata.get("ss_text_encoder_lr", "None")
    trained = any(is_text(stem) for stem in adapter.layers)
    return f", {rate} of the text encoder" if trained and rate not in ("None", "0.0") else ""


def _early(told: Mapping[str, str]) -> str:
    """Why there are fewer steps than planned; "" where all were done."""
    planned = f" of {told.get('ss_max_train_steps', told['ss_steps'])}"
    if told.get("trilora.finished", "true") == "true":
        return f"{planned} (validation was no better)" if told.get("trilora.ended") == "validation" else ""
    kept = {"best": "the best by validation", "step": "kept on the way"}
    return f"{planned} ({kept.get(told.get('trilora.kept', ''), 'stopped early')})"


def _blocks(adapter: Adapter) -> dict[str, list[str]]:
    """Layers by the first two words of their short names: "down 0", "mid", "text 11"."""
    groups: dict[str, list[str]] = {}
    for stem in adapter.layers:
        words = short_name(stem).replace(".", " ").split()
        number = words[1] if len(words) > 1 and words[1].isdigit() else ""
        groups.setdefault(f"{words[0]} {number}".strip(), []).append(stem)
    return groups


def _rows(adapter: Adapter, groups: dict[str, list[str]]) -> str:
    """One line a group: layers, ranks, share of all energy, effective rank, largest singular value."""
    whole = sum(float(energy(layer.svd.s)) for layer in adapter.layers.values())
    names = {group: clear_line(short_name(group), _LONGEST) for group in groups}
    width = max(5, *(len(name) for name in names.values()))
    lines = [f"{'block':<{width}}  layers   rank  energy  effective rank  largest"]
    for group, stems in groups.items():
        spectra = [adapter.layers[stem].svd.s for stem in stems]
        ranks = sorted({len(s) for s in spectra})
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        share = sum(float(energy(s)) for s in spectra) / whole if whole else 0.0
        effective = sum(float(effective_rank(s)) for s in spectra) / len(spectra)
        largest = max(float(s.max()) for s in spectra)
        lines.append(
            f"{names[group]:<{width}}  {len(stems):>6}  {rank:>5}  {share:>6.1%}  {effective:>14.1f}  {largest:>7.3g}"
        )
    return "\n".join(lines)


def _layer(adapter: Adapter, stem: str) -> dict[str, Any]:
    layer = adapter.layers[stem]
    return {
        "shape": [layer.svd.u.shape[0], layer.svd.vh.shape[1]],
        "kernel": list(layer.kernel),
        "rank": len(layer.svd.s),
        "effective_rank": float(effective_rank(layer.svd.s)),
        "energy": float(energy(layer.svd.s)),
        "singular_values": [float(value) for value in layer.svd.s],
    }
