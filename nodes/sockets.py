"""The socket types that the nodes of this pack share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..trilora_core.data import Dataset

__all__ = ["CATEGORY", "AdapterSocket", "DatasetSocket", "DatasetValue", "OptionsSocket"]

CATEGORY = "TriLoRA"

AdapterSocket = io.Custom("TRILORA")  # carries trilora_core.fileformat.Adapter
DatasetSocket = io.Custom("TRILORA_DATASET")  # carries DatasetValue
OptionsSocket = io.Custom("TRILORA_OPTIONS")  # carries trilora_core.config.TrainConfig


@dataclass(frozen=True)
class DatasetValue:
    """What the dataset socket carries: the encoded data and the host's clip and vae that encoded it."""

    data: Dataset
    clip: Any
    vae: Any
