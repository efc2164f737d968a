"""Make an adapter of a fine-tuned model and the model that it was tuned from, one layer in memory at a time."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from ..config import LAYERS, LayerConfig
from ..extract import ExtractConfig, extract
from ..fileformat import write_adapter
from ..weights import open_weights
from .base import choose_device
from .parser import Arguments, OneLineParser, whole
from .saving import DTYPES, check_output

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "TUNED BASE --rank R --output OUT.safetensors [options]"
EXAMPLES = """\
examples:
  python -m trilora_core extract tuned.safetensors sd15.safetensors --rank 32 --output tuned_lora.safetensors
  python -m trilora_core extract tuned/ base/ --rank 64 --energy 0.9 --layers attention+ff --output lora.safetensors"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    known = "a single .safetensors checkpoint (SD 1.5, SDXL, SD3, Flux) or a diffusers folder (not of Flux)"
    parser.add_argument("tuned", metavar="TUNED", help=f"the fine-tuned model: {known}; fp16, bf16 or fp32")
    parser.add_argument("base", metavar="BASE", help="the model that it was tuned from, in either form")
    parser.add_argument("--rank", type=whole, default=32, help="directions of each layer at most (default: 32)")
    parser.add_argument(
        "--energy",
        type=float,
        default=1.0,
        help="as few directions as hold this share (0 to 1) of a layer's difference, the rank at most"
        " (default: 1, always the rank)",
    )
    parser.add_argument("--layers", choices=LAYERS, default=LAYERS[0], help=f"kinds of layers (default: {LAYERS[0]})")
    parser.add_argument("--layers-include", metavar="PATTERN", nargs="+", default=[], help="only layers of such names")
    parser.add_argument("--layers-exclude", metavar="PATTERN", nargs="+", default=[], help="no layers of such names")
    parser.add_argument("--no-text-encoder", action="store_true", help="leave the text encoders out")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one; default), cpu, cuda or cuda:1")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp16", help="number format of the file (default: fp16)"
    )
    parser.add_argument("--output", metavar="OUT.safetensors", type=Path, required=True, help="the file to write")


def run(arguments: Arguments) -> int:
    """Extract, write, report."""
    output = check_output(arguments.output)
    layers = LayerConfig(arguments.layers, tuple(arguments.layers_include), tuple(arguments.layers_exclude))
    config = ExtractConfig(arguments.rank, arguments.energy, layers, not arguments.no_text_encoder)
    device = choose_device(arguments.device)
    with (
        open_weights(arguments.tuned) as tuned,
        open_weights(arguments.base) as base,
        tqdm(unit="layer", disable=not sys.stderr.isatty()) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        adapter, report = extract(tuned, base, config, device=device, progress=progress)
    write_adapter(output, adapter, dtype=DTYPES[arguments.dtype])
    print(report.text())
    print(f"adapter: {output.resolve()} ({output.stat().st_size / 1e6:.2f} MB)")
    return 0
