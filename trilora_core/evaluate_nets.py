"""The networks that pictures are judged by, from files that the user has, and the metrics of torchmetrics on them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .errors import InputError
from .evaluate_inception import InceptionFID

__all__ = ["ClipJudge", "InceptionJudge", "fid", "need_torchmetrics", "read_inception"]

WHERE_INCEPTION = (
    "wanted FID's Inception weights: pt_inception-2015-12-05-6726825d.pth from the releases of mseitzer/pytorch-fid"
    " (weights-inception-2015-12-05-6726825d.pth of toshas/torch-fidelity is the same file), or its tensors as"
    " .safetensors"
)


def need_torchmetrics() -> None:
    """Raise InputError, with what to do, where torchmetrics is not there or cannot be imported."""
    if find_spec("torchmetrics") is None:
        raise InputError(
            'FID and CLIP score need the package torchmetrics, which is not installed; run: pip install -e ".[eval]"'
        )
    try:
        import torchmetrics.image.fid
        import torchmetrics.multimodal  # noqa: F401
    except (ImportError, RuntimeError) as error:  # such as a torchvision that is not of this torch
        raise InputError(
            f"the package torchmetrics cannot be imported ({error}); repair or remove the package that it names"
        ) from error


def fid(real: Tensor, generated: Tensor) -> float:
    """Fréchet Inception distance of features (N, D) and (M, D) by torchmetrics, in float64.

    Distances do not change when both sets are turned onto axes that span them, which few pictures need few of.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    both = torch.cat([real, generated]).double()
    mean = both.mean(0)
    axes = torch.linalg.qr((both - mean).T).Q if len(both) < both.shape[1] else torch.eye(both.shape[1]).to(both)
    metric = FrechetInceptionDistance(feature=_Given(axes.shape[1]))
    metric.update((real.double() - mean) @ axes, real=True)
    metric.update((generated.double() - mean) @ axes, real=False)
    return max(0.0, float(metric.compute()))


class _Given(nn.Module):
    """A feature extractor for features that are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


# --- Inception ----------------------------------------------------------------


class InceptionJudge:
    """Features (B, 2048) of pictures, from the layer before the classes."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self._net = InceptionFID()
        state, wanted = read_inception(weights), self._net.state_dict()
        wrong = [name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape]
        if wrong:
            raise InputError(
                f"{weights} is no Inception of FID (layer {wrong[0]} is not as it should be); {WHERE_INCEPTION}"
            )
        self._net.load_state_dict({name: state[name] for name in wanted})
        self._net.to(device).eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 -> (B, 2048) float32 on the CPU; resized to 299 x 299 as torchmetrics does."""
        side = InceptionFID.SIDE
        pixels = interpolate(
            pictures.to(self._device, torch.float32), (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        found: Tensor = self._net((pixels - 128) / 128)
        return found.cpu()


def read_inception(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, .safetensors or torch's own; no code in it is run. Raises InputError."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; {WHERE_INCEPTION}")
    if path.suffix.lower() != ".safetensors" and not _safe_pickles():
        raise InputError(
            f"{path} is a pickle, which torch {torch.__version__} cannot read without a risk of running what is in it;"
            " give a .safetensors file, or install torch 2.6 or newer"
        )
    try:
        if path.suffix.lower() == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} holds no plain tensors, or is cut off; {WHERE_INCEPTION}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} is no table of tensors; {WHERE_INCEPTION}")
    # files of old have no counters of batches, which are not needed either
    counters = {name: torch.tensor(0) for name in InceptionFID.counters() if name not in found}
    return {**counters, **found}


def _safe_pickles() -> bool:
    """Whether `weights_only` keeps what it promises: before torch 2.6 it could be got around (CVE-2025-32434)."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 6)


# --- CLIP ---------------------------------------------------------------------


class ClipJudge:
    """CLIP scores of pictures with captions by torchmetrics, and features, from a loaded model of transformers."""

    def __init__(self, model: Any, processor: Callable[..., Any], device: torch.device) -> None:
        from torchmetrics.multimodal import CLIPScore

        self._device = device
        self._model, self._processor = _Plain(model.to(device).eval()), processor
        self._metric: Any = CLIPScore(model_name_or_path=lambda: (self._model, processor)).to(device)

    @torch.no_grad()
    def scores(self, pictures: Tensor, captions: Sequence[str]) -> list[float]:
        """100 · cosine of each picture (B, 3, H, W) uint8 and its caption, 0 at least (Hessel et al. 2021, eq. 1)."""
        found = []
        for picture, caption in zip(pictures, captions, strict=True):
            self._metric.reset()
            with warnings.catch_warnings():  # a caption that is longer than CLIP reads is cut, as it is by the model
                warnings.simplefilter("ignore")
                self._metric.update(picture.to(self._device), caption)
            found.append(float(self._metric.compute()))
        return found

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 -> picture embeddings (B, D) float32 on the CPU."""
        pixels = self._processor(images=list(pictures.cpu()), return_tensors="pt")["pixel_values"]
        return self._model.get_image_features(pixels.to(self._device)).float().cpu()


class _Plain(nn.Module):
    """A CLIP whose features are tensors, as torchmetrics takes them; transformers 5 wraps them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return _bare(self.model.get_image_features(pixels))

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return _bare(self.model.get_text_features(tokens, mask))


def _bare(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output
