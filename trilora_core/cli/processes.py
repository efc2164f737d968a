"""Several processes, one adapter: pictures split by rank, gradients averaged, the file written by the first.

Each process is started by `accelerate launch`, holds the whole frozen model and its own share of the pictures. Only the
adapter's gradients travel.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ..adapter import derive_seed
from ..config import TrainConfig
from ..data import Dataset
from ..errors import InputError
from ..metadata import dataset_metadata
from ..recompute import checkpointed
from ..train import Run, planned, train

__all__ = ["ALONE", "Crew", "averaged_gradients", "follow", "join"]

# Of the others, while the first encodes, draws or measures; a process that dies ends it at once.
_PATIENCE = timedelta(days=2)
_PATIENCE_ON_THE_WAY = timedelta(hours=2)

T = TypeVar("T")


@dataclass(frozen=True)
class Crew:
    """This process among those that train together: `rank` counts from 0, `local` is its number on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes the file."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device for this process when the user asked for `name`: each takes the GPU of its number."""
        own = self.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available()
        return f"cuda:{self.local}" if own else name

    def share(self, dataset: Dataset) -> Dataset:
        """Every size-th picture from the rank-th on; raises InputError when there are fewer pictures than processes."""
        if len(dataset) < self.size:
            raise InputError(f"{len(dataset)} pictures for {self.size} processes; start one per picture at most")
        part, most = dataset.part(self.rank, self.size), dataset.config.max_train_samples
        return dataclasses.replace(
            part, config=dataclasses.replace(part.config, max_train_samples=-(-most // self.size))
        )

    def config(self, config: TrainConfig, dataset: Dataset) -> TrainConfig:
        """The options with the steps that epochs of the whole data set make, and a seed of this process's own.

        No two processes draw the same noise, and all take the same number of steps.
        """
        if config.epochs:
            config = dataclasses.replace(config, steps=-(-planned(config, dataset).steps // self.size))
        return config if self.leads else dataclasses.replace(config, seed=derive_seed(config.seed, "rank", self.rank))

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do `work` before the others, who do it when its results lie on the disk.

        What the first one refuses as bad input, all refuse.
        """
        if self.size == 1:
            return work()
        group: Any = distributed.new_group(timeout=_PATIENCE, backend="gloo")
        problem = [""]
        if self.leads:
            try:
                done = work()
            except InputError as error:
                distributed.broadcast_object_list([str(error)], 0, group=group)
                raise
            distributed.broadcast_object_list(problem, 0, group=group)
            return done
        distributed.broadcast_object_list(problem, 0, group=group)
        if problem[0]:
            raise InputError(problem[0])
        return work()

    def metadata(self, run: Run, dataset: Dataset, name: str) -> dict[str, str]:
        """What the file `name` says otherwise than the first process alone would; {} for one process."""
        if self.size == 1:
            return {}
        config = run.config
        return dataset_metadata(dataset, name) | {
            "ss_num_train_images": str(sum(item.repeats for item in dataset.items)),
            "ss_total_batch_size": str(self.size * config.batch_size * config.optimizer.accumulation),
            "trilora.processes": str(self.size),
            "trilora.fingerprint": f"{run.fingerprint()} x {self.size}",
        }


ALONE = Crew()


@contextmanager
def join(device: str) -> Iterator[Crew]:
    """Take part in the group that `accelerate launch` started, if it did; alone otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    crew = Crew(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = crew.device(device).startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(crew.local)
    # the first draws previews between two steps, which may take longer than the half hour or less of the default
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE_ON_THE_WAY)
    try:
        yield crew
    finally:
        distributed.destroy_process_group()


@contextmanager
def averaged_gradients(run: Run, crew: Crew) -> Iterator[None]:
    """Start from the first process's parameters, and step with the mean of the gradients of all processes.

    They travel once in each step: how often a parameter's gradient grows on the way there differs between processes,
    with the shapes of their pictures, and with the captions of a batch where text encoders are checkpointed.
    """
    if crew.size == 1:
        yield
        return
    for parameter in run.trainable.trainable():
        distributed.broadcast(parameter.data, 0)
    run.on_gradients = partial(_average, run.trainable.trainable(), crew.size)
    try:
        yield
    finally:
        run.on_gradients = None


def _average(parameters: Sequence[Tensor], size: int) -> None:
    """Put the mean over all processes in the place of every gradient, in one exchange."""
    own = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in own])
    distributed.all_reduce(flat)
    parts = flat.div_(size).split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def follow(run: Run) -> None:
    """Train beside the first process, which reports and writes the file."""
    with ExitStack() as stack:
        stack.enter_context(run.trainable.attach(run.targets()))
        if run.config.gradient_checkpointing:
            stack.enter_context(checkpointed(run.blocks(), in_place_safe=run.denoiser.in_place_safe))
        for _ in stack.enter_context(closing(train(run))):
            pass
