"""What a file says about itself: the entries that other tools read, and readable accessors for ours.

`ss_*` and `sshs_model_hash` are the names of the kohya trainers, `modelspec.*` those of the Stability model spec 1.0.1,
`trilora.*` our own. All values are strings. Hashes, ranks and the spectrum are made fresh whenever a file is written.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .config import AdapterConfig
from .config_json import to_json
from .content import content_of
from .data.captions import tags as split_tags
from .errors import InputError, clear_line
from .fileformat import Adapter
from .keys import guess_architecture
from .spectral import effective_rank

if TYPE_CHECKING:
    from .data.dataset import Dataset
    from .protocols import Denoiser
    from .train import Run

__all__ = [
    "RankSummary",
    "adapter_names",
    "architecture_metadata",
    "architecture_of",
    "base_model",
    "dataset_metadata",
    "describe",
    "rank_summary",
    "training_metadata",
    "trigger_words",
]


@dataclass(frozen=True)
class _Names:
    """How other tools call an architecture."""

    modelspec: str
    base_version: str
    implementation: str


_NAMES = {
    "sd15": _Names("stable-diffusion-v1", "sd_v1", "diffusers"),
    "sdxl": _Names(
        "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "https://github.com/Stability-AI/generative-models"
    ),
    "sd3": _Names("stable-diffusion-3", "sd3", "diffusers"),
    "flux": _Names("flux-1-dev", "flux1", "https://github.com/black-forest-labs/flux"),
}


def architecture_metadata(architecture: str) -> dict[str, str]:
    """How every reader is told which kind of model an adapter is for, where no run says more."""
    names = _NAMES.get(architecture)
    told = {
        "ss_base_model_version": names.base_version if names else architecture,
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "modelspec.architecture": f"{names.modelspec if names else architecture}/lora",
        "modelspec.implementation": names.implementation if names else "trilora",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "trilora.architecture": architecture,
    }
    return {key: value for key, value in told.items() if value}


def training_metadata(run: Run, *, started: float, finished: bool, name: str) -> dict[str, str]:
    """Everything that a file should say about the run that made it.

    `started` is in seconds since 1970; `finished` is False for a run that ended early; `name` is the file's stem.
    """
    return (
        _kohya_entries(run, started, name)
        | dataset_metadata(run.dataset, name)
        | _modelspec(run, name)
        | {
            "trilora.architecture": run.denoiser.architecture,
            "trilora.init": run.config.adapter.init,
            "trilora.config": to_json(run.config),
            "trilora.base_name": run.denoiser.base_name,
            "trilora.base_fingerprint": run.denoiser.base_fingerprint,
            "trilora.base_content": _content(run.denoiser),
            "trilora.data_hash": run.dataset.content_hash,
            "trilora.fingerprint": run.fingerprint(),
            "trilora.finished": "true" if finished else "false",
            "trilora.losses": " ".join(f"{loss:.6g}" for loss in run.losses),
        }
        | ({"trilora.calibration_key": run.calibration_key} if run.calibration_key else {})
    )


_CONTENTS: WeakKeyDictionary[Denoiser, str] = WeakKeyDictionary()  # a run saves more than once


def _content(denoiser: Denoiser) -> str:
    if denoiser not in _CONTENTS:
        _CONTENTS[denoiser] = content_of(denoiser.targets())
    return _CONTENTS[denoiser]


def _kohya_entries(run: Run, started: float, name: str) -> dict[str, str]:
    config, names, data = run.config, _NAMES.get(run.denoiser.architecture), run.dataset
    side = data.config.resolution
    return {
        "ss_base_model_version": names.base_version if names else run.denoiser.architecture,
        "ss_v2": "False",  # Stable Diffusion 2, which is not trained here
        "ss_network_module": "networks.lora",
        "ss_network_args": json.dumps(_network_args(config.adapter)),
        "ss_output_name": name,
        "ss_sd_model_name": run.denoiser.base_name,
        "ss_training_started_at": f"{started}",
        "ss_training_finished_at": f"{time.time()}",
        "ss_resolution": f"({side}, {side})",
        "ss_num_train_images": str(sum(item.repeats for item in data.items)),
        "ss_num_reg_images": str(0 if run.prior is None else len(run.prior)),
        "ss_num_epochs": str(-(-run.step * config.batch_size * config.optimizer.accumulation // data.epoch_size)),
        "ss_steps": str(run.step),
        "ss_max_train_steps": str(config.steps),
        "ss_learning_rate": str(config.optimizer.learning_rate),
        "ss_unet_lr": str(config.optimizer.learning_rate),
        "ss_text_encoder_lr": str(config.optimizer.learning_rate * config.optimizer.text_encoder_rate),  # 0.0: frozen
        "ss_lr_scheduler": config.optimizer.schedule,
        "ss_lr_warmup_steps": str(config.optimizer.warmup_steps),
        "ss_optimizer": config.optimizer.name,
        "ss_total_batch_size": str(config.batch_size * config.optimizer.accumulation),
        "ss_gradient_accumulation_steps": str(config.optimizer.accumulation),
        "ss_gradient_checkpointing": str(config.gradient_checkpointing),
        "ss_max_grad_norm": str(config.optimizer.clip_norm),
        "ss_mixed_precision": config.precision,
        "ss_seed": str(config.seed),
    }


def _network_args(config: AdapterConfig) -> dict[str, str]:
    """Texts, as kohya's are; the rank of convolutions is added when the file is written."""
    layers = config.layers
    patterns = {"layers_include": layers.include, "layers_exclude": layers.exclude}
    given = {name: " ".join(values) for name, values in patterns.items() if values}
    return {"algo": config.method, "layers": layers.which, **given}


