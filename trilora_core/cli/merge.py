"""Merge adapters into one: their exact weighted sum, or a method that settles where they get in each other's way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..calibration import Calibration, calibration_path, read_calibration
from ..errors import InputError
from ..fileformat import read_adapter, write_adapter
from ..merge import METHODS, MergeOptions, MergeReport, merge
from ..metadata import rank_summary
from .base import choose_device
from .parser import Arguments, OneLineParser, whole
from .saving import DTYPES, check_output, check_report

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

_METHODS = "\n".join(f"  {name:<12}{method.when}" for name, method in METHODS.items())
_WORST = 3  # layers that are named

USAGE = "FILE FILE ... --output OUT.safetensors [options]"
EXAMPLES = f"""\
methods:
{_METHODS}

examples:
  python -m trilora_core merge subject.safetensors style.safetensors --weights 0.7 0.5 --output both.safetensors
  python -m trilora_core merge a.safetensors b.safetensors c.safetensors --rank 16 --output abc.safetensors
  python -m trilora_core merge a.safetensors b.safetensors --method knots --keep-energy 0.95 --output ab.safetensors"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    default = MergeOptions()
    parser.add_argument("files", metavar="FILE", nargs="+", help="adapters to merge, for the same kind of model")
    parser.add_argument(
        "--weights",
        metavar="W",
        nargs="+",
        type=float,
        help="strength of each file: 1 as it is, 0 leaves it out, negative takes it away (default: 1)",
    )
    parser.add_argument("--method", choices=tuple(METHODS), default="sum", help="see below (default: sum)")
    parser.add_argument(
        "--rank",
        type=whole,
        default=default.rank,
        help="keep this many singular values in each layer; 0 keeps all that the method gives, for ties and dare as"
        " many as all files have together (default)",
    )
    parser.add_argument(
        "--keep-energy",
        metavar="SHARE",
        type=float,
        default=default.keep_energy,
        help="cut each layer to the lowest rank that holds this share of its energy (default: 1)",
    )
    parser.add_argument("--output", metavar="OUT.safetensors", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp16", help="number format of the file (default: fp16)"
    )
    parser.add_argument("--report", metavar="OUT.json", type=Path, help="also write the report on every layer")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one; default), cpu, cuda or cuda:1")
    _add_method_options(parser, default)


def _add_method_options(parser: OneLineParser, default: MergeOptions) -> None:
    group = parser.add_argument_group("options of single methods")
    group.add_argument(
        "--density",
        type=float,
        help=f"ties, dare, dare_ties, knots: share of entries that each file keeps; tsv: of directions"
        f" (default: {default.density:g})",
    )
    group.add_argument("--seed", type=whole, help="dare, dare_ties: what is dropped (default: 0)")
    group.add_argument(
        "--calibrations",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="regmean: one for each file (default: NAME.calibration.safetensors beside it)",
    )
    group.add_argument(
        "--prior-weight",
        metavar="W",
        type=float,
        help="regmean: weight of the base model's own inputs, on which nothing should change"
        f" (default: {default.prior_weight:g})",
    )


def run(arguments: Arguments) -> int:
    """Merge, write, report."""
    output = check_output(arguments.output)
    report_file = check_report(arguments.report) if arguments.report else None
    weights = arguments.weights if arguments.weights is not None else [1.0] * len(arguments.files)
    if len(weights) != len(arguments.files):
        raise InputError(f"{len(arguments.files)} files and {len(weights)} weights; give one weight for each file")
    options = MergeOptions(arguments.rank, arguments.keep_energy, **_method_options(arguments))
    merged, report = merge(
        [read_adapter(path) for path in arguments.files],
        weights,
        method=arguments.method,
        options=options,
        calibrations=_calibrations(arguments),
        device=choose_device(arguments.device),
    )
    write_adapter(output, merged, dtype=DTYPES[arguments.dtype])
    print("\n".join(_lines(arguments.files, weights, report, str(rank_summary(merged)))))
    if report_file is not None:
        write_text(report_file, json.dumps(report.data(), indent=2))
        print(f"report: {report_file.resolve()}")
    print(f"adapter: {output.resolve()}")
    return 0


_USED_BY = {
    "density": ("ties", "dare", "dare_ties", "knots", "tsv"),
    "seed": ("dare", "dare_ties"),
    "prior_weight": ("regmean",),
}


def _method_options(arguments: Arguments) -> dict[str, Any]:
    """The options of single methods that were given; InputError for one that this method does not use."""
    given = {name: getattr(arguments, name) for name in _USED_BY if getattr(arguments, name) is not None}
    for name in given:
        if arguments.method not in _USED_BY[name]:
            flag, *others, last = f"--{name.replace('_', '-')}", *_USED_BY[name]
            known = f"{', '.join(others)} or {last}" if others else last
            raise InputError(f"{flag} does nothing with --method {arguments.method}; leave it out, or take {known}")
    return given


def _calibrations(arguments: Arguments) -> list[Calibration]:
    """Those that were named, or for regmean those that lie beside the files."""
    paths: Sequence[Path] = arguments.calibrations or ()
    if arguments.method == "regmean" and not paths:
        paths = [calibration_path(Path(file)) for file in arguments.files]
        absent = [str(path) for path in paths if not path.is_file()]
        if absent:
            raise InputError(
                f"regmean needs a calibration of each file, and {absent[0]} is not there; name them with"
                " --calibrations, or make them with train --calibrate"
            )
    return [read_calibration(path) for path in paths]


def _lines(files: Sequence[str], weights: Sequence[float], report: MergeReport, size: str) -> list[str]:
    """What was merged and how; the layers that lost most, where a cut lost anything."""
    lines = [f"{weight:>6g} x {path}" for weight, path in zip(weights, files, strict=True)]
    lines += [*report.lines(), size]
    worst = sorted(report.layer_energy.items(), key=lambda item: item[1])[:_WORST]
    lines += [f"  {kept:.2%} kept in {stem}" for stem, kept in worst if kept < report.kept_energy]
    return [*lines, *(f"note: {remark}" for remark in report.remarks())]
