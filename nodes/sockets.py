"""The socket types that the nodes of this pack share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io

from ..trilora_core.config_data import CaptionConfig, DataConfig, FramingConfig, MaskConfig
from ..trilora_core.data import Dataset

__all__ = [
    "CACHES",
    "CARD",
    "CATEGORY",
    "AdapterSocket",
    "CalibrationSocket",
    "DataOptions",
    "DataOptionsSocket",
    "DatasetSocket",
    "DatasetValue",
    "OptionsSocket",
]

CATEGORY = "TriLoRA"
CARD = "trilora_adapter"  # in a node's ui output: what the front end draws on it, see trilora_core.card
CACHES = ("disk", "memory")

AdapterSocket = io.Custom("TRILORA")  # carries trilora_core.fileformat.Adapter
CalibrationSocket = io.Custom("TRILORA_CALIBRATION")  # carries trilora_core.calibration.Calibration
DatasetSocket = io.Custom("TRILORA_DATASET")  # carries DatasetValue
DataOptionsSocket = io.Custom("TRILORA_DATA_OPTIONS")  # carries DataOptions
OptionsSocket = io.Custom("TRILORA_OPTIONS")  # carries trilora_core.config.TrainConfig


@dataclass(frozen=True)
class DatasetValue:
    """What the dataset socket carries: the encoded data and the host's clip and vae that encoded it, if known."""

    data: Dataset
    clip: Any = None
    vae: Any = None


@dataclass(frozen=True)
class DataOptions:
    """What the data options socket carries: how pictures and captions are seen, and where the results are kept."""

    captions: CaptionConfig = field(default_factory=CaptionConfig)
    framing: FramingConfig = field(default_factory=FramingConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    max_train_samples: int = 0
    cache: str = CACHES[0]

    def config(self, resolution: int, trigger_word: str, folder: str = "", skip_unreadable: bool = False) -> DataConfig:
        """These options with the widgets of a data set node; raises InputError as DataConfig does."""
        return DataConfig(
            folder,
            resolution,
            " ".join(trigger_word.split()),
            skip_unreadable,
            self.max_train_samples,
            self.captions,
            self.framing,
            self.masks,
        )
