from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.test_train import CONFIG, make_run, same, values
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core import memory
from trilora_core.checkpoint import state_path
from trilora_core.config import AdapterConfig, LossConfig, OptimizerConfig
from trilora_core.errors import InputError
from trilora_core.fileformat import read_metadata
from trilora_core.memory import OUT_OF_MEMORY, estimate, make_room, out_of_memory, preflight
from trilora_core.optim import check_optimizer
from trilora_core.session import train_to_file

BIG = ((4, 4), (32, 32), (8, 8))
MIXED = replace(CONFIG, steps=6, batch_size=2, optimizer=replace(CONFIG.optimizer, accumulation=2))


class FullDenoiser(ToyDenoiser):
    """A model on a device that is full at call `full` of predict, with something large in the hands of that call."""

    def __init__(self, full: int) -> None:
        super().__init__()
        self.full = full
        self.held: weakref.ref | None = None

    def predict(self, latents, noise, times, cond):
        if self.calls + 1 == self.full:
            large = torch.ones(1000)
            self.held = weakref.ref(large)
            raise OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().predict(latents, noise, times, cond)


def train(run, tmp_path, on_step=lambda step: None, **options):
    return train_to_file(run, tmp_path / "style.safetensors", metadata={}, on_step=on_step, **options)


def hooks(run) -> int:
    modules = list(run.denoiser.model.modules())
    return sum(len(module._forward_hooks) for module in modules) + sum("forward" in vars(m) for m in modules)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(MIXED, ema=0.9, adapter=AdapterConfig(rank=3, rank_dropout=0.5), loss=LossConfig(orthogonality=0.1)),
    ],
    ids=["plain", "everything"],
)
def test_the_estimate_changes_nothing(tmp_path, config, checkpointing):
    """Losses and adapter of a run that was measured before, bit for bit those of one that was not."""
    config = replace(config, steps=6, gradient_checkpointing=checkpointing)
    data, prior = toy_dataset(7, sizes=BIG), toy_dataset(3, seed=9, sizes=BIG)
    alone, measured = make_run(config, data=data, prior=prior), make_run(config, data=data, prior=prior)
    torch.manual_seed(3)
    train(alone, tmp_path)
    torch.manual_seed(3)
    before, chance, plain = torch.get_rng_state(), random.getstate(), values(measured)
    tensors, state = measured.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    estimate(measured)
    estimate(measured, checkpointing=not checkpointing)
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == chance
    assert measured.losses == [] and measured.step == 0 and not measured.optimizer.state and not hooks(measured)
    assert same(plain, values(measured)) and all(p.grad is None for p in measured.trainable.trainable())
    after, told = measured.state()
    assert told == state and after.keys() == tensors.keys() and all(torch.equal(after[k], tensors[k]) for k in after)
    train(measured, tmp_path / "again")
    assert alone.losses == measured.losses and same(values(alone), values(measured))


