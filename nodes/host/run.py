"""One training run inside the host: prepare, train to the loras folder, tell the node how it goes."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import torch

from ...trilora_core.adapter import TriLoRA
from ...trilora_core.atomic import write_atomic
from ...trilora_core.calibrate import check_calibration
from ...trilora_core.calibration import Calibration
from ...trilora_core.checkpoint import goes_on, state_path
from ...trilora_core.config import TrainConfig
from ...trilora_core.data import Dataset
from ...trilora_core.errors import InputError
from ...trilora_core.fileformat import Adapter
from ...trilora_core.keys import is_text
from ...trilora_core.memory import OUT_OF_MEMORY, Estimate, make_room, out_of_memory, preflight, spilled
from ...trilora_core.monitor import Measure, split
from ...trilora_core.preserve import Kept
from ...trilora_core.previews import previews_folder
from ...trilora_core.session import Listeners, Outcome, adapter_hash, find_finished, train_to_file
from ...trilora_core.spectrum import Spectrum
from ...trilora_core.train import Run, Step, data_hash, planned, run_fingerprint, settled, targets_of
from . import models
from .denoiser import HostDenoiser
from .events import Progress, announce, check_interrupt, interrupt_type, summary
from .paths import output_folder, unique_file
from .preserve import asked, prior_captions
from .preview import HostPreviewer
from .routes import running
from .text import HostTextEncoder, text_encoder_to_train
from .training import trainable_patcher, training

__all__ = ["train_in_host"]

EVENTS_PER_SECOND = 4  # more would only load the browser
GUIDANCE = {"flux": 1.0, "sd3": 4.5}  # of previews: what is usual; for the others the previewer's own

log = logging.getLogger("trilora")


@dataclass(frozen=True)
class _Start:
    """What an adapter starts from besides the options: another one, a calibration, or nothing."""

    adapter: Adapter | None
    hash: str
    calibration: Calibration | None
    calibration_key: str


def train_in_host(
    model: Any,
    data: Dataset,
    name: str,
    config: TrainConfig,
    *,
    resume: bool,
    start_from: Adapter | None,
    prior: Dataset | None,
    node_id: str | None,
    clip: Any = None,
    vae: Any = None,
    calibration: Calibration | None = None,
) -> tuple[Outcome, str]:
    """Train on the host's model and write loras/trilora/<name>.safetensors; the outcome and a sentence about it.

    A finished run with the same options, pictures, base and start is read from the disk. The host's interrupt is
    passed on after what was trained has been saved; a stop that was asked for over the host's server ends the run and
    gives what it has learned. `clip` and `vae` are the data set's: they draw the previews, if any are wanted, and the
    clip is trained along if the options say so; `calibration` is what the init "contrast" starts from. Raises
    InputError for what cannot be trained.
    """
    held_out = None
    if config.monitor.validation_share:
        data, held_out = split(data, config.monitor.validation_share, config.seed)
    patcher = trainable_patcher(model)
    config = settled(planned(config, data), models.prediction_type(patcher))
    start_hash = "" if start_from is None else adapter_hash(start_from)
    key = _calibration_key(config, calibration)
    parts = (config, data_hash(data, prior), models.fingerprint(patcher), start_hash, key)
    output, finished = _place(name, run_fingerprint(*parts))
    if finished is not None:
        text = f"Already trained: read from {finished.path}. Change the seed or a setting to train anew."
        return finished, _said(node_id, f"{text} {finished.note}".strip())
    text_encoder = text_encoder_to_train(patcher, data, prior, config, clip)
    previewer = _previewer(patcher, data, config, clip, vae, text_encoder)
    captions = prior_captions(data, config, clip, vae)
    if resume:
        _take_over(name, output, run_fingerprint(*parts, with_steps=False), config.steps)
    report = _Reporter(node_id, config.steps)
    report.progress.text("preparing the model")
    with training(patcher, None if text_encoder is None else text_encoder.patcher):
        denoiser = HostDenoiser(patcher)
        kept = None if captions is None else asked(denoiser, captions, data, config, node_id)
        start = _Start(start_from, start_hash, calibration if key else None, key)
        run = _prepare(denoiser, data, prior, config, start, text_encoder, kept)
        with running(run, node_id):
            memory = _measure(run, report)
            outcome = _train(run, output, report, memory, resume=resume, held_out=held_out, previewer=previewer)
    return outcome, _said(node_id, _summed_up(outcome, output, config))


def _calibration_key(config: TrainConfig, calibration: Calibration | None) -> str:
    """What the start depends on besides the options; "" where they want no calibration."""
    if config.adapter.init != "contrast":
        return ""
    if calibration is None:
        raise InputError(
            "init of the options is contrast, and calibration is not connected; connect TriLoRA Calibrate, or choose"
            " another init"
        )
    return calibration.facts.key


def _previewer(
    patcher: Any, data: Dataset, config: TrainConfig, clip: Any, vae: Any, text_encoder: HostTextEncoder | None
) -> HostPreviewer | None:
    """What draws the previews, at the data set's resolution; None if none are wanted.

    Its prompts are encoded, but where the text encoder is trained: there they will be, each time.
    """
    if not config.monitor.preview_every:
        return None
    if clip is None or vae is None:
        raise InputError(
            "previews are wanted, but this data set has no clip and vae to draw them with; take TriLoRA Dataset"
            " (folder) or (images), or set preview_every of TriLoRA Monitor Options to 0"
        )
    watch = config.monitor
    side = watch.preview_resolution or data.config.resolution
    cfg = watch.preview_cfg or GUIDANCE.get(models.detect(patcher.model).name, 7.0)
    live = None if text_encoder is None else text_encoder.prompt
    previewer = HostPreviewer(
        patcher, clip, vae, width=side, height=side, steps=watch.preview_steps, cfg=cfg, live=live
    )
    if live is None:
        previewer.encode(config.monitor.preview_prompts)
    return previewer


def _summed_up(outcome: Outcome, output: Path, config: TrainConfig) -> str:
    """How a run ended and where its files are."""
    early = f"Stopped early, at step {outcome.steps_done} of {config.steps}"
    told = [f"{'Trained' if outcome.finished else early}: saved as {outcome.path}", outcome.note]
    folder = previews_folder(output)
    if config.monitor.preview_every and folder.is_dir():
        told.append(f"Previews are in {folder}")
    return "\n".join(line for line in told if line)


def _take_over(name: str, output: Path, fingerprint: str, steps: int) -> None:
    """Give `output` the state that a finished run of this name kept, if it had the same settings but for fewer steps.

    The finished file keeps its name and its bytes.
    """
    state = state_path(output)
    if state.exists():
        return
    kept = (output.with_name(f"{name}.state"), *sorted(output.parent.glob(f"{escape(name)}_*.state")))
    source = next((path for path in kept if goes_on(path, fingerprint, steps)), None)
    if source is not None:
        write_atomic(state, partial(shutil.copyfile, source))


def _place(name: str, fingerprint: str) -> tuple[Path, Outcome | None]:
    """The file to write, and the outcome if this very run lies there: name, name_2 … up to the first free one."""
    folder = output_folder()
    free = unique_file(folder, name)
    for path in (folder / f"{name}.safetensors", *sorted(folder.glob(f"{escape(name)}_*.safetensors"))):
        finished = find_finished(path, fingerprint)
        if finished is not None:
            return path, finished
    return free, None


def _prepare(
    denoiser: HostDenoiser,
    data: Dataset,
    prior: Dataset | None,
    config: TrainConfig,
    start: _Start,
    text_encoder: HostTextEncoder | None,
    kept: Kept | None,
) -> Run:
    targets = targets_of(config, denoiser, text_encoder)
    if start.calibration is not None:
        check_calibration(start.calibration, denoiser, data, targets)
    adapter = TriLoRA.create(
        targets,
        config.adapter,
        seed=config.seed,
        data_hash=data.content_hash,  # a start alike with and without prior pictures, as on the command line
        device=denoiser.device,
        calibration=start.calibration,
    )
    if start.adapter is not None:
        adapter.start_from(start.adapter.layers)
    run = Run(config, denoiser, data, adapter, prior, text_encoder, kept)
    run.start_hash, run.calibration_key = start.hash, start.calibration_key
    count = sum(parameter.numel() for parameter in adapter.trainable())
    of_text = sum(map(is_text, adapter.branches))
    beside_model = f" ({of_text} of the text encoder)" if of_text else ""
    size = f"{len(adapter.branches)} layers{beside_model}, {count} parameters, {summary(data)}"
    beside = "" if prior is None else f", prior: {summary(prior)}"
    base = f"base {denoiser.base_name} ({denoiser.architecture})"
    log.info("training %s: %s%s, %s", config.adapter.method, size, beside, base)
    return run


def _measure(run: Run, report: _Reporter) -> Estimate:
    """Say in the log and on the node what the run will need of the device's memory."""
    report.progress.text("measuring memory")
    found = preflight(run)
    log.log(logging.INFO if found.fits else logging.WARNING, "memory: %s", "\n".join(found.lines()))
    report.progress.text("\n".join(found.lines()))
    report.device = run.device
    report.short = "" if found.fits else "memory may not suffice: see ComfyUI's log"
    return found


