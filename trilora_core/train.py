"""The training loop: a generator of Step records over the protocols of a model."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .adapter import TriLoRA
from .batches import Line, Row, learned_of, masks_of, of_one_shape, targets_given
from .branch import Target
from .config import TrainConfig
from .config_json import to_json
from .crew import ALONE, Crew, add_up, share_of
from .data.dataset import Dataset
from .ema import Result
from .fileformat import Adapter
from .objective import min_snr_weights, mse_per_sample
from .optim import check_optimizer, load_optimizer_state, make_optimizer, optimizer_state, rate_at, set_rate
from .precision import DTYPES, autocast, check_precision
from .preserve import Kept, KeptLine, check_kept
from .protocols import Denoiser, TextEncoder
from .runplan import check_text, data_hash, run_fingerprint, settled, targets_of
from .transfer import upload

__all__ = [
    "Run",
    "Step",
    "TrainingDiverged",
    "train",
]

_BAD_STEPS = 3  # dropped steps in a row that end a run


@dataclass(frozen=True)
class Step:
    """One optimizer step: `step` counts from 1; `dropped` says why the step was left out, or is empty."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    dropped: str = ""


class TrainingDiverged(RuntimeError):
    """Three steps in a row had a non-finite loss or gradient; the adapter is as the last good step found it.

    `step` is the last of them, which nobody heard of in another way.
    """

    def __init__(self, message: str, step: Step) -> None:
        super().__init__(message)
        self.step = step


