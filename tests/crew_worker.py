"""What `accelerate launch` starts in tests/test_cli_processes.py: many small runs on the toy in float64, by two
processes or, called from the test, by one. `python -m accelerate.commands.launch … tests/crew_worker.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.toy import ToyDenoiser, ToyTextEncoder, toy_dataset, with_texts
from trilora_core.adapter import TriLoRA
from trilora_core.cli.processes import Processes, Told, join
from trilora_core.companion import accompany
from trilora_core.config import (
    AdapterConfig,
    LossConfig,
    MonitorConfig,
    OptimizerConfig,
    PreserveConfig,
    TrainConfig,
)
from trilora_core.data.cache import MemoryStore
from trilora_core.errors import InputError
from trilora_core.monitor import split
from trilora_core.preserve import Amount, Captions, keep
from trilora_core.runplan import targets_of
from trilora_core.session import train_to_file
from trilora_core.train import Run, Step, TrainingDiverged

PLAIN = TrainConfig(
    steps=8,
    batch_size=2,
    seed=3,
    adapter=AdapterConfig(rank=4),
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=2),
)
WATCHED = MonitorConfig(validation_share=0.25, validate_every=3)


@dataclass(frozen=True)
class Case:
    """One run; what it needs besides pictures of three shapes."""

    config: TrainConfig
    prior: bool = False
    at_once: int = 0
    poisoned: set[int] = field(default_factory=set)  # calls of predict in the last process that answer NaN
    stopped: int = 0  # step at which the last process gets Ctrl-C


CASES = {
    "accumulated": Case(replace(PLAIN, optimizer=replace(PLAIN.optimizer, accumulation=2), monitor=WATCHED)),
    "uneven": Case(
        replace(
            PLAIN,
            batch_size=5,
            ema=0.9,
            adapter=AdapterConfig(rank=4, rank_dropout=0.3, companion_rank=1),
            loss=LossConfig(orthogonality=0.1, min_snr_gamma=5.0, noise_offset=0.1),
            optimizer=replace(PLAIN.optimizer, name="prodigy", learning_rate=1.0),
        ),
        prior=True,
    ),
    "text": Case(
        replace(
            PLAIN,
            batch_size=4,
            gradient_checkpointing=True,
            optimizer=replace(PLAIN.optimizer, text_encoder_rate=0.5),
            monitor=WATCHED,
        ),
        prior=True,
    ),
    "kept": Case(replace(PLAIN, preserve=PreserveConfig("light")), prior=True, at_once=1),
    "patient": Case(
        replace(
            PLAIN,
            steps=30,
            optimizer=OptimizerConfig(learning_rate=0.3),
            monitor=replace(WATCHED, validate_every=1, patience=2, keep_best=True),
        )
    ),
    "diverged": Case(PLAIN, poisoned={4, 5, 6}),
    "stopped": Case(PLAIN, stopped=3),
}


class Double(ToyDenoiser):
    """The toy in float64."""

    compute_dtype = torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.model.double()

    def predict(self, latents: Tensor, noise: Tensor, times: Tensor, cond: Sequence[Any]) -> tuple[Tensor, Tensor]:
        return super().predict(latents.double(), noise.double(), times.double(), [part.double() for part in cond])


class DoubleText(ToyTextEncoder):
    compute_dtype = torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.model.double()

    def _tokens(self, text: str) -> Tensor:
        return super()._tokens(text).double()


def make(case: Case, crew: Any) -> tuple[Run, Any]:
    """The run of a case, and what is held out of it."""
    config, denoiser = case.config, Double()
    text = DoubleText() if config.optimizer.text_encoder_rate else None
    data = toy_dataset(9, sizes=((4, 4), (4, 4), (2, 6)))
    data = data if text is None else with_texts(data, text)
    held = None
    if config.monitor.validation_share:
        data, held = split(data, config.monitor.validation_share, config.seed)
    prior = toy_dataset(3, seed=9) if case.prior else None
    if prior is not None and text is not None:
        prior = with_texts(prior, text)
    kept = None
    if config.preserve.base != "off":
        store = MemoryStore()
        for number in range(2):
            store.put(f"{number}", torch.randn(3, 16, generator=torch.Generator().manual_seed(number)))
        captions = Captions(("a house", "a tree"), ("0", "1"), store)
        kept = keep(denoiser, captions, data, Amount(1.0, share=0.5, points=2, paths=4), torch.device("cpu"))
    adapter = TriLoRA.create(targets_of(config, denoiser, text), config.adapter, seed=3, data_hash="toy")
    for _, parameter in adapter.named_parameters():
        parameter.data = parameter.data.double()
    denoiser.calls = 0
    if crew.rank == crew.size - 1:
        denoiser.poison_steps = case.poisoned
    run = Run(config, denoiser, data, adapter, prior, text, kept, crew=crew, at_once=case.at_once)
    return run, held


def go(name: str, folder: Path, crew: Processes, *, resume: bool = False, poisoned: bool = True) -> dict[str, Any]:
    """Do the run of a case; its parameters, losses and how it ended."""
    case = CASES[name] if poisoned else replace(CASES[name], poisoned=set(), stopped=0)
    run, held = make(case, crew)

    def on_step(step: Step) -> None:
        if crew.size > 1 and step.step == case.stopped and crew.rank == crew.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        crew.check()

    ended = ""
    with crew.training():
        try:
            if crew.leads:
                output = folder / f"{name}.safetensors"
                options = {"metadata": {}, "dtype": torch.float32, "held_out": held, "resume": resume}
                ended = train_to_file(run, output, on_step=on_step, **options).ended
            else:
                accompany(run, held, on_step)
        except (TrainingDiverged, KeyboardInterrupt) as error:
            ended = type(error).__name__
    values = {key: value.detach().clone() for key, value in run.trainable.named_parameters()}
    return {"values": values, "losses": run.losses, "step": run.step, "ended": ended, "delta": change(run)}


def change(run: Run) -> dict[str, Tensor]:
    """ΔW of every layer as it would be saved, in the precision of training."""
    with run.as_saved():
        return {
            stem: (branch.up.flatten(1) @ branch.gained_down(None).flatten(1)).detach()
            for stem, branch in run.trainable.branches.items()
        }


def refused(crew: Processes, work: Callable[[], object]) -> str:
    """What comes of it where all wait for each other."""
    try:
        with crew.together():
            return str(work())
    except InputError as error:
        return str(error)
    except Told:
        return "told"


def waits(crew: Processes, folder: Path) -> list[str]:
    """The first makes a file, which all read; then one refuses something, the first or the second of them."""

    def make_file() -> str:
        path = folder / "made"
        if crew.leads:
            path.write_text("made by 0")
        return path.read_text()

    def refuse(rank: int) -> str:
        if crew.rank == rank:
            raise InputError(f"refused by {rank}")
        return "fine"

    return [
        refused(crew, lambda: crew.first(make_file)),
        refused(crew, lambda: crew.first(lambda: refuse(0))),
        refused(crew, lambda: refuse(1)),
        refused(crew, lambda: crew.of_first(crew.rank)),
    ]


def main() -> None:
    """All cases, one after the other."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with join("cpu") as crew:
        found: dict[str, Any] = {"waits": waits(crew, folder)}
        found |= {name: go(name, folder, crew) for name in CASES}
        torch.save(found, folder / f"{crew.rank}.pt")


if __name__ == "__main__":
    main()
