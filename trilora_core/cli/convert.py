"""Write an adapter in another spelling, for programs that read only one of them; no number changes."""

from __future__ import annotations

from pathlib import Path

from ..convert import SPELLINGS, respell
from ..fileformat import read_adapter, stored_dtype, write_adapter
from ..metadata import rank_summary
from .parser import Arguments, OneLineParser
from .saving import DTYPES, check_output

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "FILE --to kohya|peft --output OUT.safetensors [options]"
EXAMPLES = """\
examples:
  python -m trilora_core convert style.safetensors --to peft --output style_peft.safetensors
  python -m trilora_core convert from_diffusers.safetensors --to kohya --output style.safetensors"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="adapter (.safetensors): ours, or any plain LoRA")
    parser.add_argument(
        "--to",
        choices=SPELLINGS,
        required=True,
        help="kohya: lora_unet_… with lora_down, lora_up and alpha (ComfyUI, AUTOMATIC1111, kohya; diffusers too);"
        " peft: the modules of diffusers with lora_A and lora_B (PEFT; ComfyUI and diffusers too). Where layers differ"
        " in rank, older versions of diffusers scale files without alpha wrongly: give them kohya's",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="number format of the file (default: that of FILE, so that no bit changes)",
    )
    parser.add_argument("--output", metavar="OUT.safetensors", type=Path, required=True, help="the file to write")


def run(arguments: Arguments) -> int:
    """Read, rename, write."""
    output = check_output(arguments.output)
    adapter = respell(read_adapter(arguments.file), arguments.to)
    dtype = DTYPES[arguments.dtype] if arguments.dtype else stored_dtype(arguments.file)
    write_adapter(output, adapter, dtype=dtype)
    print(f"{rank_summary(adapter)}, such as {next(iter(adapter.layers))}")
    print(f"adapter: {output.resolve()}")
    return 0
