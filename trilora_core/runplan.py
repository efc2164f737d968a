"""What a run comes to: options with nothing left open, the layers they choose, and the hash of all it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

from .branch import Target
from .config import TrainConfig
from .data.dataset import Dataset
from .errors import InputError
from .preserve import prompts_hash
from .protocols import Denoiser, TextEncoder

__all__ = ["check_text", "data_hash", "planned", "run_fingerprint", "settled", "targets_of"]


def targets_of(config: TrainConfig, denoiser: Denoiser, text: TextEncoder | None = None) -> dict[str, Target]:
    """The layers that the options choose, of the denoiser and of the text encoders where these are trained too."""
    layers = config.adapter.layers
    return denoiser.targets(layers) | ({} if text is None else text.targets(layers))


def check_text(config: TrainConfig, text: TextEncoder | None, data: Sequence[Dataset]) -> None:
    rate = config.optimizer.text_encoder_rate
    if bool(rate) != (text is not None):
        raise InputError(
            f"text_encoder_rate is {rate:g}, but the run was given {'no' if text is None else 'a'} text encoder; set it"
            f" to 0, or train a model whose text encoders can be trained (SD 1.5, SDXL)"
        )
    if text is not None and not all(dataset.texts for dataset in data):
        raise InputError(
            "text_encoder_rate is set, but this data set holds encoded captions without their text; make it from"
            " pictures with captions, or set text_encoder_rate to 0"
        )


def settled(config: TrainConfig, prediction_type: str) -> TrainConfig:
    """The options with what "auto" stands for on a model of this kind, so that both are one run.

    Flow models are trained on logit-normal times (Esser et al. 2024, section 3.1), the others on uniform ones.
    """
    if config.loss.timesteps != "auto":
        return config
    draw = "logit-normal" if prediction_type == "flow" else "uniform"
    return replace(config, loss=replace(config.loss, timesteps=draw))


def planned(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The options with the number of steps that their epochs make on this data set, if they ask for epochs."""
    if not config.epochs:
        return config
    looks = config.epochs * dataset.epoch_size
    return replace(config, steps=-(-looks // (config.batch_size * config.optimizer.accumulation)))


def data_hash(dataset: Dataset, prior: Dataset | None) -> str:
    """What a run sees, as a hash."""
    return dataset.content_hash if prior is None else f"{dataset.content_hash} {prior.content_hash}"


def run_fingerprint(
    config: TrainConfig,
    data_hash: str,
    base_fingerprint: str,
    start_hash: str = "",
    calibration_key: str = "",
    *,
    with_steps: bool = True,
) -> str:
    """What the result of a run depends on, as a hash: options, data, base model, start; `steps` may be left out.

    Pictures that are held out are missing in the data; what else is watched changes nothing but the end.
    """
    options, watch = asdict(config), config.monitor
    del options["save_every"], options["epochs"], options["monitor"]  # the steps that epochs make are there
    del options["gradient_checkpointing"]  # the same gradients: where memory ran out, a resumed run may turn it on
    if config.preserve.base == "off":
        del options["preserve"]  # its prompts are not used
    else:
        options["kept"] = prompts_hash(config.preserve)
    if not with_steps:
        del options["steps"]
    elif watch.patience or watch.keep_best:
        options["best"] = (watch.validate_every, watch.patience, watch.keep_best)
    parts: tuple[object, ...] = (sorted(options.items()), data_hash, base_fingerprint, start_hash)
    parts += (calibration_key,) if calibration_key else ()
    return hashlib.sha256(repr(parts).encode()).hexdigest()
