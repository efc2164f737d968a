"""Argument parsing shared by all verbs: errors as InputError, options that know their place in a config."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ..errors import InputError

__all__ = ["Arguments", "OneLineParser", "add_device", "rank", "whole"]

Arguments = argparse.Namespace


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises InputError in place of printing its usage and leaving the process."""

    def __init__(self, prog: str, usage: str, description: str | None, epilog: str | None) -> None:
        super().__init__(
            prog,
            f"%(prog)s {usage}",
            description=description,
            epilog=epilog,
            formatter_class=_layout,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's message and where help is."""
        raise InputError(f"{message}; `{self.prog} --help` lists the options")


def rank(text: str) -> int | str:
    """The rank as the config wants it: a whole number where the text is one, else the text ("energy:0.9")."""
    try:
        return int(text)
    except ValueError:
        return text


def whole(text: str) -> int:
    """A whole number, with a message that a person understands."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error


def add_device(parser: OneLineParser) -> None:
    """The options that say where the base model runs."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one; default), cpu, cuda or cuda:1")
    group.add_argument(
        "--base-dtype",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="number format of the base model's weights (default: auto, fp32 on the CPU and fp16 on a GPU)",
    )
