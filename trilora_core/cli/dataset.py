"""Show what a folder of pictures and captions holds, and what the trainer will really see of it. Needs no model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from ..atomic import write_atomic
from ..config_data import DataConfig
from ..data.report import report
from ..data.sheet import contact_sheet
from ..errors import InputError
from ..home import expanded
from .data_options import add_cache_options, add_data_options, read_cache, read_data
from .options import add_config, read_given
from .parser import Arguments, OneLineParser
from .pictures import survey
from .saving import check_picture
from .store import open_store

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "--data DIR [options]"
EXAMPLES = """\
examples:
  python -m trilora_core dataset --data PICTURES
  python -m trilora_core dataset --data PICTURES --resolution 1024 --mask-alpha --sheet pictures.png
  python -m trilora_core dataset --config run.toml --json"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    add_config(parser)
    group = parser.add_argument_group("report")
    group.add_argument(
        "--sheet", metavar="OUT.png", type=Path, help="also draw the pictures as they are cut, with masks and captions"
    )
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    add_data_options(parser, str(DataConfig().resolution))
    add_cache_options(parser, limited=False)


def run(arguments: Arguments) -> int:
    """Read the folder, print the report, draw the sheet that was asked for."""
    given = read_given(arguments)
    # it uses no entry, so that to make room would delete those of every run: a report never does
    data, cache = read_data(given), replace(read_cache(given), limit=sys.maxsize)
    sheet = _check_sheet(arguments.sheet, data) if arguments.sheet else None
    with open_store(cache) as store:
        # every picture that cannot be used is named, where a run stops at the first
        dataset = survey(data, store, silent=arguments.json)
        found = report(dataset)
        print(json.dumps(found.values(), indent=2) if arguments.json else found.text())
        if sheet is not None:
            picture = contact_sheet(dataset)
            write_atomic(sheet, lambda path: picture.save(path, format="PNG"))
    if dataset.skipped and not (data.skip_unreadable or arguments.json):
        print("\nThe verb train stops at the first picture that cannot be used, unless it is told --skip-unreadable.")
    if sheet is not None and not arguments.json:
        print(f"\ncontact sheet: {sheet.resolve()}")
    return 0


def _check_sheet(path: Path, data: DataConfig) -> Path:
    """The path of the sheet; raises InputError where it would replace a picture or a mask, or be read as one."""
    check_picture(path)
    for folder in filter(None, (data.folder, data.masks.folder)):
        if path.resolve().is_relative_to(expanded(folder).resolve()):
            raise InputError(f"{path} lies in {folder}, among what is trained on; write the sheet to another folder")
    return path
