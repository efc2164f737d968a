"""Weights of base models in files, read one layer at a time by canonical stem: a single file or a diffusers folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError
from .home import expanded
from .keys import canonical_stem, stem_of_diffusers_module

__all__ = ["FileWeights", "Weights", "open_weights"]


class Weights(Protocol):
    """The weights of one model: `architecture` as in keys.ARCHITECTURES, `name` for messages and metadata.

    `shapes` holds (out, in) or (out, in, kh, kw) by canonical stem; text encoders' layers among them.
    """

    @property
    def architecture(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, stem: str) -> Tensor:
        """One weight, on any device, in the dtype that it is kept in."""


class Place(NamedTuple):
    """Where a weight lies: an open file, the tensor's name, and which rows of it (None: all)."""

    file: Any
    key: str
    rows: tuple[int, int] | None


@dataclass(frozen=True)
class FileWeights:
    """`Weights` of open safetensors files."""

    architecture: str
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    places: Mapping[str, Place]

    def read(self, stem: str) -> Tensor:
        """One weight from the disk, on the CPU."""
        file, key, rows = self.places[stem]
        tensor: Tensor = file.get_tensor(key) if rows is None else file.get_slice(key)[rows[0] : rows[1]]
        return tensor


@contextmanager
def open_weights(path: Path | str) -> Iterator[FileWeights]:
    """Open a single .safetensors checkpoint (SD 1.5, SDXL, SD3, Flux) or a diffusers folder (the first three).

    Only headers are read here. Raises InputError when it is missing, damaged, a pickle, or another kind of model.
    """
    path = expanded(path)
    with ExitStack() as stack:
        try:
            if path.is_dir():
                architecture, places = _folder(path, stack)
            else:
                architecture, places = _single(path, stack)
            shapes = {stem: _shape(place) for stem, place in places.items()}
        except (SafetensorError, OSError) as error:
            raise InputError(f"model {path} is damaged or cut off ({error}); copy or download it again") from error
        kept = {stem: shape for stem, shape in shapes.items() if len(shape) > 1}
        yield FileWeights(architecture, path.stem if path.is_file() else path.name, kept, places)


def _shape(place: Place) -> tuple[int, ...]:
    first, *rest = place.file.get_slice(place.key).get_shape() or [0]
    return (first if place.rows is None else place.rows[1] - place.rows[0], *rest)


# --- single files ---------------------------------------------------------------------------------------------------

_DENOISER = "model.diffusion_model."
_CLIP_L = {  # the first text encoder in a checkpoint, and in LoRA files
    "sd15": ("cond_stage_model.transformer.", "lora_te_"),
    "sdxl": ("conditioner.embedders.0.transformer.", "lora_te1_"),
}
_CLIP_G = re.compile(r"conditioner\.embedders\.1\.model\.transformer\.resblocks\.(\d+)\.(.+?)[._]weight")
_CLIP_G_NAMES = {
    "attn.in_proj": ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj"),
    "attn.out_proj": ("self_attn_out_proj",),
    "mlp.c_fc": ("mlp_fc1",),
    "mlp.c_proj": ("mlp_fc2",),
}
_SD3 = re.compile(r"joint_blocks\.(\d+)\.(.+)\.weight")
_SD3_NAMES = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}


def _single(path: Path, stack: ExitStack) -> tuple[str, dict[str, Place]]:
    if not path.is_file():
        raise InputError(f"model {path} does not exist; give a diffusers folder or a .safetensors file")
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"model {path} is no .safetensors file; pickles can run code when opened: convert it first")
    file = stack.enter_context(safe_open(path, framework="pt"))
    keys = list(file.keys())
    prefix = _DENOISER if any(key.startswith(_DENOISER) for key in keys) else ""  # or a denoiser alone
    denoiser = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    architecture = _architecture(path, file, denoiser)
    layers = _layers_per_block(denoiser)
    places: dict[str, Place] = {}
    for name, key in denoiser.items():
        places |= _places(file, key, _denoiser_stems(name, architecture, layers))
    for key in keys:
        places |= _places(file, key, _text_stems(key, architecture))
    return architecture, places


