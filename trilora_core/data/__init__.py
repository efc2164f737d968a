"""Pictures and captions as cached latents and conditioning."""

from __future__ import annotations

from .cache import DiskStore, MemoryStore, Store
from .dataset import Dataset, Encoder, load_tensors
from .encoding import Progress
from .loading import load_folder, load_images, survey_folder
from .sources import scan_folder

__all__ = [
    "Dataset",
    "DiskStore",
    "Encoder",
    "MemoryStore",
    "Progress",
    "Store",
    "load_folder",
    "load_images",
    "load_tensors",
    "scan_folder",
    "survey_folder",
]
