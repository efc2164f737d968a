"""One training run inside the host: prepare, train to the loras folder, tell the node how it goes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from ...trilora_core.adapter import TriLoRA
from ...trilora_core.atomic import write_atomic
from ...trilora_core.calibrate import check_calibration
from ...trilora_core.calibration import Calibration
from ...trilora_core.checkpoint import goes_on, state_path
from ...trilora_core.config import TrainConfig
from ...trilora_core.data import Dataset
from ...trilora_core.errors import InputError
from ...trilora_core.fileformat import Adapter
from ...trilora_core.keeper import Outcome
from ...trilora_core.keys import is_text
from ...trilora_core.memory import OUT_OF_MEMORY, Estimate, make_room, out_of_memory, preflight
from ...trilora_core.monitor import split
from ...trilora_core.preserve import Kept
from ...trilora_core.previews import previews_folder
from ...trilora_core.protocols import Previewer
from ...trilora_core.runplan import data_hash, planned, run_fingerprint, settled, targets_of
from ...trilora_core.session import adapter_hash, find_finished, train_to_file
from ...trilora_core.train import Run
from . import models
from .denoiser import HostDenoiser
from .events import interrupt_type, summary
from .paths import output_folder, unique_file
from .preserve import asked, prior_captions
from .preview import HostPreviewer
from .reporter import Reporter
from .text import HostTextEncoder, text_encoder_to_train
from .training import trainable_patcher, training

__all__ = ["train_in_host"]

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
    workflow: str | None = None,
    clip: Any = None,
    vae: Any = None,
    calibration: Calibration | None = None,
) -> tuple[Outcome, dict[str, Any]]:
    """Train on the host's model and write loras/trilora/<name>.safetensors; the outcome and what the node shows of it.

    A finished run with the same options, pictures, base and start is read from the disk. The host's interrupt is
    passed on after what was trained has been saved; a stop that was asked for over the host's server ends the run and
    gives what it has learned. `clip` and `vae` are the data set's: they draw the previews, if any are wanted, and the
    clip is trained along if the options say so; `calibration` is what the init "contrast" starts from. Raises
    InputError for what cannot be trained.
    """
    with Reporter(node_id, workflow, name, config.steps) as report:
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
            return finished, report.cached(finished, f"{text} {finished.note}".strip())
        text_encoder = text_encoder_to_train(patcher, data, prior, config, clip)
        previewer = _previewer(patcher, data, config, clip, vae, text_encoder)
        captions = prior_captions(data, config, clip, vae)
        if resume:
            _take_over(name, output, run_fingerprint(*parts, with_steps=False), config.steps)
        report.prepares("preparing the model")
        with training(patcher, None if text_encoder is None else text_encoder.patcher) as again:
            denoiser = HostDenoiser(patcher)
            start = _Start(start_from, start_hash, calibration if key else None, key)
            with _room_before_the_first_step(patcher):
                kept = None if captions is None else asked(denoiser, captions, data, config, node_id)
                run = _prepare(denoiser, data, prior, config, start, text_encoder, kept)
            memory = _measure(run, report)
            drawing = report.telling(previewer, partial(_whole_again, again))
            outcome = _train(run, output, report, memory, resume=resume, held_out=held_out, previewer=drawing)
        return outcome, report.finished(outcome, _summed_up(outcome, output, config))


@contextmanager
def _room_before_the_first_step(patcher: Any) -> Iterator[None]:
    try:
        yield
    except OUT_OF_MEMORY:
        raise InputError(
            f"out of memory on {patcher.load_device} before the first step, beside the model itself: free memory, lower"
            " rank, set preserve_base to off, or use a smaller or quantised model"
        ) from None


def _whole_again(again: Callable[[], None]) -> None:
    """Have the model be trainable again after the host drew with it; where it cannot be, the run ends, and is kept."""
    try:
        again()
    except InputError as error:  # which a preview may cost nothing but itself
        raise RuntimeError(f"after a preview the model could not be trained on: {error}") from error


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

    With prompts, but no regular previews, it draws on request, where the data set has what that takes. Its prompts are
    encoded, but where the text encoder is trained: there they will be, each time.
    """
    if not config.monitor.preview_prompts:
        return None
    if clip is None or vae is None:
        if not config.monitor.preview_every:
            return None
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
    if config.monitor.preview_prompts and folder.is_dir():
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


def _measure(run: Run, report: Reporter) -> Estimate:
    """Say in the log and on the node what the run will need of the device's memory."""
    report.prepares("measuring memory")
    found = preflight(run)
    log.log(logging.INFO if found.fits else logging.WARNING, "memory: %s", "\n".join(found.lines()))
    report.prepares("\n".join(found.lines()))
    report.short = "" if found.fits else "memory may not suffice: see ComfyUI's log"
    return found


def _train(
    run: Run,
    output: Path,
    report: Reporter,
    memory: Estimate,
    *,
    resume: bool,
    held_out: Dataset | None,
    previewer: Previewer | None,
) -> Outcome:
    stopped: list[Path] = []

    def keep(path: Path) -> None:
        stopped.append(path)
        report.stopped(path, run)

    try:
        return train_to_file(
            run,
            output,
            metadata={},
            on_step=report.step,
            resume=resume,
            interrupts=(interrupt_type(),),
            on_stopped=keep,
            held_out=held_out,
            previewer=previewer,
            listeners=report.listeners(run, output, can_preview=previewer is not None),
        )
    except OUT_OF_MEMORY as error:
        make_room(run, error)
        raise InputError(out_of_memory(run, memory, stopped[0] if stopped else None)) from error
    finally:
        if stopped:
            report.say(f"stopped at step {run.step} of {run.config.steps}; kept as {stopped[0]}")
