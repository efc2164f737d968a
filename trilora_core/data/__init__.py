"""Pictures and captions as cached latents and conditioning."""

from __future__ import annotations

from .dataset import Dataset, Encoder, load_folder, load_images
from .pictures import ENDINGS, list_pictures
from .sampler import batch_indices

__all__ = ["ENDINGS", "Dataset", "Encoder", "batch_indices", "list_pictures", "load_folder", "load_images"]