class Run:
    """The state of one training run; `train` moves it, anyone may look at it or ask it to stop.

    Order, noise and times are functions of the seed and of the number of the look at a picture, never of a generator
    that lives on: a resumed run draws what the uninterrupted one would have drawn, in whatever batches.
    """

    def __init__(
        self,
        config: TrainConfig,
        denoiser: Denoiser,
        dataset: Dataset,
        adapter: TriLoRA,
        prior: Dataset | None = None,
        text: TextEncoder | None = None,
        kept: Kept | None = None,
        *,
        crew: Crew = ALONE,
        at_once: int = 0,
    ) -> None:
        """`prior` holds pictures of the class, whose loss keeps the base model's idea of it (Ruiz et al. 2023).

        `text` are the model's text encoders where the options train them too, `kept` what the base predicts besides
        where they ask to preserve it. In a `crew` this process takes its share of every batch, which is that of all;
        `at_once` limits the pictures of a forward where the share is larger than that, 0: it does not. Raises
        InputError where something is to be trained or preserved and missing, a data set holds no captions but only
        what was encoded of them, or the model cannot be given the wanted precision.
        """
        config = settled(config, denoiser.prediction_type)
        check_text(config, text, [dataset] if prior is None else [dataset, prior])
        check_kept(config.preserve, kept)
        self.config = config
        self.denoiser = denoiser
        self.dataset = dataset
        self.prior = prior
        self.text = text
        self.kept = kept
        self.crew = crew
        self.at_once = at_once
        self._lines: list[Line | KeptLine] = [Line(dataset, config.seed, config.batch_size, 1.0, "order", config.loss)]
        if prior is not None:
            self._lines.append(
                Line(prior, config.seed, config.prior_batch_size, config.prior_weight, "prior", config.loss)
            )
        if kept is not None:
            self._lines.append(KeptLine(kept, config.seed, config.batch_size))
        self.trainable = adapter
        check_optimizer(config.optimizer, config.ema)
        self.optimizer = make_optimizer(adapter, config.optimizer)
        self._result = Result(adapter.trainable(), self.optimizer, config.ema)
        self.step = 0
        self.losses: list[float] = []
        self.start_hash = ""  # of the adapter that this run continues, if any
        self.calibration_key = ""  # of the calibration that the adapter starts from, if any
        self.whole = True  # False where a step was cut off between the optimizer's first number and its last
        self._bad = 0
        self._stop = False
        self._save = False
        self._preview = False
        self._device = adapter.trainable()[0].device
        own = [denoiser.compute_dtype] if text is None else [denoiser.compute_dtype, text.compute_dtype]
        check_precision(config.precision, own)
        half = torch.float16 in [DTYPES.get(config.precision, dtype) for dtype in own]
        # 1024 keeps fp16 gradients of a mean loss clear of underflow without overflowing at once
        self.scaler = torch.amp.GradScaler(self._device.type, init_scale=1024.0, enabled=half)

    def request_stop(self) -> None:
        """Ask the loop to end after the step at hand; safe from another thread."""
        self._stop = True

    @property
    def stop_requested(self) -> bool:
        """Whether someone asked the loop to end."""
        return self._stop

    def request_save(self) -> None:
        """Ask for the adapter and the state of the step at hand, beside the result; safe from another thread."""
        self._save = True

    def request_preview(self) -> None:
        """Ask for the previews of the step at hand; safe from another thread."""
        self._preview = True

    def save_requested(self) -> bool:
        """Whether someone asked for a save since the last call."""
        asked, self._save = self._save, False
        return asked

    def preview_requested(self) -> bool:
        """Whether someone asked for previews since the last call."""
        asked, self._preview = self._preview, False
        return asked

    @property
    def device(self) -> torch.device:
        """Where the adapter is, and the model computes."""
        return self._device

    @property
    def copies(self) -> int:
        """How many times the size of the trained parameters is kept of what the last good step found."""
        return self._result.copies

    def targets(self) -> dict[str, Target]:
        """The layers that are adapted, by canonical file stem."""
        return targets_of(self.config, self.denoiser, self.text)

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes, one by one."""
        return self.denoiser.blocks() + ([] if self.text is None else self.text.blocks())

    def shapes(self, batch: int) -> list[Hashable]:
        """The shape of each picture of this process's share of batch number `batch` (from 0), prior ones included."""
        shapes = [shape for line in self._lines for shape in line.shapes(batch)]
        return [shapes[number] for number in share_of(len(shapes), self.crew)]

    def rows(self, batch: int) -> list[Row]:
        """This process's share of batch number `batch` (from 0) and of what is learned beside it; only that is loaded.

        All lines are one row for it: each process has as many looks as another, or one more or less.
        """
        looks = [(line, number) for line in self._lines for number in range(len(line.shapes(batch)))]
        return [line.row(batch, number) for line, number in (looks[i] for i in share_of(len(looks), self.crew))]

    def rehearse(self, batch: int, *, accumulated: bool = False) -> None:
        """Forward and backward of batch number `batch` (from 0), whose result is thrown away.

        `accumulated`: gradients of other batches are there already, as they are from the second one of a step on.
        """
        try:
            if accumulated:
                for parameter in self.trainable.trainable():
                    parameter.grad = torch.zeros_like(parameter)
            self._backward(batch - self.step * self.config.optimizer.accumulation)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def adapter(self) -> Adapter:
        """The adapter as it would be saved now, in canonical form, without metadata."""
        with self.as_saved():
            return Adapter(self.trainable.canonical(), {})

    def as_saved(self) -> AbstractContextManager[None]:
        """Inside, the parameters are what would be saved: their mean with EMA or schedule-free, else as they are.

        Every exit gives training its own parameters back, bit for bit. It may be nested; steps and `state` are for
        outside.
        """
        return self._result.shown()

    def fingerprint(self, *, with_steps: bool = True) -> str:
        """The hash of `run_fingerprint` for this run."""
        hashes = (data_hash(self.dataset, self.prior), self.denoiser.base_fingerprint, self.start_hash)
        return run_fingerprint(self.config, *hashes, self.calibration_key, with_steps=with_steps)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors by name, and values that JSON can hold."""
        tensors, updates = self._result.state()
        moments, numbers = optimizer_state(self.optimizer)
        tensors |= {f"parameter.{name}": p.detach() for name, p in self.trainable.named_parameters()}
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)  # as JSON, a million would be 20 MB
        values = {
            "step": self.step,
            "optimizer": numbers,
            "ema": updates,
            "bad": self._bad,
            "scaler": self.scaler.state_dict(),
            "processes": self.crew.size,
            "fingerprint": self.fingerprint(with_steps=False),
            "config": to_json(self.config),
        }
        return tensors, values

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` returned; the caller has compared the fingerprints."""
        for name, parameter in self.trainable.named_parameters():
            parameter.copy_(tensors[f"parameter.{name}"])
        self._result.load_state(tensors, values["ema"])
        prefix = "optimizer."
        moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        load_optimizer_state(self.optimizer, moments, values["optimizer"])
        self.step = values["step"]
        self.losses = tensors["losses"].tolist()
        self._bad = values["bad"]
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])

    def advance(self) -> Step:
        """Do one optimizer step and say how it went; raises TrainingDiverged at the third bad one in a row."""
        started = time.perf_counter()
        rate = set_rate(self.optimizer, rate_at(self.config.optimizer, self.step, self.config.steps))
        total = sum(self._backward(micro) for micro in range(self.config.optimizer.accumulation))
        if self.crew.size > 1:
            total = add_up(self.trainable.trainable(), torch.as_tensor(total), self.crew)
        if self.config.loss.orthogonality:
            self._backward_penalty()  # the same in every process of a crew
        loss, norm = self._clip(total)
        dropped = _why_drop(loss, norm)
        if dropped and not all(bool(p.isfinite().all()) for p in self.trainable.trainable()):
            self._result.go_back()  # the step before broke them, and this may be the last one
        if not dropped:
            self._result.keep()  # what the step makes of the parameters is not yet proven
            self.whole = False
            self.scaler.step(self.optimizer)
            self._result.stepped()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1  # only now: a step that ran out of memory was none, and is done again by a resumed run
        self.whole = True
        self.losses.append(loss)
        self._bad = self._bad + 1 if dropped else 0
        step = Step(self.step, self.config.steps, loss, rate, norm, time.perf_counter() - started, dropped)
        if self._bad >= _BAD_STEPS:
            self._result.go_back()
            raise TrainingDiverged(_diverged(self.step, dropped), step)
        return step

    def come_back(self) -> None:
        """Give training its parameters back where Ctrl-C cut off an exit of `as_saved`."""
        self._result.come_back()

    def undo(self) -> None:
        """Make the adapter what it was before a step that was cut off; the optimizer's own numbers stay torn."""
        self._result.go_back()

    def _backward(self, micro: int) -> Tensor:
        """Forward and backward of this process's share of one batch; its share of the loss, without waiting for it."""
        step = self.step * self.config.optimizer.accumulation + micro
        total = torch.zeros((), device=self._device)
        with self.trainable.rank_dropout(self.config.seed, step):
            for group in of_one_shape(self.rows(step), self.at_once):
                loss = self._loss(group) / self.config.optimizer.accumulation
                self.scaler.scale(loss).backward()
                total += loss.detach()
        return total

    def _backward_penalty(self) -> None:
        """Add the gradient of the penalty on U and V, once for each optimizer step; the loss reported is without it."""
        penalty = self.config.loss.orthogonality * self.trainable.orthogonality()
        if penalty.requires_grad:  # not where up and down are both held
            self.scaler.scale(penalty).backward()

    def _loss(self, rows: Sequence[Row]) -> Tensor:
        """The weighted sum of the losses of samples of one shape, in one forward."""
        clean = upload(torch.stack([row.sample.latents for row in rows]), self._device)
        noise = upload(torch.stack([row.noise for row in rows]), self._device)
        times = self.denoiser.times(torch.cat([row.u for row in rows]))
        with autocast(self.config.precision, self._device):
            prediction, target = self.denoiser.predict(clean, noise, times, self._cond(rows))
            target = targets_given(rows, target)
        weights = upload(torch.tensor([row.weight for row in rows]), self._device)
        if self.config.loss.min_snr_gamma:
            snr, kind = self.denoiser.snr(times), self.denoiser.prediction_type
            factors = upload(min_snr_weights(snr, self.config.loss.min_snr_gamma, kind), self._device)
            weights = weights * torch.where(upload(learned_of(rows), self._device), factors, 1.0)
        mask = masks_of([row.sample for row in rows])
        losses = mse_per_sample(prediction, target, None if mask is None else upload(mask, self._device))
        return losses @ weights

    @torch.no_grad()
    def predict(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Prediction and regression target for samples of one shape, (B, C, h, w), as training computes them."""
        clean = upload(torch.stack([row.sample.latents for row in rows]), self._device)
        noise = upload(torch.stack([row.noise for row in rows]), self._device)
        times = self.denoiser.times(torch.cat([row.u for row in rows]))
        with autocast(self.config.precision, self._device):
            return self.denoiser.predict(clean, noise, times, self._cond(rows))

    def _cond(self, rows: Sequence[Row]) -> list[Any]:
        """What was encoded beforehand, or where the text encoders learn, what they make of the captions now."""
        cond = [row.sample.cond for row in rows]
        if self.text is None:
            return cond
        texts = [row.sample.text for row in rows]
        assert None not in texts  # check_text
        return self.text.encode(cast("list[str]", texts), cond)

    def _clip(self, loss: Tensor | int) -> tuple[float, float]:
        """Clip the gradients; the loss and their norm before it, in the one synchronisation of a step."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.optimizer.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.trainable.trainable(), limit)
        values: list[float] = torch.stack([torch.as_tensor(loss).float(), norm.float()]).tolist()
        return values[0], values[1]


def train(run: Run) -> Generator[Step, None, None]:
    """Advance the run until its steps are done or a stop is asked for; the caller owns the contexts."""
    while run.step < run.config.steps and not run.stop_requested:
        yield run.advance()


def _why_drop(loss: float, norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss was {loss}"
    return "" if math.isfinite(norm) else f"the gradient's norm was {norm}"


def _diverged(step: int, why: str) -> str:
    return (
        f"step {step}: {why}, the {_BAD_STEPS}rd step in a row without a usable gradient; the run was stopped and the"
        " adapter kept as its last good step found it. Lower learning_rate, or have the model compute in bf16 or fp32"
    )
