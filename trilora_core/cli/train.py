"""Train an adapter on a folder of captioned pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapter import TriLoRA
from ..backend_diffusers import DiffusersDenoiser, DiffusersPreviewer, DiffusersTextEncoder, refuse_weights
from ..backend_diffusers_apply import architecture_of
from ..calibration import Calibration, read_facts
from ..companion import accompany
from ..config import CalibrationConfig, TrainConfig
from ..config_data import DataConfig, PriorConfig
from ..crew import ALONE, Crew, Lost
from ..data import Dataset, scan_folder
from ..errors import InputError
from ..fileformat import Adapter, read_adapter
from ..memory import OUT_OF_MEMORY, Estimate, make_room, out_of_memory, preflight
from ..monitor import split
from ..optim import check_optimizer
from ..plots import blank_figure, plot_losses
from ..preserve import Kept
from ..protocols import Previewer
from ..runplan import planned, targets_of
from ..session import adapter_hash, find_finished
from ..train import Run, TrainingDiverged
from .bar import train_with_bar
from .base import choose_device, load_base, own_resolution
from .calibration import find_calibration
from .options import add_config
from .parser import Arguments, OneLineParser
from .pictures import draw_prior, encode, keep_base, prior_data
from .processes import Processes, Told, join, launched_precision
from .resolved import check_resolved, write_resolved
from .run_options import RunOptions, add_run_options, read_run_options
from .saving import DTYPES, check_output, check_picture
from .scale import begun, whole_batch
from .store import CountedStore, open_store
from .summary import left, preset_lines, starting, summary

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "prepare", "run"]

_GUIDANCE = 7.5  # of previews, usual for SD 1.5 and SDXL

USAGE = "--model PATH --data DIR --output NAME.safetensors [options]"
EXAMPLES = """\
examples:
  python -m trilora_core train --model MODEL --data PICTURES --output style.safetensors
  python -m trilora_core train --model MODEL --data PICTURES --output style.safetensors \\
      --trigger-word "my style" --rank 16 --steps 1000 --lr 1e-4 --batch-size 2 --seed 0 --plot loss.png
  python -m trilora_core train --model MODEL --data PICTURES --output dog.safetensors --epochs 20 --flip \\
      --trigger-word "sks dog" --prior-prompt "a dog" --prior-count 200
  python -m trilora_core train --model MODEL --data PICTURES --output style.safetensors --steps 3000 \\
      --validation-share 0.1 --keep-best --preview-every 250 --preview-prompts "a cat, my style" "a red car"
  python -m trilora_core train --model MODEL --data PICTURES --output style.safetensors --preset style
  python -m trilora_core train --config run.toml --steps 2000

A --config file holds the same options by their names in trilora_core/config.py and config_data.py; flags win:
  model = "models/base"
  output = "style.safetensors"
  steps = 1000
  [data]
  folder = "pictures"
  trigger_word = "my style"
  [data.captions]
  shuffle = true
  [adapter]
  rank = 16
  [optimizer]
  learning_rate = 1e-4

On several GPUs, --batch-size pictures of every step on each; the same adapter as one GPU makes with the whole batch:
  accelerate launch --multi_gpu -m trilora_core train --model MODEL --data PICTURES --output style.safetensors
