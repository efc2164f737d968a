"""What a run will need of the device's memory, measured on a step that changes nothing, and what to do without it."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .adapter import TriLoRA
from .config import OptimizerConfig
from .errors import InputError
from .meter import OUT_OF_MEMORY, Meter, statistics
from .recompute import checkpointed
from .train import Run

__all__ = ["OUT_OF_MEMORY", "Estimate", "estimate", "free_memory", "make_room", "out_of_memory", "preflight", "spilled"]

_MOST_BATCHES = 10_000  # that are looked through for the largest one
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes on its device at the peak of its largest batch."""

    rows: int  # pictures of the largest forward
    shape: tuple[int, ...]  # of each of them, as the data set has it: (width, height) in pixels, or of the latents
    model: int  # frozen tensors that the forward reads, in the formats they have
    parameters: int  # of the adapter
    gradients: int
    optimizer: int
    copies: int  # of the adapter: the last good one, and the mean of ema
    activations: int  # at the peak, temporaries included
    ahead: int  # the part of the total that is not allocated yet
    free: int | None  # on the device, None where nobody knows
    single: int  # bytes of the model in float32, which half formats would halve
    checkpointing: bool
    seconds: float  # that the measure took
    recomputed: int | None = None  # activations with gradient checkpointing, where that was measured too

    @property
    def total(self) -> int:
        """All of it, the model included."""
        return self.model + self.adapter + self.activations

    @property
    def adapter(self) -> int:
        """The adapter with all that its training needs."""
        return self.parameters + self.gradients + self.optimizer + self.copies

    @property
    def fits(self) -> bool:
        """Whether what is not allocated yet is free; True where nobody knows."""
        return self.free is None or self.ahead <= self.free

    def text(self) -> str:
        """One line: the total, its parts, and what of it is still to come beside what is free."""
        free = "" if self.free is None else f", {gib(self.free)} are free"
        return (
            f"about {gib(self.total)} at the peak (model {gib(self.model)}, adapter with optimizer {gib(self.adapter)},"
            f" activations {gib(self.activations)} for {_rows(self.rows, self.shape)});"
            f" {gib(self.ahead)} of it still to come{free}"
        )

    def lines(self) -> list[str]:
        """What to show before a run: the text, and a warning with advice where it does not fit."""
        if self.fits:
            return [self.text()]
        warning = "this may not fit; what makes it smaller, the most first:"
        return [self.text(), warning, *self.advice()]

    def advice(self) -> list[str]:
        """What to change, in the order of its effect; savings are estimates."""
        return [
            f"{what}: about {gib(saving)} less" for saving, what in sorted(self._savings(), reverse=True) if saving > 0
        ]

    def _savings(self) -> Iterator[tuple[int, str]]:
        """Activations are taken as proportional to pictures and pixels, as they are in fused attention."""
        if not self.checkpointing and self.recomputed is not None:
            yield self.activations - self.recomputed, "gradient_checkpointing on, for about a third more time"
        if self.rows > 1:
            fewer = self.rows // 2
            what = f"batch_size {fewer} with twice the accumulation" if self.rows % 2 == 0 else f"batch_size {fewer}"
            yield self.activations * (self.rows - fewer) // self.rows, what
        yield self.activations * 7 // 16, "three quarters of the resolution"
        yield self.adapter // 2, "half the rank"
        yield self.single // 2, "the base model in fp16 or bf16"


def preflight(run: Run) -> Estimate:
    """Measure before a run that is not attached yet; where it does not fit, measure gradient checkpointing too.

    Raises InputError when not even one batch fits.
    """
    try:
        found = estimate(run)
    except OUT_OF_MEMORY as error:
        make_room(run, error)
        raise InputError(out_of_memory(run)) from None  # its frames would hold what there is no room for
    if found.fits or found.checkpointing:
        return found
    try:
        return replace(found, recomputed=estimate(run, checkpointing=True).activations)
    except OUT_OF_MEMORY as error:
        make_room(run, error)
        return found