def peak_of(run, steps: int) -> int:
    """Most bytes beyond the start that the allocator of the CPU had given to some steps, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        run.trainable.attach(run.targets()),
        torch.profiler.profile(activities=activities, profile_memory=True) as profile,
    ):
        for _ in range(steps):
            run.advance()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_estimate_is_the_peak_of_real_steps(batch_size, accumulation):
    config = replace(
        CONFIG, steps=4, batch_size=batch_size, optimizer=replace(CONFIG.optimizer, accumulation=accumulation)
    )
    data = toy_dataset(8, sizes=((32, 32),))
    assert estimate(make_run(config, data=data)).ahead == pytest.approx(
        peak_of(make_run(config, data=data), 3), rel=0.1
    )


def test_the_parts_are_what_they_say():
    run = make_run(replace(CONFIG, ema=0.9))
    found = estimate(run)
    params = sum(parameter.numel() * 4 for parameter in run.trainable.trainable())
    model = sum(parameter.numel() * 4 for parameter in run.denoiser.model.parameters())
    assert found.parameters == found.gradients == params and found.copies == 3 * params
    averaging = replace(CONFIG, optimizer=OptimizerConfig(name="schedulefree"))
    assert estimate(make_run(averaging)).copies == 2 * params, "schedule-free keeps a second point beside each"
    assert model <= found.model < model + 4096, "the frozen model, and the few tensors of the batch"
    assert found.total == found.model + found.adapter + found.activations
    half = make_run()
    half.denoiser.model.blocks[0].mix.half()
    inner = half.denoiser.model.blocks[0].mix
    inner.forward = lambda x: nn.functional.conv2d(x, inner.weight.float(), inner.bias.float(), padding=1)
    less = estimate(half)
    assert found.model - less.model == 2 * (16 * 16 * 9 + 16), "frozen weights count as they are"


def test_the_largest_batch_is_measured_wherever_it_comes():
    data = toy_dataset(9, sizes=((4, 4), (4, 4), (24, 24)))
    found = estimate(make_run(replace(CONFIG, batch_size=3), data=data))
    assert (found.rows, found.shape) == (3, (4, 24, 24))
    alone = estimate(make_run(replace(CONFIG, batch_size=3), data=toy_dataset(9, sizes=((4, 4),))))
    assert found.activations > 5 * alone.activations
    beside = estimate(make_run(replace(CONFIG, batch_size=3, prior_batch_size=2), data=data, prior=data))
    assert beside.rows == 5 and beside.activations > 1.4 * found.activations
    few = estimate(make_run(replace(CONFIG, batch_size=8), data=toy_dataset(9, sizes=((4, 4),) * 8 + ((24, 24),))))
    assert few.rows <= 2 and few.shape == (4, 24, 24), "one such picture is twice in a batch of two epochs at most"


def test_checkpointing_takes_less():
    data = toy_dataset(4, sizes=((32, 32),))
    run = make_run(data=data)
    assert estimate(run, checkpointing=True).activations < 0.8 * estimate(run).activations
    assert estimate(run, checkpointing=True).checkpointing and not estimate(run).checkpointing


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "prodigy", "schedulefree", "lion"])
def test_the_state_of_every_optimizer_is_known_before_its_first_step(name):
    optimizer = OptimizerConfig(name=name, learning_rate=1.0)
    try:
        check_optimizer(optimizer)
    except InputError as error:
        pytest.skip(str(error))
    run = make_run(replace(CONFIG, optimizer=optimizer, adapter=AdapterConfig(rank=12)))
    expected = memory.expected_state(run.trainable, optimizer)
    with run.trainable.attach(run.denoiser.targets()):
        run.advance()
    there, missing = memory._optimizer_bytes(run)
    assert missing == 0 and expected == pytest.approx(there, rel=0.03)


def test_what_does_not_fit_is_said_with_advice_in_the_order_of_its_effect(monkeypatch):
    data = toy_dataset(4, sizes=((32, 32),))
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    found = preflight(make_run(replace(CONFIG, batch_size=4), data=data))
    assert not found.fits and found.recomputed is not None and found.recomputed < found.activations
    text, warning, *advice = found.lines()
    assert "4 x 4 x 32 x 32 latents" in text and "are free" in text and "may not fit" in warning
    for wanted in (
        "gradient_checkpointing on",
        "batch_size 2 with twice the accumulation",
        "resolution",
        "half the rank",
    ):
        assert any(wanted in line for line in advice), wanted
    savings = [saving for saving, _ in sorted(found._savings(), reverse=True)]
    assert savings[0] == max(savings) and all(
        f"{memory.gib(s)} less" in line for s, line in zip(savings, advice, strict=True)
    )
    already = preflight(make_run(replace(CONFIG, batch_size=1, gradient_checkpointing=True), data=data))
    assert not any("checkpointing" in line or "batch_size" in line for line in already.lines()[1:])
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    assert len(preflight(make_run(data=data)).lines()) == 1


def test_a_model_in_single_precision_may_be_loaded_in_half(monkeypatch):
    found = estimate(make_run())
    assert found.single >= 0.9 * found.model and any("fp16" in line for line in found.advice())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_out_of_memory_keeps_the_work_and_leaves_nothing_behind(tmp_path, checkpointing):
    denoiser, kept = FullDenoiser(full=9), []
    run = make_run(replace(MIXED, gradient_checkpointing=checkpointing), denoiser=denoiser)
    freed = []

    def on_stopped(path):
        kept.append(path)
        freed.append(denoiser.held() is None and all(p.grad is None for p in run.trainable.trainable()))

    with pytest.raises(OUT_OF_MEMORY):
        train(run, tmp_path, on_stopped=on_stopped)
    assert freed == [True], "room is made before the file is written"
    assert not hooks(run) and run.step == 4
    assert (
        read_metadata(kept[0])["trilora.finished"] == "false" and kept[0].name == "style_stopped_at_00004.safetensors"
    )
    assert state_path(tmp_path / "style.safetensors").is_file()
    denoiser.full = 0
    text = out_of_memory(run, estimate(run), kept[0])
    for wanted in ("step 5 of 6", "2 x 4 x 4 x 4 latents", "the estimate was about", "half the rank", str(kept[0])):
        assert wanted in text, wanted


def test_a_run_that_ran_out_of_memory_goes_on_as_the_whole_one(tmp_path):
    whole = make_run(MIXED)
    train(whole, tmp_path)
    part = make_run(MIXED, denoiser=FullDenoiser(full=7))
    with pytest.raises(OUT_OF_MEMORY):
        train(part, tmp_path / "b")
    resumed = make_run(MIXED)
    train(resumed, tmp_path / "b", resume=True)
    assert same(values(whole), values(resumed)) and whole.losses == resumed.losses


def test_a_dry_step_without_room_is_bad_input(tmp_path):
    run = make_run(denoiser=FullDenoiser(full=1))
    with pytest.raises(InputError, match=r"out of memory on cpu in a first batch.*turn gradient_checkpointing on"):
        preflight(run)
    assert not hooks(run) and run.denoiser.held() is None and all(p.grad is None for p in run.trainable.trainable())


def test_room_is_made_along_the_whole_chain_of_errors():
    run, held = make_run(), []

    def deep():
        large = torch.ones(10)
        held.append(weakref.ref(large))
        raise ValueError("inner")

    def outer():
        large = torch.ones(10)
        held.append(weakref.ref(large))
        try:
            deep()
        except ValueError as error:
            raise OUT_OF_MEMORY("full") from error

    try:
        outer()
    except OUT_OF_MEMORY as error:
        assert all(ref() is not None for ref in held)
        make_room(run, error)
        gc.collect()
        assert all(ref() is None for ref in held)


def test_free_memory_is_asked_of_the_system():
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.spilled(torch.device("cpu")) == ""
