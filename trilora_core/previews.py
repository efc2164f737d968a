"""Pictures of a run on its way: the same prompts and seeds by step, as files and as one strip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from .atomic import write_atomic
from .data.lettering import lettered, wrapped
from .protocols import Previewer
from .train import Run

__all__ = ["draw_previews", "draw_strip", "preview_path", "previews_folder"]

_CELL = 256  # pixels, of the strip
_GAP = 8
_LETTERS = 18  # pixels
_LINES = 8  # of a prompt
_COLUMNS_AT_MOST = 20  # steps; of more, as many in even distances, the first and the last among them
_INK = "#22262b"


def previews_folder(output: Path) -> Path:
    """Where the previews of the run that writes `output` lie: `name.safetensors` -> `name_previews`."""
    return output.with_name(f"{output.stem}_previews")


def preview_path(folder: Path, step: int, index: int) -> Path:
    """The picture of prompt `index` (from 0) after `step` steps."""
    return folder / f"step_{step:05d}_{index}.png"


def draw_previews(run: Run, previewer: Previewer, folder: Path) -> list[Path]:
    """Draw all preview prompts with the adapter that would be saved now, which must be attached; the files.

    Raises InputError when the previewer cannot draw or the folder cannot be written to.
    """
    monitor = run.config.monitor
    seeds = [monitor.preview_seed + index for index in range(len(monitor.preview_prompts))]
    # a previewer may seed the global generators: nothing of it may reach the training
    with run.as_saved(), torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        pictures = previewer.preview(monitor.preview_prompts, seeds)
    paths = []
    for index, picture in enumerate(pictures):
        paths.append(preview_path(folder, run.step, index))
        _write(picture, paths[-1])
    return paths


def draw_strip(folder: Path, prompts: Sequence[str], steps: Sequence[int]) -> Path:
    """Draw `strip.png` of the pictures in the folder, a row for each prompt and a column for each step; its path.

    Pictures that somebody removed leave an empty place.
    """
    steps = _thinned(steps)
    top, pitch = 2 * _LETTERS, _CELL + _GAP
    sheet = Image.new("RGB", (len(steps) * pitch + pitch, top + len(prompts) * pitch), "white")
    pen = ImageDraw.Draw(sheet)
    for column, step in enumerate(steps):
        text, face = lettered(f"step {step}", _LETTERS)
        pen.text((pitch + column * pitch + _CELL // 2, top // 2), text, fill=_INK, font=face, anchor="mm")
        for row in range(len(prompts)):
            cell = _thumbnail(preview_path(folder, step, row))
            left, over = (_CELL - cell.width) // 2, (_CELL - cell.height) // 2
            sheet.paste(cell, (pitch + column * pitch + left, top + row * pitch + over))
    for row, prompt in enumerate(prompts):
        text, face = lettered(prompt, _LETTERS)
        lines = "\n".join(wrapped(text, face, _CELL - _GAP, _LINES))
        pen.multiline_text((_GAP, top + row * pitch + _CELL // 2), lines, fill=_INK, font=face, anchor="lm")
    path = folder / "strip.png"
    _write(sheet, path)
    return path


def _thinned(steps: Sequence[int]) -> list[int]:
    last = len(steps) - 1
    count = min(len(steps), _COLUMNS_AT_MOST)
    return [steps[round(place * last / max(1, count - 1))] for place in range(count)]


def _thumbnail(path: Path) -> Image.Image:
    """The picture, fitted into a cell; small ones are enlarged."""
    try:
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
    except OSError:
        return Image.new("RGB", (1, 1), "white")
    scale = _CELL / max(whole.size)
    size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    return whole.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def _write(picture: Image.Image, path: Path) -> None:
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))
