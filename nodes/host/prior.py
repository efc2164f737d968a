"""Class pictures of the host's own model: drawn once, kept below input/, encoded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...trilora_core.config_data import DataConfig, PriorConfig
from ...trilora_core.data import Dataset, load_folder
from ...trilora_core.data.prior import ensure_prior, prior_key
from ...trilora_core.errors import InputError
from . import models
from .encode import HostEncoder
from .events import announce_data, reporter
from .paths import prior_folder
from .preview import HostPreviewer
from .store import data_store
from .training import trainable_patcher

__all__ = ["drawn_prior"]


def drawn_prior(
    model: Any,
    clip: Any,
    vae: Any,
    wanted: PriorConfig,
    resolution: int,
    sampling: dict[str, Any],
    cache: str,
    node_id: str | None,
) -> Dataset:
    """Draw the class pictures that are missing to `wanted.count` and encode all that are there.

    Each model, clip, VAE, set of prompts, seed, resolution and `sampling` (steps, cfg, negative) has a folder of its
    own. The host's interrupt keeps what was drawn so far. Raises InputError for prompts that are empty and for a folder
    that cannot be written.
    """
    if not wanted.prompt.strip():
        raise InputError("prompts is empty; say what the class pictures should show, such as: a photo of a dog")
    encoder, store = HostEncoder(clip, vae), data_store(cache)
    previewer = HostPreviewer(model, clip, vae, width=resolution, height=resolution, **sampling)
    base = models.fingerprint(trainable_patcher(model))
    folder = prior_folder(prior_key(base, wanted, {**previewer.settings, "encoder": encoder.fingerprint}))
    wanted = replace(wanted, folder=str(folder))
    found, drawn = ensure_prior(wanted, previewer, reporter(node_id, "class pictures:"), base=base)
    config = DataConfig(str(folder), resolution)
    data = load_folder(config, encoder, store, reporter(node_id, "prepared"))
    announce_data(node_id, data, f"; {found} were there, {drawn} drawn; kept in {folder}")
    return data