def _train(
    run: Run,
    output: Path,
    report: _Reporter,
    memory: Estimate,
    *,
    resume: bool,
    held_out: Dataset | None,
    previewer: HostPreviewer | None,
) -> Outcome:
    stopped: list[Path] = []
    try:
        return train_to_file(
            run,
            output,
            metadata={},
            on_step=report.step,
            resume=resume,
            interrupts=(interrupt_type(),),
            on_stopped=stopped.append,
            held_out=held_out,
            previewer=previewer,
            listeners=Listeners(report.measured, report.drawn, report.problem, report.looked),
        )
    except OUT_OF_MEMORY as error:
        make_room(run, error)
        raise InputError(out_of_memory(run, memory, stopped[0] if stopped else None)) from error
    finally:
        if stopped:
            _said(report.node_id, f"stopped at step {run.step} of {run.config.steps}; kept as {stopped[0]}")


class _Reporter:
    """Turns steps into the node's progress bar and text, a few times a second, and polls the host's interrupt."""

    def __init__(self, node_id: str | None, steps: int) -> None:
        self.node_id = node_id
        self.progress = Progress(node_id, steps)
        self.device = torch.device("cpu")
        self.short = ""  # a line about memory, below every text
        self._measured = ""  # lines of the last measure and of the last previews
        self._drawn = ""
        self._looked = ""  # a line of the last look at the singular values
        self._smooth: float | None = None
        self._pace: float | None = None  # seconds per step, smoothed
        self._shown = 0.0

    def step(self, step: Step) -> None:
        """Hear of one step; raises the host's interrupt."""
        if step.dropped:
            log.warning("step %d was left out: %s", step.step, step.dropped)
        else:
            self._smooth = _blend(self._smooth, step.loss)
        self._pace = _blend(self._pace, step.seconds)
        now = time.monotonic()
        if now - self._shown >= 1 / EVENTS_PER_SECOND or step.step == step.steps:
            self._shown = now
            self.progress.update(step.step, self._text(step))
        check_interrupt()

    def measured(self, measure: Measure) -> None:
        """Hear of a measure."""
        numbers = f"validation {measure.validation:.4f} · drift {measure.drift:.4f}"
        self._measured = f"\n{numbers} at step {measure.step}"
        log.info("step %d: %s", measure.step, numbers)

    def drawn(self, step: int, paths: list[Path]) -> None:
        """Hear of pictures that were drawn."""
        self._drawn = f"\npreviews of step {step} in {paths[0].parent}"

    def looked(self, spectrum: Spectrum) -> None:
        """Hear of a look at the singular values."""
        numbers = f"effective rank {spectrum.effective_rank:.3g} · norm {spectrum.norm:.3g}"
        self._looked = f"\n{numbers} at step {spectrum.step}"
        log.info("step %d: %s", spectrum.step, numbers)

    def problem(self, text: str) -> None:
        """Hear of what went wrong without ending the run."""
        self._drawn = f"\n{text}"
        log.warning("%s", text)

    def _text(self, step: Step) -> str:
        pace = self._pace or step.seconds
        left = _clock(pace * (step.steps - step.step))
        loss = "-" if self._smooth is None else f"{self._smooth:.4f}"
        note = f"\nstep left out: {step.dropped}" if step.dropped else ""
        self.short = spilled(self.device) or self.short
        note += self._measured + self._looked + self._drawn + (f"\n{self.short}" if self.short else "")
        return f"step {step.step} of {step.steps} · loss {loss} · {pace:.2f} s/step · {left} left{note}"


def _blend(smooth: float | None, value: float) -> float:
    return value if smooth is None else 0.95 * smooth + 0.05 * value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _said(node_id: str | None, text: str) -> str:
    """Leave a sentence on the node and in the log; newer front ends show no other text of a node."""
    log.info("%s", text)
    announce(node_id, text)
    return text
