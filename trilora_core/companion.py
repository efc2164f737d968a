"""The processes of a run beside the first: the same start, steps, measures and end, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

from .data.dataset import Dataset
from .milestones import History, exhausted, measure_due
from .monitor import Monitor
from .recompute import checkpointed
from .train import Run, Step, train

__all__ = ["accompany", "same_start"]


def same_start(run: Run, history: History) -> History:
    """Put every process of a crew where the first one is, bit for bit; its memory of the time before."""
    if run.crew.size == 1:
        return history
    tensors, values = run.state()
    mine = ({name: tensor.detach().cpu() for name, tensor in tensors.items()}, values, history.values())
    tensors, values, told = run.crew.of_first(mine if run.crew.rank == 0 else None) or mine
    if run.crew.rank:
        run.load_state(tensors, values)
    return History.load(told)


def accompany(run: Run, held_out: Dataset | None, on_step: Callable[[Step], None]) -> None:
    """Train beside the first process, which runs session.train_to_file, in the order of what that does.

    All decisions follow from what the processes have in common: the steps, the sums of their gradients, and the
    measures. `on_step` may raise to stop, in all of them after the same step.
    """
    history = same_start(run, History())
    monitor = None if held_out is None else Monitor(run, held_out)

    def reach(*, last: bool = False) -> None:
        if monitor is not None and measure_due(run, history, last):
            history.measures.append(monitor.measure())

    with ExitStack() as stack:
        stack.enter_context(run.trainable.attach(run.targets()))
        if run.config.gradient_checkpointing:
            stack.enter_context(checkpointed(run.blocks(), in_place_safe=run.denoiser.in_place_safe))
        reach()
        steps = stack.enter_context(closing(train(run)))
        while not exhausted(run, history):
            step = next(steps, None)
            if step is None:
                break
            reach()
            on_step(step)
        if run.step == run.config.steps or exhausted(run, history):
            reach(last=True)
