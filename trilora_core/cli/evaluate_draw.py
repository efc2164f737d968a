"""Draw what is to be judged: the captions of a set with the base model and with adapters, each picture once."""

from __future__ import annotations

import hashlib
import json
import os.path
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..atomic import check_writable, write_atomic, write_text
from ..backend_diffusers import DiffusersDenoiser, DiffusersEncoder, DiffusersPreviewer, apply_adapter
from ..errors import InputError
from ..evaluate_drift import BaseLooks, look_at_base, measure_drift, prompts
from ..evaluate_sets import PictureSet, Shown
from ..fileformat import read_adapter, tensor_hash
from .adapter_files import check_fit, names_of_files
from .pictures import progress_bar

__all__ = ["Drawing", "Method", "draw_sets", "methods_of"]


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; the defaults are the paper's."""

    seed: int = 30
    steps: int = 20
    guidance: float = 7.5
    resolution: int = 0  # 0: the model's own
    each: int = 1  # pictures of each caption, of the seeds from `seed` on


@dataclass(frozen=True)
class Method:
    """One column: the base model, or an adapter at a strength."""

    name: str
    file: Path | None = None
    strength: float = 0.0


def methods_of(adapters: Sequence[str], strengths: Sequence[float]) -> list[Method]:
    """The base first, then every adapter at every strength but 0; InputError where that compares nothing."""
    _check_methods(adapters, strengths)
    several = len({strength for strength in strengths if strength}) > 1 or strengths != [1.0]
    found = [Method("base")]
    for file, stem in zip(adapters, names_of_files(adapters), strict=True):
        for strength in strengths:
            if strength:
                found.append(Method(f"{stem} {strength:g}" if several else stem, Path(file), strength))
    return found


def _check_methods(adapters: Sequence[str], strengths: Sequence[float]) -> None:
    if not any(strengths):
        raise InputError("--strength is 0, the base model, which is drawn anyway; give a strength such as 1")
    again = [f"{strength:g}" for number, strength in enumerate(strengths) if strength in strengths[:number]]
    if again:
        raise InputError(f"--strength has {again[0]} twice, which gives two equal rows; give each strength once")
    places = [os.path.realpath(file) for file in adapters]
    again = [file for number, file in enumerate(adapters) if places[number] in places[:number]]
    if again:
        raise InputError(f"--adapter has {again[0]} twice, which gives two equal rows; give each file once")


def draw_sets(
    pipe: Any, methods: Sequence[Method], captions: PictureSet, drawing: Drawing, folder: Path
) -> list[PictureSet]:
    """Draw the captions of a set with every method into folders of their own, and measure each one's drift.

    A folder is named by all that its pictures depend on, and a picture holds its caption and seed, so that only what is
    missing is drawn. Files have the names of the set's pictures, with a caption beside.
    """
    adapters = {method: read_adapter(method.file) for method in methods if method.file}
    for method, read in adapters.items():
        check_fit(pipe, read, str(method.file), method.strength)
    previewer = DiffusersPreviewer(pipe, steps=drawing.steps, guidance=drawing.guidance, resolution=drawing.resolution)
    ruler = _Ruler(pipe, drawing.resolution)
    base = _base_key(pipe, ruler)
    check_writable(folder)
    sets = []
    for method in methods:
        place = folder / _folder_name(method, base, drawing)
        jobs = _jobs(captions, drawing, place)
        missing = [job for job in jobs if not job.there()]
        adapter = adapters.get(method)
        with apply_adapter(pipe, adapter, method.strength) if adapter else nullcontext():
            _draw(missing, previewer, method.name, len(jobs))
            drift = ruler.measure() if adapter else None
        shown = tuple(Shown(job.path.name, job.path, job.caption) for job in jobs)
        sets.append(PictureSet(method.name, place, shown, drift))
    return [replace(one, drift=0.0) if one.drift is None else one for one in sets]


@dataclass(frozen=True)
class _Job:
    """One picture to draw."""

    path: Path
    caption: str
    seed: int

    def there(self) -> bool:
        """Whether the file is there, whole, and of this caption and seed."""
        try:
            with Image.open(self.path, formats=("PNG",)) as picture:
                picture.load()
                return picture.info.get("prompt") == self.caption and picture.info.get("seed") == str(self.seed)
        except (OSError, SyntaxError, ValueError):
            return False

    def save(self, picture: Image.Image) -> None:
        """Write caption and picture; the picture last, since it is what tells that both are there."""
        info = PngInfo()
        info.add_itxt("prompt", self.caption)
        info.add_itxt("seed", str(self.seed))
        write_text(self.path.with_suffix(".txt"), f"{self.caption}\n")
        write_atomic(self.path, lambda part: picture.save(part, format="PNG", pnginfo=info))


class _Ruler:
    """Measures drift; looks at the base once, while no adapter is on it."""

    def __init__(self, pipe: Any, resolution: int) -> None:
        self._denoiser, self.encoder = DiffusersDenoiser(pipe), DiffusersEncoder(pipe)
        self.base_fingerprint = self._denoiser.base_fingerprint
        self._device = torch.device(pipe.device)
        side = resolution // pipe.vae_scale_factor or int(pipe.unet.config.sample_size)
        size = (int(pipe.unet.config.in_channels), side, side)
        cond = self.encoder.captions(prompts())
        self._looks: BaseLooks = look_at_base(self._denoiser, cond, size, self._device)

    def measure(self) -> float:
        """Drift of the adapter that is on the model now."""
        return measure_drift(self._looks, self._denoiser, self.encoder.captions(prompts()), self._device)


def _draw(jobs: Sequence[_Job], previewer: DiffusersPreviewer, name: str, whole: int) -> None:
    if not jobs:
        return
    with progress_bar(whole, f"drawing {name}", "picture", whole - len(jobs)) as bar:
        for job in jobs:
            (picture,) = previewer.preview([job.caption], [job.seed])
            job.save(picture)
            bar.update()


def _jobs(captions: PictureSet, drawing: Drawing, place: Path) -> list[_Job]:
    """Every caption once or several times; names without folders, as several may hold a picture of one name."""
    found: dict[str, _Job] = {}
    for one in captions.pictures:
        stem = one.name.rsplit(".", 1)[0].replace("/", "_")
        stem = stem if f"{stem}.png" not in found else f"{stem}_{len(found)}"
        for number in range(drawing.each):
            name = f"{stem}.png" if not number else f"{stem}_seed{drawing.seed + number}.png"
            found[name] = _Job(place / name, one.caption, drawing.seed + number)
    return list(found.values())


def _base_key(pipe: Any, ruler: _Ruler) -> str:
    """All that the base's pictures depend on but the settings."""
    scheduler = {name: str(value) for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    parts = (
        ruler.base_fingerprint,
        ruler.encoder.fingerprint,
        type(pipe.scheduler).__name__,
        sorted(scheduler.items()),
        str(pipe.unet.dtype),
    )
    return json.dumps(parts)


def _folder_name(method: Method, base: str, drawing: Drawing) -> str:
    """Its name, cut to letters that every system takes, and a hash of what its pictures depend on."""
    adapter = tensor_hash(method.file) if method.file else ""
    settings = (drawing.steps, drawing.guidance, drawing.resolution)
    digest = hashlib.sha256(json.dumps((1, base, adapter, method.strength, settings)).encode()).hexdigest()
    plain = re.sub(r"[^\w.-]+", "_", method.name)[-60:]
    return f"{plain}-{digest[:8]}"
