"""Calibration: one streamed pass over a training set and one over prior prompts, which keeps no activation.

The text encoders' layers are not calibrated: they start as without calibration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .batches import PLAIN, Line, Row, of_one_shape
from .branch import Target
from .calibration import Calibration, Facts
from .config import LayerConfig
from .data.dataset import Dataset, Sample
from .errors import InputError
from .inputs import Inputs
from .keys import is_text
from .layers import DEFAULT
from .moments import LEARNED, PRIOR, Storage
from .objective import DRAWS
from .protocols import Denoiser
from .start import derive_seed

__all__ = ["Progress", "calibrate", "check_calibration", "facts_of"]

LOOKS = 64  # at the training set: the same number of looks at the prior is its least
_BATCH = 4  # looks at once, without gradients: less memory than a training step of one

Progress = Callable[[int, int], None]  # (looks done, all of them); may raise to stop


def facts_of(
    denoiser: Denoiser,
    dataset: Dataset,
    prompts: Sequence[str],
    encoder: str,
    layers: LayerConfig = DEFAULT,
    *,
    looks: int = LOOKS,
    seed: int = 0,
    storage: tuple[Storage, Storage] = (LEARNED, PRIOR),
) -> Facts:
    """What the calibration with these prior prompts would depend on; `encoder` is the fingerprint of captions."""
    return Facts(
        architecture=denoiser.architecture,
        base_fingerprint=denoiser.base_fingerprint,
        base_name=denoiser.base_name,
        data_hash=dataset.content_hash,
        resolution=dataset.config.resolution,
        prompts_hash=_hash([encoder, *prompts]),
        layers_hash=_hash(sorted(denoiser.targets(layers))),
        looks=looks,
        prior_looks=max(looks, len(prompts)),
        seed=seed,
        learned=storage[0],
        prior=storage[1],
    )


@torch.no_grad()
def calibrate(
    denoiser: Denoiser,
    dataset: Dataset,
    prior: Sequence[Any],
    facts: Facts,
    layers: LayerConfig = DEFAULT,
    progress: Progress | None = None,
) -> Calibration:
    """Gather the moments of every chosen layer's input: `facts.looks` looks at `dataset` and at least as many at prior.

    `prior` is the conditioning of the prior prompts, each seen on noise of the mean and spread that the training
    set's latents have. Times are drawn evenly, whatever the training draws. The model is as it was at every exit.
    """
    if not prior:
        raise InputError("there is no prior prompt; give some, or none to have the built-in list")
    targets = denoiser.targets(layers)
    tell, total = progress or (lambda done, all_: None), facts.looks + facts.prior_looks
    line = Line(dataset, facts.seed, 1, 1.0, "calibration", PLAIN)
    latents = _Latents()
    seen = (latents.note(line.batch(number)[0]) for number in range(facts.looks))
    drawn = (latents.row(prior, number, facts.seed) for number in range(facts.prior_looks))
    tell(0, total)
    learned = _gather(denoiser, Inputs(targets, facts.learned, facts.seed), seen, lambda n: tell(n, total))
    found = learned.moments()
    rest = Inputs(targets, facts.prior, facts.seed, learned.leaders)
    _gather(denoiser, rest, drawn, lambda n: tell(facts.looks + n, total))
    return Calibration(facts, learned.by_stem(), found, rest.moments())


def check_calibration(
    calibration: Calibration, denoiser: Denoiser, dataset: Dataset, targets: Mapping[str, Target]
) -> None:
    """Raise InputError for a calibration of another model, other layers (but text encoders'), or another resolution."""
    facts = calibration.facts
    if (facts.architecture, facts.base_fingerprint) != (denoiser.architecture, denoiser.base_fingerprint):
        raise InputError(
            f"the calibration is for {facts.base_name} ({facts.architecture}), this model is {denoiser.base_name}"
            f" ({denoiser.architecture}) or has other weights; calibrate this model"
        )
    if facts.resolution != dataset.config.resolution:
        raise InputError(
            f"the calibration was made at resolution {facts.resolution}, the data set has {dataset.config.resolution};"
            " calibrate with this data set"
        )
    targets = {stem: target for stem, target in targets.items() if not is_text(stem)}
    absent = [stem for stem in targets if stem not in calibration.inputs]
    if absent:
        raise InputError(
            f"the calibration lacks {len(absent)} of the layers to train, such as {absent[0]}; calibrate with the same"
            " choice of layers"
        )
    for stem, target in targets.items():
        given, wanted = calibration.learned[calibration.inputs[stem]].width, target.shape[1]
        if given != wanted:
            raise InputError(f"the calibration has {given} inputs for {stem}, this model's has {wanted}; calibrate it")


def _gather(denoiser: Denoiser, inputs: Inputs, rows: Iterable[Row], tell: Callable[[int], None]) -> Inputs:
    """Run the model on all rows, a few at a time, with the inputs of its layers summed up."""
    done, rows = 0, iter(rows)
    with inputs.watched():
        while batch := list(islice(rows, _BATCH)):
            for group in of_one_shape(batch):
                latents = torch.stack([row.sample.latents for row in group]).to(inputs.device)
                noise = torch.stack([row.noise for row in group]).to(inputs.device)
                times = denoiser.times(torch.cat([row.u for row in group]))
                denoiser.predict(latents, noise, times, [row.sample.cond for row in group])
            done += len(batch)
            tell(done)
    return inputs


class _Latents:
    """Mean and spread of each channel of the latents seen, and their sizes: what noise in their place is drawn with."""

    def __init__(self) -> None:
        self._sizes: list[torch.Size] = []
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []

    def note(self, row: Row) -> Row:
        """Take one look into account, and pass it on."""
        latents = row.sample.latents.double()
        self._sizes.append(row.sample.latents.shape)
        self._means.append(latents.mean(dim=(1, 2)))
        self._squares.append(latents.square().mean(dim=(1, 2)))
        return row

    def row(self, prior: Sequence[Any], number: int, seed: int) -> Row:
        """Look number `number` at the prior: its prompts and the sizes of the training set in turn."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "calibration prior", number))
        mean = torch.stack(self._means).mean(dim=0)
        spread = (torch.stack(self._squares).mean(dim=0) - mean.square()).clamp_min(0.0).sqrt()
        size = self._sizes[number % len(self._sizes)]
        drawn = torch.randn(size, generator=generator)
        latents = drawn * spread.view(-1, 1, 1).float() + mean.view(-1, 1, 1).float()
        noise = torch.randn(size, generator=generator)
        u = DRAWS[PLAIN.timesteps](1, generator, PLAIN)
        return Row(Sample(latents, prior[number % len(prior)]), noise, u, 1.0)


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
