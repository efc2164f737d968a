"""Draw pictures with adapters: one, or a labelled grid of prompts, strengths and adapters from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..atomic import write_atomic
from ..backend_diffusers import DiffusersPreviewer, apply_adapter
from ..block_text import PRESETS
from ..fileformat import Adapter, read_adapter
from ..grid import COLUMNS, Cell, Plan, plan
from ..plots import picture_grid
from ..shaping import Shape, shape
from .adapter_files import check_fit, names_of_files
from .base import choose_device, load_base
from .parser import Arguments, OneLineParser, add_device, whole
from .saving import check_picture

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "draw", "run"]

USAGE = "--model PATH --adapter FILE --prompt TEXT --output OUT.png [options]"
EXAMPLES = """\
examples:
  python -m trilora_core apply --model MODEL --adapter style.safetensors \\
      --prompt "a cat, my style" --strength 0.8 --seed 7 --output cat.png
  python -m trilora_core apply --model MODEL --adapter style.safetensors \\
      --prompt "a cat, my style" "a house, my style" --strength 0 0.5 1 1.5 --output grid.png
  python -m trilora_core apply --model MODEL --adapter style_step_*.safetensors style.safetensors --columns adapters \\
      --prompt "a cat, my style" "a house, my style" --output by_step.png
  python -m trilora_core apply --model MODEL --adapter style.safetensors \\
      --prompt "a cat, my style" --keep-rank 4 --normalize --blocks "OUT:0.5, MID:0" --output less.png"""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    files = parser.add_argument_group("model and files")
    files.add_argument(
        "--model", metavar="PATH", required=True, help="base model: a diffusers folder or one .safetensors"
    )
    files.add_argument(
        "--adapter",
        metavar="FILE",
        nargs="+",
        required=True,
        help="adapter (.safetensors): ours, or any plain LoRA; several make a grid",
    )
    files.add_argument("--output", metavar="OUT.png", type=Path, required=True, help="the picture to write")
    drawing = parser.add_argument_group("drawing")
    drawing.add_argument("--prompt", metavar="TEXT", nargs="+", required=True, help="one prompt, or several for a grid")
    drawing.add_argument(
        "--strength",
        metavar="X",
        nargs="+",
        type=float,
        default=[1.0],
        help="0 is the base model, 1 the adapter as trained (default); several make a grid",
    )
    drawing.add_argument(
        "--columns",
        choices=COLUMNS,
        default=COLUMNS[0],
        help="what runs across in a grid (default: strengths); adapters and prompts show the base model once",
    )
    drawing.add_argument("--seed", type=whole, default=0, help="of the noise that a picture starts from (default: 0)")
    drawing.add_argument("--negative", metavar="TEXT", default="", help="what the picture should not show")
    drawing.add_argument("--steps", type=whole, default=20, help="sampling steps (default: 20)")
    drawing.add_argument("--guidance", type=float, default=7.5, help="how closely to follow the prompt (default: 7.5)")
    drawing.add_argument(
        "--resolution", type=whole, default=0, metavar="N", help="pixels, square (default: the model's own size)"
    )
    _add_shape(parser)
    add_device(parser)


def _add_shape(parser: OneLineParser) -> None:
    plain = Shape()
    group = parser.add_argument_group("what of the adapter comes through, in this order")
    group.add_argument(
        "--keep-rank",
        type=whole,
        default=plain.keep_rank,
        metavar="N",
        help="keep the N strongest directions of each layer; 0 keeps all (default)",
    )
    group.add_argument(
        "--keep-energy",
        type=float,
        default=plain.keep_energy,
        metavar="SHARE",
        help="keep as many of them as hold this share of the energy, above 0 to 1 (default: 1, all)",
    )
    group.add_argument(
        "--tone",
        type=float,
        default=plain.tone,
        metavar="X",
        help="power on the singular values, 0 to 10: 0 makes them equal, above 1 lets the strong ones stand out; the"
        " largest one stays (default: 1)",
    )
    group.add_argument(
        "--normalize", action="store_true", help="hold each layer's energy when the rank is cut or the tone bent"
    )
    group.add_argument(
        "--block-preset", choices=PRESETS, default=plain.preset, help="the blocks that are changed (default: ALL)"
    )
    group.add_argument(
        "--blocks",
        metavar="TEXT",
        default=plain.blocks,
        help='strengths of blocks over the preset: "IN04-08:0.5, MID:1, OUT:0, TE:0.7", a preset\'s name, or a list of'
        " 17 or 26 (SD 1.5), 12 or 20 (SDXL) numbers",
    )


def run(arguments: Arguments) -> int:
    """Load, draw, save."""
    output = check_picture(arguments.output)
    how = Shape(
        arguments.keep_rank,
        arguments.keep_energy,
        arguments.tone,
        arguments.normalize,
        arguments.block_preset,
        arguments.blocks,
    )
    adapters = [shape(read_adapter(file), how) for file in arguments.adapter]
    laid_out = plan(arguments.prompt, names_of_files(arguments.adapter), arguments.strength, arguments.columns)
    pipe = load_base(arguments.model, choose_device(arguments.device), arguments.base_dtype)
    for number, strength in laid_out.work():
        if number is not None:
            check_fit(pipe, adapters[number], arguments.adapter[number], strength)
    previewer = DiffusersPreviewer(
        pipe,
        steps=arguments.steps,
        guidance=arguments.guidance,
        resolution=arguments.resolution,
        negative=arguments.negative,
    )
    rows = draw(pipe, previewer, adapters, laid_out, arguments.prompt, arguments.seed)
    if len(rows) == len(rows[0]) == 1:
        write_atomic(output, lambda path: rows[0][0].save(path, format="PNG"))
    else:
        picture_grid(rows, output, row_labels=laid_out.row_labels, column_labels=laid_out.column_labels)
    print(f"picture: {output.resolve()}")
    return 0


def draw(
    pipe: Any,
    previewer: DiffusersPreviewer,
    adapters: Sequence[Adapter],
    laid_out: Plan,
    prompts: Sequence[str],
    seed: int,
) -> list[list[Image.Image]]:
    """The pictures of a plan by row, all from the noise of one seed, with a progress bar."""
    work, drawn = laid_out.work(), dict[Cell, Image.Image]()
    # disable=None: no bar in a log file, where an error must begin its own line
    with tqdm(total=sum(map(len, work.values())), desc="drawing", unit="picture", leave=False, disable=None) as bar:
        for (number, strength), cells in work.items():
            with nullcontext() if number is None else apply_adapter(pipe, adapters[number], strength):
                for cell in cells:
                    (drawn[cell],) = previewer.preview([prompts[cell.prompt]], [seed])
                    bar.update()
    return laid_out.rows(drawn)
