"""The base model that a verb works on: which device, which number format, loaded without noise."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import torch

from ..backend_diffusers import load_pipeline
from ..errors import InputError
from .saving import DTYPES

__all__ = ["choose_device", "describe_device", "load_base", "own_resolution"]

_NEEDED = ("diffusers", "transformers", "accelerate")


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; "auto" is CUDA where there is one. Raises InputError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; wanted auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; wanted auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def describe_device(device: torch.device) -> str:
    """A device as a person knows it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def load_base(path: str, device: torch.device, base_dtype: str, precision: str = "auto") -> Any:
    """Load the pipeline at `path`, silently; raises InputError when it or a needed package is not there.

    Where `base_dtype` is "auto", a GPU's weights are in the format of `precision`, which could not change fp16 ones.
    """
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f'this needs {", ".join(absent)}, not installed; run: pip install -e ".[standalone]"')
    _quieten()
    wanted = precision if base_dtype == "auto" and device.type != "cpu" else base_dtype
    return load_pipeline(path, device=device, dtype=DTYPES.get(wanted))


def own_resolution(pipe: Any) -> int:
    """The side in pixels of the pictures that the model was made for."""
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def _quieten() -> None:
    """Keep the notes of libraries, which are not about what the user does, out of the report."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers|huggingface_hub")
