"""Load a Stable Diffusion 1.5 or SDXL pipeline from disk, without network: a diffusers folder or one .safetensors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .backend_diffusers_single import write_config_folder
from .errors import InputError
from .home import expanded

__all__ = ["PIPELINES", "load_pipeline"]

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_TEXT_ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}  # of both pipelines
# What diffusers, transformers and safetensors raise for files that are missing, damaged or of another shape.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
_ENDLESS = 10**6  # tokens: a tokenizer without its files says that it takes more
_LETTERS = 512  # the 256 bytes, and those that end a word: CLIP's smallest vocabulary


def load_pipeline(
    path: str | Path,
    *,
    config: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a diffusers pipeline from a folder or a single .safetensors file, and never ask the network.

    `config`: for a single file of an unusual shape, a diffusers folder whose configuration and tokenizer it shares.
    `device` None is CUDA where there is one; `dtype` None is float16 there and float32 elsewhere.
    Raises InputError when the path is missing, is no model, is a pickle, or is another kind of model.
    """
    path = expanded(path)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = dtype or (torch.float16 if place.type == "cuda" else torch.float32)
    if path.is_dir():
        pipe = _load_folder(path, kind)
    elif path.is_file():
        pipe = _load_file(path, None if config is None else expanded(config), kind)
    else:
        raise InputError(
            f"model {path} does not exist; models are read from disk only: "
            "give a diffusers folder or a .safetensors file"
        )
    if absent := [f"{part}.{name}" for part, model in pipe.components.items() for name in _without_values(model)]:
        raise _not_whole(path, absent)
    _check_tokenizers(path, pipe)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=str(path))  # a single file would keep the name of its configuration's folder
    # diffusers before `dtype` was an argument loads in float32
    return pipe.to(place) if pipe.unet.dtype is kind else pipe.to(place, kind)


def _load_folder(path: Path, dtype: torch.dtype) -> Any:
    import diffusers

    name = _pipeline_name(path)
    options = {"local_files_only": True, "use_safetensors": True, "variant": _variant(path / "unet"), "dtype": dtype}
    absent = {} if name.endswith("XLPipeline") else {"safety_checker": None, "requires_safety_checker": False}
    try:
        texts = {
            part: _load_text_encoder(path / part, kind, dtype)
            for part, kind in _TEXT_ENCODERS.items()
            if (path / part).is_dir()
        }
        return getattr(diffusers, name).from_pretrained(str(path), **options, **texts, **absent)
    except InputError:
        raise
    except _LOAD_ERRORS as error:
        raise _cannot_load(path, error, "copy the folder again, with every file in .safetensors form") from error


def _load_text_encoder(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    """Load one by itself: transformers fills what its file lacks with random numbers, and only this call tells."""
    import transformers

    model, told = getattr(transformers, kind).from_pretrained(
        str(folder),
        local_files_only=True,
        use_safetensors=True,
        variant=_variant(folder),
        dtype=dtype,
        output_loading_info=True,
    )
    if absent := [f"{folder.name}.{name}" for name in sorted(told["missing_keys"])]:
        raise _not_whole(folder.parent, absent)
    return model


def _load_file(path: Path, config: Path | None, dtype: torch.dtype) -> Any:
    if path.suffix.lower() in _PICKLES:
        raise InputError(f"model {path} is a pickle, which may run code when it is opened; give a .safetensors file")
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"model {path} is no model; give a diffusers folder or a .safetensors file")
    if config is not None:
        return _from_single_file(path, config, dtype)
    with tempfile.TemporaryDirectory() as folder:
        write_config_folder(path, Path(folder))
        return _from_single_file(path, Path(folder), dtype)


def _from_single_file(path: Path, config: Path, dtype: torch.dtype) -> Any:
    import diffusers

    name = _pipeline_name(config)
    try:
        return getattr(diffusers, name).from_single_file(
            str(path), config=str(config), local_files_only=True, dtype=dtype
        )
    except _LOAD_ERRORS as error:
        advice = "if the model has an unusual shape, save it as a diffusers folder and give that"
        raise _cannot_load(path, error, advice) from error


def _pipeline_name(folder: Path) -> str:
    """The pipeline class that a diffusers folder names."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"folder {folder} has no model_index.json; give a diffusers folder or a .safetensors file")
    try:
        name = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{index} is not valid ({error}); copy the folder again") from error
    if name not in PIPELINES:
        raise InputError(f"folder {folder} holds a {name}; known: {', '.join(PIPELINES)}")
    return name


def _variant(folder: Path) -> str | None:
    """ "fp16" where the folder of a part holds its weights only under that name."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def _without_values(model: Any) -> list[str]:
    """Names of the weights that a file did not give, which diffusers leaves on the device "meta"."""
    return [name for name, weight in model.named_parameters() if weight.is_meta] if hasattr(model, "parameters") else []


def _check_tokenizers(path: Path, pipe: Any) -> None:
    """Where files are missing, transformers makes up a tokenizer that knows no words, or has no end."""
    for part, model in pipe.components.items():
        if hasattr(model, "model_max_length") and (model.model_max_length > _ENDLESS or len(model) < _LETTERS):
            raise InputError(f"model {path} has no {part}, or not all of its files; copy it again")


def _not_whole(path: Path, absent: Sequence[str]) -> InputError:
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return InputError(
        f"model {path} has no weights for {absent[0]}{more}; copy it again, or, where a newer diffusers or "
        "transformers wrote it, update these two"
    )


def _cannot_load(path: Path, error: BaseException, advice: str) -> InputError:
    reason = _first_line(str(error).splitlines())
    if "meta tensor" in reason:  # what diffusers leaves of a single file in which weights are missing
        reason = "weights of its U-Net or VAE are missing"
    return InputError(f"model {path} cannot be loaded ({reason}); {advice}")


def _first_line(lines: Iterable[str]) -> str:
    return next((line.strip().rstrip(".")[:200] for line in lines if line.strip()), "no reason given")
