"""Judge pictures: FID, KID, CLIP score, diversity, drift and artefacts, of folders or of adapters that are drawn with
first; as a table, JSON and an HTML report. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..atomic import check_spelling
from ..errors import InputError
from ..evaluate_figures import Judges, Look, check_sets, judge, look
from ..evaluate_report import Report, table, write_report
from ..evaluate_sets import PictureSet, common_size, names_of, read_set
from .base import choose_device, load_base
from .evaluate_draw import Drawing, draw_sets, methods_of
from .evaluate_nets import load_judges
from .parser import Arguments, OneLineParser, add_device, whole
from .pictures import reported
from .saving import check_file

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = (
    "--real DIR --generated DIR [DIR …] | --model PATH --adapter FILE [FILE …] --data DIR, --output REPORT [options]"
)
EXAMPLES = """\
examples:
  python -m trilora_core evaluate --real PICTURES --generated WITH_LORA WITH_TRILORA --reference WITH_BASE \\
      --inception pt_inception-2015-12-05-6726825d.pth --clip clip-vit-base-patch32 --output report.html
  python -m trilora_core evaluate --model MODEL --adapter lora.safetensors trilora.safetensors --data PICTURES \\
      --inception pt_inception-2015-12-05-6726825d.pth --clip clip-vit-base-patch32 --output report.html
  python -m trilora_core evaluate --model MODEL --adapter style.safetensors --strength 0.5 1 1.5 \\
      --data PICTURES --per-caption 4 --output strengths.html"""

_PAPER = Drawing()


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    folders = parser.add_argument_group("pictures in folders")
    folders.add_argument("--real", metavar="DIR", help="the real pictures, with their captions")
    folders.add_argument("--generated", metavar="DIR", nargs="+", default=[], help="pictures of one adapter in each")
    folders.add_argument("--reference", metavar="DIR", help="pictures of the base model, for the normalised FID")
    drawn = parser.add_argument_group("or pictures that are drawn first, for the captions of a set")
    drawn.add_argument("--model", metavar="PATH", help="base model: a diffusers folder or one .safetensors")
    drawn.add_argument("--adapter", metavar="FILE", nargs="+", default=[], help="adapters to compare with the base")
    drawn.add_argument("--data", metavar="DIR", help="the real pictures, with their captions")
    drawn.add_argument("--strength", metavar="X", nargs="+", type=float, help="strengths of the adapters (default: 1)")
    drawn.add_argument(
        "--pictures", metavar="DIR", type=Path, help="where to keep what is drawn (default: beside REPORT)"
    )
    drawn.add_argument("--per-caption", type=whole, metavar="N", help="pictures of each caption (default: 1)")
    drawn.add_argument(
        "--captions", type=whole, metavar="N", help="take only N captions, spread over the set (default: all)"
    )
    drawn.add_argument(
        "--seed", type=whole, metavar="N", help="of the noise of every picture (default: 30, the paper's)"
    )
    drawn.add_argument("--steps", type=whole, metavar="N", help="sampling steps (default: 20, the paper's)")
    drawn.add_argument(
        "--guidance", type=float, metavar="X", help="how closely to follow captions (default: 7.5, the paper's)"
    )
    nets = parser.add_argument_group("networks, from your disk")
    nets.add_argument("--inception", metavar="FILE", type=Path, help="FID's Inception weights, for FID, NFID and KID")
    nets.add_argument("--clip", metavar="DIR", type=Path, help="folder of a CLIP model of transformers, for CLIP score")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--output", metavar="REPORT", type=Path, required=True, help="REPORT.html and REPORT.json are written"
    )
    report.add_argument(
        "--resolution",
        type=whole,
        default=0,
        metavar="N",
        help="pixels, square: pictures are drawn in it and brought to it (default: the model's own; of folders, the"
        " size that all generated pictures have)",
    )
    add_device(parser)


def run(arguments: Arguments) -> int:
    """Draw what is missing, look at every picture, judge, write."""
    _check(arguments)
    stem = _stem(arguments.output)
    device = choose_device(arguments.device)
    judges = load_judges(arguments.inception, arguments.clip, device)
    real, sets, reference, settings = (_drawn if arguments.model else _folders)(arguments, stem, judges)
    size = common_size(sets, arguments.resolution)
    looks = [_look(one, size, judges) for one in (real, *sets)]
    base = next((one for one in looks[1:] if one.pictures is reference), None)
    lines, notes = judge(looks[0], looks[1:], base)
    report = Report(tuple(lines), tuple(notes), settings | {"size": f"{size[0]}x{size[1]}"}, tuple(looks), size)
    page, data = write_report(report, stem)
    print(table(report))
    for note in notes:
        print(f"note: {note}")
    print(f"report: {page.resolve()}\nfigures: {data.resolve()}")
    return 0


_Sets = tuple[PictureSet, list[PictureSet], PictureSet | None, dict[str, Any]]


def _folders(arguments: Arguments, stem: Path, judges: Judges) -> _Sets:
    """The sets of the form with folders; pictures without a caption have that of the real one of their name."""
    given = [*([arguments.reference] if arguments.reference else []), *arguments.generated]
    real = read_set(arguments.real, "real pictures")
    sets = [
        read_set(folder, name).captioned(real.captions()) for folder, name in zip(given, names_of(given), strict=True)
    ]
    check_sets(real, sets)
    for one in (real, *sets) if judges.clip else ():
        one.check_captions("the CLIP score")
    settings = {"real": arguments.real}
    return real, sets, sets[0] if arguments.reference else None, settings


def _drawn(arguments: Arguments, stem: Path, judges: Judges) -> _Sets:
    """The sets of the form with a model; the base is the reference."""
    drawing = _drawing(arguments)
    for path in (arguments.model, *arguments.adapter, *([arguments.pictures] if arguments.pictures else [])):
        check_spelling(Path(path))  # the report names it
    real = read_set(arguments.data, "real pictures")
    real.check_captions("drawing")
    chosen = _spread(real, arguments.captions)
    methods = methods_of(arguments.adapter, arguments.strength or [1.0])
    pipe = load_base(arguments.model, choose_device(arguments.device), arguments.base_dtype)
    folder = arguments.pictures or stem.with_name(f"{stem.name}_pictures")
    sets = draw_sets(pipe, methods, chosen, drawing, folder)
    del pipe
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    settings = {
        "model": Path(arguments.model).name,
        "real": arguments.data,
        "seed": drawing.seed,
        "steps": drawing.steps,
        "guidance": f"{drawing.guidance:g}",
        "pictures of each caption": drawing.each,
    }
    return real, sets, sets[0], settings


def _spread(real: PictureSet, count: int | None) -> PictureSet:
    """The set, or so many of its pictures in even distances."""
    pictures = real.pictures
    if count is None or count >= len(pictures):
        return real
    if count < 2:
        raise InputError(f"--captions is {count}; wanted at least 2, or leave it out for all {len(pictures)}")
    taken = tuple(pictures[index * len(pictures) // count] for index in range(count))
    return PictureSet(real.name, real.folder, taken)


def _drawing(arguments: Arguments) -> Drawing:
    given = {"seed": arguments.seed, "steps": arguments.steps, "guidance": arguments.guidance,
             "resolution": arguments.resolution or None, "each": arguments.per_caption}  # fmt: skip
    drawing = Drawing(
        *(getattr(_PAPER, one.name) if given[one.name] is None else given[one.name] for one in fields(Drawing))
    )
    if drawing.each < 1:
        raise InputError(f"--per-caption is {drawing.each}; wanted at least 1 picture of each caption")
    return drawing


def _look(pictures: PictureSet, size: tuple[int, int], judges: Judges) -> Look:
    with reported(f"looking at {pictures.name}", "picture", False, delay=1.0) as progress:
        return look(pictures, size, judges, progress)


_DRAWN_ONLY = ("adapter", "data", "strength", "pictures", "per_caption", "captions", "seed", "steps", "guidance")
_FOLDERS_ONLY = ("real", "generated", "reference")


def _check(arguments: Arguments) -> None:
    """Raise InputError unless exactly one of the two forms was given, whole."""
    needed: Sequence[str] = ("adapter", "data") if arguments.model else ("real", "generated")
    other = _FOLDERS_ONLY if arguments.model else _DRAWN_ONLY
    strange = [name for name in other if getattr(arguments, name) not in (None, [])]
    missing = [name for name in needed if not getattr(arguments, name)]
    if strange:
        form = "--model" if arguments.model else "--real and --generated"
        raise InputError(f"--{strange[0].replace('_', '-')} does not go with {form}; {_FORMS}")
    if missing:
        raise InputError(f"--{missing[0]} was not given; {_FORMS}")
    if arguments.resolution < 0 or 0 < arguments.resolution < 16:
        raise InputError(f"--resolution is {arguments.resolution}; wanted pixels, 16 or more, such as 512")


_FORMS = "give --real and --generated with folders, or --model, --adapter and --data to have the pictures drawn"


def _stem(output: Path) -> Path:
    """The path without .html or .json; raises InputError where a report cannot be written."""
    check_file(output, "report.html")
    stem = output.with_suffix("") if output.suffix.lower() in (".html", ".json") else output
    for ending in (".html", ".json"):
        check_file(stem.with_name(f"{stem.name}{ending}"), "report.html")
    return stem
