"""The processes that `accelerate launch` started, as one crew: accelerate finds them, places them and adds up.

Each holds the whole frozen model and does its share of every batch; only the adapter's gradients and a few numbers
travel. The first one reports and writes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import TrainConfig
from ..crew import Lost
from ..errors import InputError
from ..memory import OUT_OF_MEMORY

__all__ = ["Processes", "Told", "join", "launched_precision"]

# Of a process, while another encodes, draws or measures. One that dies on the same machine ends it at once.
_PATIENCE = timedelta(hours=6)

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torch's, and those of MPI

T = TypeVar("T")


class Told(Exception):
    """The run ends, and the first process says why."""


class Processes:
    """This process among those that train together (crew.Crew), or the only one."""

    def __init__(self, accelerator: Any = None) -> None:
        """`accelerator` is accelerate's, None for a process that is alone."""
        self._accelerator = accelerator
        self._asked = False  # to stop, by a signal to this process
        self._heard: Tensor | None = None  # how many of all were, in the last exchange
        self._starting = False
        self._met = True  # all wait for each other before what one refuses could leave them behind; False in training

    @property
    def rank(self) -> int:
        """The number of this process over all machines, from 0."""
        return 0 if self._accelerator is None else int(self._accelerator.process_index)

    @property
    def size(self) -> int:
        """How many they are on all machines."""
        return 1 if self._accelerator is None else int(self._accelerator.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes the files."""
        return self._accelerator is None or bool(self._accelerator.is_main_process)

    def device(self, name: str) -> str:
        """The device for this process when the user asked for `name`: accelerate gives each a GPU of its machine."""
        if self._accelerator is None:
            return name
        if name not in ("auto", "cpu", "cuda"):
            raise InputError(f"device is {name}, and each of {self.size} processes takes its own GPU; leave it out")
        return str(self._accelerator.device)

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' values; with them travels whether one of them was asked to stop."""
        if self._accelerator is None:
            return values
        asked = torch.full((1,), float(self._asked), dtype=values.dtype, device=values.device)
        own = torch.cat([values.flatten(), asked]).to(self._accelerator.device)
        with self._reaching():
            total: Tensor = self._accelerator.reduce(own, "sum")
        self._heard = total[-1].clone()  # a view would keep all of it until the next time
        return total[:-1].view_as(values).to(values.device)

    def of_first(self, value: T) -> T:
        """What the first process gave; raises what any of them refuses here."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        self._agree("")
        with self._reaching():
            found: T = broadcast_object_list([value])[0]
        self._met = not self._starting
        return found

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do `work`, then one of each other machine, then the rest, who find it on the disk."""
        turn = 0 if self.leads else 1 if self._accelerator.is_local_main_process else 2
        done: list[T] = []
        for now in range(1 if self.size == 1 else 3):
            problem = ""
            if now == turn:
                try:
                    done.append(work())
                except InputError as error:
                    if self.size == 1:
                        raise
                    problem = str(error)
            self._agree(problem)
        return done[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process refuses as bad input inside, all refuse: the first with InputError, the others are Told."""
        try:
            yield
        except (_Agreed, Told):
            raise
        except InputError as error:
            if self.size == 1 or not self._met:
                raise
            self._agree(str(error))
        else:
            if self._met:
                self._agree("")

    def _agree(self, problem: str) -> None:
        if self._accelerator is None:
            return
        from accelerate.utils import gather_object

        with self._reaching():
            problems: list[str] = gather_object([problem])
        told = [
            text if not rank or text in problems[:rank] else f"process {rank}: {text}"
            for rank, text in enumerate(problems)
            if text
        ]
        if told:
            raise _Agreed(told[0]) if self.leads else Told

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, Ctrl-C and a request to end are kept until all have heard of it in an exchange: see `check`.

        The first thing there that all have from the first process is the start of the run.
        """
        if self._accelerator is None:
            yield
            return
        self._starting = True
        kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in kept:
            signal.signal(number, self._ask)
        yield
        for number, handler in kept.items():  # not after an error: the launcher's signal may cut off what is told of it
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True

    def check(self) -> None:
        """Raise KeyboardInterrupt where one of them was asked to stop, in all after the same step."""
        if self._heard is not None and self._heard.item():
            raise KeyboardInterrupt

    def metadata(self) -> dict[str, str]:
        """What a file says of them; {} for one process."""
        return {} if self.size == 1 else {"trilora.processes": str(self.size)}

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OUT_OF_MEMORY:
            raise
        except RuntimeError as error:  # what every backend of torch raises: closed connections, timeouts
            raise Lost(
                f"process {self.rank} of {self.size} (counted from 0) lost the others: one has ended, and if it could"
                " it said why, or its machine cannot be reached"
            ) from error


class _Agreed(InputError):
    """What all have heard already."""


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Take part in what `accelerate launch` started, if it started several; alone otherwise.

    Raises InputError for kinds of distribution that split the model.
    """
    if all(int(os.environ.get(name) or 1) == 1 for name in _SIZES):
        yield Processes()
        return
    accelerator = _accelerator(on_cpu=device == "cpu" or not torch.cuda.is_available())
    try:
        yield Processes(accelerator)
    finally:
        accelerator.end_training()


def _accelerator(*, on_cpu: bool) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise InputError('several processes need accelerate; run: pip install -e ".[standalone]"') from error
    try:
        found = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    except (ImportError, NotImplementedError, ValueError) as error:
        raise InputError(f"accelerate cannot start as it was launched: {error}; see `accelerate config`") from error
    kind = found.distributed_type.value
    if not kind.startswith("MULTI_"):
        raise InputError(f"accelerate was launched for {kind}; wanted --multi_gpu: the model is not split")
    return found


def launched_precision(config: TrainConfig, environ: Mapping[str, str] = os.environ) -> TrainConfig:
    """The options with the mixed precision that accelerate was launched with.

    Accelerate hands it on in this variable, whether it started one process or several; "no" is also what it says when
    nobody asked. Raises InputError where the options ask for another one.
    """
    found = environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if found == "no":
        return config
    if found not in ("bf16", "fp16"):
        raise InputError(f"accelerate was launched with mixed precision {found}; wanted no, bf16 or fp16")
    if config.precision not in ("auto", found):
        raise InputError(
            f"accelerate was launched with mixed precision {found}, but precision is {config.precision}; make both the"
            " same, or leave one out"
        )
    return replace(config, precision=found)
