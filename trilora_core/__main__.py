"""`python -m trilora_core VERB …`: dispatch, exit codes, and one line for every error of input."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from .cli import VERBS
from .cli.parser import OneLineParser
from .errors import InputError

__all__ = ["main"]

_EXAMPLE = """\
a first run:
  python -m trilora_core train --model MODEL --data PICTURES --output style.safetensors --trigger-word "my style"
  python -m trilora_core apply --model MODEL --adapter style.safetensors --prompt "a cat, my style" --output cat.png

MODEL is a diffusers folder or a single .safetensors file,
PICTURES a folder of pictures with a .txt caption beside each.
`python -m trilora_core VERB --help` lists the options of a verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when done, 2 on bad input with one line on standard error, 130 when interrupted.

    141, without a word, when who reads the output has had enough (`| head -1`), as other programs in a pipe.
    """
    _write_all_letters()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a closed pipe shows here, where it can be caught
        return code
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # what waits to be written goes nowhere, else the interpreter complains of it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _write_all_letters() -> None:
    """Spell out letters that a stream has no bytes for, such as Σ in an old code page of Windows."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    verb = argv[0]
    if verb not in VERBS:
        raise InputError(f"there is no verb {verb!r}; known: {', '.join(VERBS)}")
    module = importlib.import_module(f".cli.{verb}", __package__)
    parser = OneLineParser(f"python -m trilora_core {verb}", module.USAGE, module.__doc__, module.EXAMPLES)
    module.add_arguments(parser)
    if {"-h", "--help"} & set(argv[1:]):
        parser.print_help()
        return 0
    code: int = module.run(parser.parse_args(argv[1:]))
    return code


def _overview() -> str:
    verbs = "\n".join(f"  {name:9}{summary}" for name, summary in VERBS.items())
    return f"usage: python -m trilora_core VERB [options]\n\nverbs:\n{verbs}\n\n{_EXAMPLE}"


if __name__ == "__main__":
    sys.exit(main())