def _places(file: Any, key: str, stems: tuple[str, ...]) -> dict[str, Place]:
    """A tensor is one layer, or several above each other (fused q, k, v)."""
    if len(stems) < 2:
        return {stem: Place(file, key, None) for stem in stems}
    rows = file.get_slice(key).get_shape()[0] // len(stems)
    return {stem: Place(file, key, (index * rows, (index + 1) * rows)) for index, stem in enumerate(stems)}


def _architecture(path: Path, file: Any, denoiser: Mapping[str, str]) -> str:
    """What the names and the width of the captions tell."""
    if any(name.startswith("joint_blocks.") for name in denoiser):
        return "sd3"
    if "img_in.weight" in denoiser and any(name.startswith("double_blocks.") for name in denoiser):
        return "flux"
    context = next((key for name, key in denoiser.items() if name.endswith("attn2.to_k.weight")), None)
    width = file.get_slice(context).get_shape()[1] if context and "input_blocks.0.0.weight" in denoiser else 0
    if width not in (768, 2048):
        raise InputError(f"model {path} is no SD 1.5, SDXL, SD3 or Flux checkpoint; give one of these whole")
    return "sd15" if width == 768 else "sdxl"


def _layers_per_block(denoiser: Mapping[str, str]) -> int:
    """Residual blocks of each level of a U-Net: the first layer that halves the size comes behind them."""
    found = (re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name) for name in denoiser)
    return min((int(match[1]) for match in found if match), default=3) - 1


def _denoiser_stems(name: str, architecture: str, layers: int) -> tuple[str, ...]:
    if architecture == "sd3":
        found = _SD3.fullmatch(name)
        parts = _SD3_NAMES.get(found[2], ()) if found else ()
        return tuple(f"transformer.transformer_blocks.{found[1]}.{part}" for part in parts) if found else ()
    if not name.endswith(".weight"):
        return ()
    flat = name.removesuffix(".weight").replace(".", "_")
    return (canonical_stem(f"lora_unet_{flat}", architecture, layers_per_block=layers),)


def _text_stems(key: str, architecture: str) -> tuple[str, ...]:
    prefix, ours = _CLIP_L.get(architecture, ("", ""))
    if prefix and key.startswith(prefix) and key.endswith(".weight"):
        return (ours + key.removeprefix(prefix).removesuffix(".weight").replace(".", "_"),)
    found = _CLIP_G.fullmatch(key) if architecture == "sdxl" else None
    parts = _CLIP_G_NAMES.get(found[2], ()) if found else ()
    return tuple(f"lora_te2_text_model_encoder_layers_{found[1]}_{part}" for part in parts) if found else ()


# --- diffusers folders ----------------------------------------------------------------------------------------------

_PIPELINES = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3"}
_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def _folder(path: Path, stack: ExitStack) -> tuple[str, dict[str, Place]]:
    architecture = _PIPELINES.get(_pipeline(path), "")
    if not architecture:
        raise InputError(f"model {path} is a {_pipeline(path)}; known: {', '.join(_PIPELINES)}, or a single file")
    wanted = _COMPONENTS if architecture in _CLIP_L else ("transformer",)
    places: dict[str, Place] = {}
    for component in wanted:
        for weights in _weight_files(path / component):
            file = stack.enter_context(safe_open(weights, framework="pt"))
            for key in file.keys():  # noqa: SIM118
                if key.endswith(".weight"):
                    module = f"{component}.{key.removesuffix('.weight')}"
                    places[stem_of_diffusers_module(architecture, module)] = Place(file, key, None)
    if not places:
        raise InputError(f"model {path} holds no .safetensors weights; give a whole diffusers folder")
    return architecture, places


def _pipeline(folder: Path) -> str:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"folder {folder} has no model_index.json; give a diffusers folder or a file") from error
    except ValueError as error:
        raise InputError(f"{folder / 'model_index.json'} is not valid ({error}); copy the folder again") from error
    return str(index.get("_class_name")) if isinstance(index, dict) else "None"


def _weight_files(folder: Path) -> list[Path]:
    """The weights of one component, in parts where they are; of several variants the one without a name."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if "non_ema" not in file.name]
    plain = [file for file in files if not re.search(r"\.\w+(-\d+-of-\d+)?\.safetensors$", file.name)]
    return plain or files
