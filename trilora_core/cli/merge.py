"""Add several adapters into one: the exact weighted sum of their changes, cut to a rank if you want a smaller file."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..fileformat import read_adapter, write_adapter
from ..merge import METHODS, MergeReport, merge
from ..metadata import rank_summary
from .parser import Arguments, OneLineParser, whole
from .saving import DTYPES, check_output

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "FILE FILE ... --output OUT.safetensors [options]"
EXAMPLES = """\
examples:
  python -m trilora_core merge subject.safetensors style.safetensors --weights 0.7 0.5 --output both.safetensors
  python -m trilora_core merge a.safetensors b.safetensors c.safetensors --rank 16 --output abc.safetensors"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="adapters to merge, for the same kind of model")
    parser.add_argument(
        "--weights", metavar="W", nargs="+", type=float, help="one number for each file, negative ones too (default: 1)"
    )
    parser.add_argument("--method", choices=tuple(METHODS), default="sum", help="sum: Σ weight · ΔW (default)")
    parser.add_argument(
        "--rank", type=whole, default=0, help="keep this many singular values in each layer; 0 keeps all (default)"
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp16", help="number format of the file (default: fp16)"
    )
    parser.add_argument("--output", metavar="OUT.safetensors", type=Path, required=True, help="the file to write")


def run(arguments: Arguments) -> int:
    """Merge, write, report."""
    output = check_output(arguments.output)
    weights = arguments.weights if arguments.weights is not None else [1.0] * len(arguments.files)
    if len(weights) != len(arguments.files):
        raise InputError(f"{len(arguments.files)} files and {len(weights)} weights; give one weight for each file")
    adapters = [read_adapter(path) for path in arguments.files]
    merged, report = merge(adapters, weights, method=arguments.method, rank=arguments.rank)
    write_adapter(output, merged, dtype=DTYPES[arguments.dtype])
    print("\n".join(_lines(arguments, weights, report, str(rank_summary(merged)))))
    print(f"adapter: {output.resolve()}")
    return 0


def _lines(arguments: Arguments, weights: list[float], report: MergeReport, size: str) -> list[str]:
    """What was merged, how much layers overlap in name, and how much energy the rank kept."""
    lines = [f"{weight:>6g} x {path}" for weight, path in zip(weights, arguments.files, strict=True)]
    lines.append(f"{size}; {report.shared} layers are in more than one file, {report.single} in one only")
    if arguments.rank:
        lines.append(f"kept {report.kept_energy:.2%} of the energy at rank {arguments.rank}")
        worst = sorted(report.layer_energy.items(), key=lambda item: item[1])[:3]
        lines += [f"  {kept:.2%} in {stem}" for stem, kept in worst if kept < report.kept_energy]
    return lines