def estimate(run: Run, *, checkpointing: bool | None = None) -> Estimate:
    """Do forward and backward of the run's largest batch once and see what they take; the run stays as it was.

    `checkpointing` overrules the run's own choice. Batches that cannot be told apart by their shapes, conditioning of
    unlike length for instance, count as alike.
    """
    device, recompute = run.device, run.config.gradient_checkpointing if checkpointing is None else checkpointing
    batch, rows, shape, apart = _largest(run)
    params = run.trainable.trainable()
    gradients = sum(parameter.nbytes for parameter in params)
    free, started = free_memory(device), time.perf_counter()
    accumulated = apart or run.config.optimizer.accumulation > 1
    with ExitStack() as stack:
        stack.enter_context(_same_randomness(device))
        stack.enter_context(run.trainable.attach(run.targets()))
        if recompute:
            stack.enter_context(checkpointed(run.blocks(), in_place_safe=run.denoiser.in_place_safe))
        meter = Meter(device, params)
        with meter:
            run.rehearse(batch, accumulated=accumulated)
    state, missing = _optimizer_bytes(run)
    peak = max(meter.peak, gradients)
    return Estimate(
        rows=rows,
        shape=shape,
        model=meter.outside,
        parameters=sum(parameter.nbytes for _, parameter in run.trainable.named_parameters()),
        gradients=gradients,
        optimizer=state,
        copies=gradients * (run.copies + bool(run.config.ema)),
        activations=peak - gradients,
        ahead=peak + missing,
        free=free,
        single=meter.single,
        checkpointing=recompute,
        seconds=time.perf_counter() - started,
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that torch could still allocate on a device, its own unused cache included; None where nobody knows."""
    if device.type == "cpu":
        return _available()
    module = statistics(device)
    if module is None or not hasattr(module, "mem_get_info"):
        return None
    cached = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + cached)


def spilled(device: torch.device) -> str:
    """A warning where torch holds more than the device has: the driver then uses the computer's memory, far slower."""
    if device.type != "cuda":
        return ""
    held, there = torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    if held <= there:
        return ""
    return f"{gib(held)} are in use on a device of {gib(there)}: the rest lies in the computer's memory, which is slow"


def make_room(run: Run, error: BaseException) -> None:
    """Let go of what a step that ran out of memory still holds: gradients, and what the frames of `error` point to."""
    run.optimizer.zero_grad(set_to_none=True)
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__
    module = statistics(run.device)
    if module is not None:
        module.empty_cache()


def out_of_memory(run: Run, found: Estimate | None = None, kept: Path | None = None) -> str:
    """What to tell somebody whose run did not fit: where, what was measured, what to lower, where the work is."""
    _, rows, shape, _ = _largest(run)
    step = f"step {run.step + 1} of {run.config.steps}" if run.step or found else "a first batch"
    free = free_memory(run.device)
    now = "" if free is None else f", {gib(free)} are free without it"
    measured = f"; the estimate was {found.text()}" if found else ""
    file = f". What was trained is kept: {kept.resolve()}" if kept else ""
    return (
        f"out of memory on {run.device} in {step}, with up to {_rows(rows, shape)}{now}{measured}."
        f" {_lower(run, found)}{file}"
    )


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.1f} MiB"


def _lower(run: Run, found: Estimate | None) -> str:
    if found:
        return f"To lower it: {'; '.join(found.advice())}"
    first = "" if run.config.gradient_checkpointing else "turn gradient_checkpointing on, "
    fewer = "lower batch_size, " if run.config.batch_size > 1 else ""
    return f"To lower it: {first}{fewer}lower the resolution or the rank, load the base model in fp16 or bf16"


def _rows(rows: int, shape: Sequence[int]) -> str:
    size = " x ".join(str(side) for side in shape)
    kind = "pixels" if len(shape) == 2 else "latents"
    return f"{rows} x {size} {kind}"


def _largest(run: Run) -> tuple[int, int, tuple[int, ...], bool]:
    """(number, rows, shape, whether others of unlike shape are in it) of the batch with the largest forward to come."""
    first = run.step * run.config.optimizer.accumulation
    last = max(first + 1, run.config.steps * run.config.optimizer.accumulation)
    found: tuple[int, int, tuple[int, ...], bool] | None = None
    most = (-1, -1, False)
    for number in range(first, min(last, first + _MOST_BATCHES)):
        counts = Counter(run.shapes(number))
        for key, rows in counts.items():
            shape = cast("tuple[int, ...]", key)  # of pixels or of latents, in every data set that we make
            at_once = min(rows, run.at_once or rows)
            apart = len(counts) > 1 or at_once < rows  # gradients of the others are held beside it
            size = (at_once * prod(shape), prod(shape), apart)
            if size > most:
                most, found = size, (number, at_once, shape, apart)
    assert found is not None  # there is always one batch, of at least a picture for each process
    return found


def _same_randomness(device: torch.device) -> Any:
    """Give the global generators back as they were."""
    if statistics(device) is None:
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def _optimizer_bytes(run: Run) -> tuple[int, int]:
    """(bytes of the optimizer's state from its first step on, those of them that are not allocated yet)."""
    there = sum(
        value.nbytes for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    if there:
        return there, 0
    expected = expected_state(run.trainable, run.config.optimizer)
    return expected, expected


def expected_state(adapter: TriLoRA, config: OptimizerConfig) -> int:
    """Bytes that the named optimizer keeps for an adapter."""
    return sum(_STATE[config.name](parameter) for parameter in adapter.trainable())


def _eight_bit(parameter: Tensor) -> int:
    """Two bytes a value and two scales a block of 256; small tensors stay in float32."""
    count = parameter.numel()
    return 8 * count if count < 4096 else 2 * count + 8 * -(-count // 256)


def _factored(parameter: Tensor) -> int:
    """Rows and columns of a matrix (Shazeer & Stern 2018), all of a vector."""
    return 4 * (sum(parameter.shape) if parameter.ndim > 1 else parameter.numel())


_STATE: dict[str, Callable[[Tensor], int]] = {
    "adamw": lambda parameter: 8 * parameter.numel() + 4,
    "adamw8bit": _eight_bit,
    "adafactor": _factored,
    "prodigy": lambda parameter: (16 if parameter.any() else 12) * parameter.numel(),  # no copy of a start at zero
    "schedulefree": lambda parameter: 8 * parameter.numel(),
    "lion": lambda parameter: 4 * parameter.numel(),
}


def _available() -> int | None:
    """What Linux could give to a process without swapping, in bytes; None on other systems."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
