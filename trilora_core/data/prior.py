"""Class pictures for prior preservation: those of a folder, and the missing ones drawn with the base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..atomic import check_writable, write_atomic, write_text
from ..config_data import PriorConfig
from ..errors import InputError
from ..home import expanded
from .pictures import ENDINGS
from .sources import scan_folder

if TYPE_CHECKING:  # train.py imports this package
    from ..protocols import Previewer

__all__ = ["Progress", "ensure_prior", "prior_key"]

KEY_LENGTH = 12  # hexadecimal digits: 48 bits, enough to tell the folders of one machine apart

Progress = Callable[[int, int], None]  # (done, total) of the pictures that are drawn


def ensure_prior(
    config: PriorConfig, previewer: Previewer, progress: Progress | None = None, *, base: str = ""
) -> tuple[int, int]:
    """Draw the class pictures that `config.folder` lacks to `config.count` and keep them there: (found, drawn).

    Every picture that training sees in the folder counts. Picture i has the name prior_i, the seed `config.seed + i`
    and line i of `config.prompt`, from the first line again after the last. One that is there is never drawn again, so
    that an interrupted run goes on where it stopped; nothing is deleted. `base` names the model in the files. Raises
    InputError when no folder is named, what it holds cannot be used, it cannot be written to, or it is empty and no
    count is given.
    """
    folder = _folder(config)
    found = _count_pictures(folder)
    missing = max(0, config.count - found)
    if not found and not missing:
        raise InputError(
            f"the folder of class pictures {folder} has none, and prior.count is 0; put pictures into it, "
            "or give the count that is to be drawn (200 is usual)"
        )
    if missing:
        check_writable(folder)
        _draw_missing(folder, config, previewer, missing, progress, base)
    return found, missing


def prior_key(base_fingerprint: str, config: PriorConfig, extra: Mapping[str, str | int | float]) -> str:
    """Name the folder of pictures that one base model draws from these prompts, seed and settings: 12 hex digits.

    Folder and count are left out: a larger count goes on with the pictures that are there.
    """
    facts = [base_fingerprint, _prompts(config), config.seed, dict(extra)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def _folder(config: PriorConfig) -> Path:
    if not config.folder.strip():
        raise InputError("prior.folder is empty; name the folder of the class pictures (it is made when it is missing)")
    return expanded(config.folder)


def _count_pictures(folder: Path) -> int:
    """Pictures that training will see in the folder; 0 where it has none or is not there."""
    if not any(_is_picture(entry.relative_to(folder)) and entry.is_file() for entry in folder.rglob("*")):
        return 0
    return len(scan_folder(folder).sources)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in path.parts)


def _prompts(config: PriorConfig) -> list[str]:
    return [" ".join(line.split()) for line in config.prompt.splitlines() if line.strip()]


def _draw_missing(
    folder: Path, config: PriorConfig, previewer: Previewer, missing: int, progress: Progress | None, base: str
) -> None:
    tell = progress or (lambda done, total: None)
    prompts = _prompts(config)
    tell(0, missing)  # the first picture may take a minute
    index = done = 0
    while done < missing:
        path = folder / f"prior_{index:05}.png"
        if not path.exists():
            _draw(path, prompts[index % len(prompts)], config.seed + index, previewer, base)
            done += 1
            tell(done, missing)
        index += 1


def _draw(path: Path, prompt: str, seed: int, previewer: Previewer, base: str) -> None:
    (picture,) = previewer.preview([prompt], [seed])
    told = PngInfo()
    # not "prompt" alone: where ComfyUI finds that name in a picture it expects a workflow
    for name, value in {"prompt": prompt, "seed": str(seed), "base": base}.items():
        if value:
            told.add_text(f"trilora.{name}", value)
    # the caption first: a picture counts as drawn, and must have its own
    write_text(path.with_suffix(".txt"), f"{prompt}\n")
    write_atomic(path, lambda file: _write_png(file, picture, told))


def _write_png(file: Path, picture: Image.Image, told: PngInfo) -> None:
    picture.save(file, format="PNG", pnginfo=told)
