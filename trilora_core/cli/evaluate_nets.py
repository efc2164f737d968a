"""The networks that `evaluate` judges by, loaded from the user's disk; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..evaluate_figures import Judges
from ..evaluate_nets import ClipJudge, InceptionJudge, need_torchmetrics

__all__ = ["load_judges"]

_WHERE_CLIP = (
    "wanted a folder with config.json, model.safetensors, preprocessor_config.json and the tokenizer's files, such as a"
    " download of openai/clip-vit-base-patch32 from Hugging Face"
)


def load_judges(inception: Path | None, clip: Path | None, device: torch.device) -> Judges:
    """The networks whose files were given; InputError for a file that is not one, or without torchmetrics."""
    if inception is None and clip is None:
        return Judges()
    need_torchmetrics()
    return Judges(
        InceptionJudge(inception, device) if inception else None,
        ClipJudge(*_load_clip(clip), device) if clip else None,
    )


def _load_clip(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no CLIP model (it has no config.json); {_WHERE_CLIP}")
    try:
        from transformers import CLIPModel, CLIPProcessor
        from transformers.utils import logging
    except ImportError as error:
        raise InputError('CLIP score needs transformers, not installed; run: pip install -e ".[standalone]"') from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        first = " ".join(str(error).split())[:160]
        raise InputError(f"{folder} cannot be read as a CLIP model ({first}); {_WHERE_CLIP}") from error
    return model, processor