Without GPUs that line starts processes on the CPU, with --num_processes 2 (accelerate's --cpu starts one). --resume
goes on with any number of processes, in the same order.

NAME.toml beside the adapter holds every option of the run as it came out: --config NAME.toml runs it again.

Ctrl-C keeps what was trained: the adapter so far, and a state that --resume goes on from."""


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    add_config(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the state that a stopped run left, if there is one"
    )
    add_run_options(parser)


def run(arguments: Arguments) -> int:
    """Load, encode, train, save, report."""
    options: RunOptions | InputError
    try:
        options = read_run_options(arguments)
    except InputError as error:  # which the first of several processes is to tell for all
        options = error
    with join("auto" if isinstance(options, InputError) else options.device) as crew:
        try:
            with crew.together():
                if isinstance(options, InputError):
                    raise options
                start = _check(options, crew)
            with open_store(options.cache) as store:
                _train(options, crew, store, start, resume=arguments.resume)
        except Told:
            return 2
        except KeyboardInterrupt:
            if crew.leads:
                raise
            return 130
        except Lost as error:
            raise InputError(str(error)) from error
    return 0


def _check(options: RunOptions, crew: Processes) -> Adapter | None:
    """Look for what is better known before the model is loaded; the adapter to start from, if there is one."""
    if crew.leads:
        check_output(options.output)
        check_resolved(options)
        if options.plot:
            check_picture(options.plot)
            blank_figure(1, 1)  # matplotlib is there
    masks = options.data.masks
    refuse_weights(options.data.captions.weights)
    # an empty folder, a wrong file and a package that is not there
    scan_folder(options.data.folder, masks.folder if masks.source == "folder" else "")
    check_optimizer(options.train.optimizer, options.train.ema)
    if options.calibration.file:
        read_facts(Path(options.calibration.file))
    return read_adapter(options.start_from) if options.start_from else None


@dataclass(frozen=True)
class _Material:
    """The model and what it is to be trained on, the same in every process."""

    pipe: Any
    device: torch.device
    data: DataConfig
    dataset: Dataset
    held_out: Dataset | None
    prior: Dataset | None
    drawn: int  # prior pictures that are new
    previewer: Previewer | None


def _train(options: RunOptions, crew: Processes, store: CountedStore, start: Adapter | None, *, resume: bool) -> None:
    """The run itself, alone or in a crew."""
    output = options.output
    with crew.together():
        material = _load(options, store, crew)
        prepared = _prepare(options, material, store, start, crew, resume=resume)
        done = find_finished(output, prepared.fingerprint()) if resume and crew.leads else None
        finished = crew.of_first(done is not None)
        found = None if finished else _measure(prepared, crew)
    with crew.together(), crew.training():
        if not crew.leads:
            return None if finished else _follow(prepared, material.held_out, crew)
        if done:
            print("this run is finished already; nothing was trained")
        asked = dataclasses.replace(options, data=material.data)
        outcome = done or train_with_bar(
            prepared,
            output,
            resume=resume,
            dtype=DTYPES[options.dtype],
            metadata=crew.metadata(),
            estimate=found,
            held_out=material.held_out,
            previewer=material.previewer,
            # not before: a --resume that is refused leaves the options of the run that was
            on_begin=lambda: write_resolved(output, asked, prepared.config),
            check=crew.check,
        )
    print("\n".join(left(outcome, output)), flush=True)  # first: a curve that cannot be written may not hide it
    if options.plot:
        plot_losses(outcome.losses, options.plot, title=f"Training loss of {output.name}")
        print(f"loss curve: {options.plot.resolve()}")


def _load(options: RunOptions, store: CountedStore, crew: Processes) -> _Material:
    device = choose_device(crew.device(options.device))
    pipe = load_base(options.model, device, options.base_dtype, launched_precision(options.train).precision)
    data = options.data
    if options.own_resolution:
        data = dataclasses.replace(data, resolution=own_resolution(pipe))
    previewer = _previewer(pipe, options.train, data.resolution)  # what it refuses is better known before the work
    dataset, held_out = _divide(_encode(pipe, data, store, crew), options.train)
    drawn = _draw(pipe, options.prior, data.resolution, Path(options.model).name, crew) if options.prior else 0
    prior = _encode(pipe, prior_data(options.prior, data), store, crew) if options.prior else None
    return _Material(pipe, device, data, dataset, held_out, prior, drawn, previewer)


def _prepare(
    options: RunOptions,
    material: _Material,
    store: CountedStore,
    start: Adapter | None,
    crew: Processes,
    *,
    resume: bool,
) -> Run:
    """The run with all that its options ask for; the first process says what it will be."""
    pipe, dataset, device = material.pipe, material.dataset, material.device
    config = launched_precision(options.settled(architecture_of(pipe), dataset.epoch_size))
    known = crew.of_first(begun(options.output) if resume else None)
    config, at_once = whole_batch(config, options.total(config, crew.size), crew.size, known)
    config = planned(config, dataset)
    calibrated = _calibrate(pipe, dataset, config, options.calibration, options.output, crew)
    kept = _keep(pipe, dataset, config, store, crew, device)
    made = calibrated and calibrated[0]
    prepared = prepare(pipe, dataset, config, device, material.prior, start, made, kept, crew=crew, at_once=at_once)
    if crew.leads:
        told = summary(prepared, dataset, device, store, drawn=material.drawn, held_out=material.held_out)
        told += [f"calibrated: {calibrated[1]}"] if calibrated else []
        told += preset_lines(options.preset, prepared, dataset)
        print("\n".join([*told, *starting(options.start_from, prepared)]), flush=True)
    return prepared


def _follow(run: Run, held_out: Dataset | None, crew: Processes) -> None:
    """Train beside the first process, which reports what all have in common."""
    try:
        accompany(run, held_out, lambda step: crew.check())
    except TrainingDiverged as error:
        raise Told from error
    except OUT_OF_MEMORY as error:
        make_room(run, error)
        raise InputError(f"process {crew.rank}: {out_of_memory(run)}") from error


def _divide(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what is held out of it: the same in every process, before they share."""
    share = config.monitor.validation_share
    return split(dataset, share, config.seed) if share else (dataset, None)


def _previewer(pipe: Any, config: TrainConfig, resolution: int) -> Previewer | None:
    watch = config.monitor
    if not watch.preview_every:
        return None
    guidance = watch.preview_cfg or _GUIDANCE
    side = watch.preview_resolution or resolution
    return DiffusersPreviewer(pipe, steps=watch.preview_steps, guidance=guidance, resolution=side)


def _measure(prepared: Run, crew: Processes) -> Estimate:
    """Say what the run will need of the device's memory."""
    found = preflight(prepared)
    if crew.leads:
        text, *more = found.lines()
        print("\n".join([f"memory:     {text}", *(f"            {line}" for line in more)]), flush=True)
    return found


def _encode(pipe: Any, data: DataConfig, store: CountedStore, crew: Processes) -> Dataset:
    """The first process encodes for all where they share a store."""

    def work() -> Dataset:
        return encode(pipe, data, store, silent=not crew.leads)

    return work() if store.folder is None else crew.first(work)


def _keep(
    pipe: Any, dataset: Dataset, config: TrainConfig, store: CountedStore, crew: Processes, device: torch.device
) -> Kept | None:
    """What the base predicts besides, where it is to be preserved: by the first process where they share a store."""
    if config.preserve.base == "off":
        return None

    def work() -> Kept:
        return keep_base(pipe, dataset, config, store, device, silent=not crew.leads)

    return work() if store.folder is None else crew.first(work)


def _draw(pipe: Any, prior: PriorConfig, resolution: int, base: str, crew: Processes) -> int:
    """How many prior pictures were drawn: by the first process, the others find them there."""
    return crew.first(lambda: draw_prior(pipe, prior, resolution, base=base, silent=not crew.leads))


def _calibrate(
    pipe: Any, dataset: Dataset, config: TrainConfig, wanted: CalibrationConfig, output: Path, crew: Processes
) -> tuple[Calibration, str] | None:
    """The calibration that the start needs: made by the first process, the others find it beside the adapter."""
    if config.adapter.init != "contrast":
        return None
    parts = (pipe, DiffusersDenoiser(pipe), dataset, config, wanted, output)
    return crew.first(lambda: find_calibration(*parts, silent=not crew.leads))


def prepare(
    pipe: Any,
    dataset: Dataset,
    config: TrainConfig,
    device: torch.device,
    prior: Dataset | None = None,
    start: Adapter | None = None,
    calibration: Calibration | None = None,
    kept: Kept | None = None,
    *,
    crew: Crew = ALONE,
    at_once: int = 0,
) -> Run:
    """A run of this configuration from its start, or from `start`; `crew` and `at_once` as train.Run has them."""
    denoiser = DiffusersDenoiser(pipe)
    text = DiffusersTextEncoder(pipe) if config.optimizer.text_encoder_rate else None
    adapter = TriLoRA.create(
        targets_of(config, denoiser, text),
        config.adapter,
        seed=config.seed,
        data_hash=dataset.content_hash,
        device=device,
        calibration=calibration,
    )
    if start is not None:
        adapter.start_from(start.layers)
    run = Run(config, denoiser, dataset, adapter, prior, text, kept, crew=crew, at_once=at_once)
    run.start_hash = "" if start is None else adapter_hash(start)
    run.calibration_key = "" if calibration is None else calibration.facts.key
    return run