def dataset_metadata(dataset: Dataset, name: str) -> dict[str, str]:
    """Pictures, buckets and caption tags, the tags under one key only: readers take the first."""
    folder = dataset.config.trigger_word or name
    folders: dict[str, dict[str, int]] = {}
    for item in dataset.items:
        entry = folders.setdefault(item.subset or folder, {"n_repeats": item.repeats, "img_count": 0})
        entry["img_count"] += 1
    tags = Counter(tag for caption in dataset.captions for tag in split_tags(caption))
    return {
        "ss_dataset_dirs": json.dumps(folders),
        "ss_bucket_info": json.dumps(_buckets(dataset)),
        "ss_tag_frequency": json.dumps({folder: dict(tags.most_common())}),
        "ss_shuffle_caption": str(dataset.config.captions.shuffle),
        "ss_keep_tokens": str(dataset.config.captions.keep_tags),
        "ss_caption_dropout_rate": str(dataset.config.captions.dropout),
        "ss_flip_aug": str(dataset.config.framing.flip),
        "ss_random_crop": str(dataset.config.framing.crop == "random"),
    }


def _buckets(dataset: Dataset) -> dict[str, object]:
    """Pictures of each size in pixels, and how far their shapes are from those of the pictures, on average."""
    frames = [item.frames[0] for item in dataset.items if item.frames]
    sizes = Counter(frame.size for frame in frames)
    buckets = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(sizes.items()))
    }
    errors = [
        abs(_aspect(item.frames[0].original) - _aspect(item.frames[0].size)) for item in dataset.items if item.frames
    ]
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0}


def _aspect(size: tuple[int, int]) -> float:
    return size[0] / size[1]


def _modelspec(run: Run, name: str) -> dict[str, str]:
    names, word, side = (
        _NAMES.get(run.denoiser.architecture),
        run.dataset.config.trigger_word,
        run.dataset.config.resolution,
    )
    entries = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{names.modelspec if names else run.denoiser.architecture}/lora",
        "modelspec.implementation": names.implementation if names else "trilora",
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.tags": "trilora",
        "modelspec.prediction_type": run.denoiser.prediction_type.removesuffix("_prediction"),
        "modelspec.trigger_phrase": word,
        "modelspec.usage_hint": f"Put {word} into the prompt." if word else "",
    }
    return {key: value for key, value in entries.items() if value}


# --- accessors ----------------------------------------------------------------


_SHOWN, _LONGEST = 300, 2000  # letters of a name and of all trigger words: a file can hold anything


@dataclass(frozen=True)
class RankSummary:
    """Ranks of an adapter: as stored, and how many singular values carry it (mean effective rank)."""

    layers: int
    least: int
    most: int
    effective: float

    def __str__(self) -> str:
        ranks = str(self.most) if self.least == self.most else f"{self.least} to {self.most}"
        return f"rank {ranks} (effective {self.effective:.1f}) in {self.layers} layers"


def architecture_of(adapter: Adapter) -> str:
    """ "sd15", "sdxl", "sd3", "flux", "toy", or "" when neither metadata nor layer names tell."""
    widths = {stem: layer.svd.vh.shape[-1] // math.prod(layer.kernel) for stem, layer in adapter.layers.items()}
    return guess_architecture(adapter.layers, adapter.metadata, widths)


def base_model(adapter: Adapter) -> str:
    """Name of the model that the adapter was trained on, or "" when the file does not say."""
    names = ("ss_sd_model_name", "trilora.base_name", "modelspec.architecture", "ss_base_model_version")
    return next((adapter.metadata[name] for name in names if adapter.metadata.get(name)), "")


def trigger_words(adapter: Adapter) -> tuple[str, ...]:
    """Words that call what was learned, each once; () when the file names none."""
    words = (word.strip() for word in adapter.metadata.get("modelspec.trigger_phrase", "")[:_LONGEST].split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def adapter_names(adapters: Sequence[Adapter]) -> list[str]:
    """What adapters call themselves, with a letter (A, B, …) where several do alike or one does not."""
    told = [
        clear_line(adapter.metadata.get("modelspec.title") or adapter.metadata.get("ss_output_name", ""), _SHOWN)
        for adapter in adapters
    ]
    return [
        name if name and told.count(name) == 1 else f"{name or 'adapter'} {chr(ord('A') + index)}"
        for index, name in enumerate(told)
    ]


def rank_summary(adapter: Adapter) -> RankSummary:
    """Ranks of all layers; raises InputError for an adapter without layers."""
    values = [layer.svd.s for layer in adapter.layers.values()]
    if not values:
        raise InputError("the adapter has no layers; train or load one first")
    ranks = [s.shape[-1] for s in values]
    effective = sum(float(effective_rank(s)) for s in values) / len(values)
    return RankSummary(len(values), min(ranks), max(ranks), effective)


def describe(adapter: Adapter) -> str:
    """Three lines for people: base model, ranks, trigger words; raises InputError for an adapter without layers."""
    architecture, base = architecture_of(adapter), base_model(adapter)
    told = f"{base} ({architecture})" if base and architecture else base or architecture or "not said"
    words = ", ".join(trigger_words(adapter)) or "none named"
    told, words = clear_line(told, _SHOWN), clear_line(words, _LONGEST)
    return f"base model: {told}\n{rank_summary(adapter)}\ntrigger words: {words}"
