"""Cut an adapter to a smaller rank: the strongest directions of each layer stay, exactly."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..fileformat import read_adapter, write_adapter
from ..resize import resize
from .parser import Arguments, OneLineParser, whole
from .saving import DTYPES, check_output

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "FILE (--rank R | --energy E) --output OUT.safetensors [options]"
EXAMPLES = """\
examples:
  python -m trilora_core resize style.safetensors --rank 8 --output style_r8.safetensors
  python -m trilora_core resize style.safetensors --energy 0.95 --output style_e95.safetensors
  python -m trilora_core resize style.safetensors --energy 0.95 --rank 16 --output style_small.safetensors"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="adapter (.safetensors): ours, or any plain LoRA")
    parser.add_argument("--rank", type=whole, help="keep at most this many singular values in each layer")
    parser.add_argument(
        "--energy",
        type=float,
        help="keep in each layer the fewest singular values that hold this share (0 to 1) of its energy, the sum of"
        " their squares; with --rank, at most that many",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp16", help="number format of the file (default: fp16)"
    )
    parser.add_argument("--output", metavar="OUT.safetensors", type=Path, required=True, help="the file to write")


def run(arguments: Arguments) -> int:
    """Cut, write, report."""
    output = check_output(arguments.output)
    if arguments.rank is None and arguments.energy is None:
        raise InputError("nothing says how small; give --rank 8, or --energy 0.95, or both")
    if arguments.rank is not None and arguments.rank < 1:
        raise InputError(f"rank is {arguments.rank}; wanted a whole number from 1 up")
    adapter = read_adapter(arguments.file)
    energy = 1.0 if arguments.energy is None else arguments.energy
    small, report = resize(adapter, rank=arguments.rank or 0, energy=energy)
    write_adapter(output, small, dtype=DTYPES[arguments.dtype])
    print(report.text())
    print(f"adapter: {output.resolve()} ({output.stat().st_size / 1e6:.2f} MB)")
    return 0
