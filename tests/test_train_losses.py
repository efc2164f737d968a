"""The methods of LossConfig and rank dropout in the loop: what a step computes, and that a run stays resumable."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, LossConfig, OptimizerConfig, TrainConfig
from trilora_core.objective import min_snr_weights, mse_per_sample
from trilora_core.recompute import checkpointed
from trilora_core.train import Run, train

EVERYTHING = LossConfig(timesteps="logit-normal", min_snr_gamma=5.0, noise_offset=0.05, orthogonality=1e-3)
CONFIG = TrainConfig(
    steps=12,
    batch_size=2,
    seed=5,
    adapter=AdapterConfig(rank=4, companion_rank=2, rank_dropout=0.3),
    optimizer=OptimizerConfig(learning_rate=1e-2, accumulation=2),
    loss=EVERYTHING,
)
MASK = torch.linspace(0, 1, 16).view(1, 4, 4)


def make_run(config: TrainConfig = CONFIG, *, prior: bool = False) -> Run:
    """Pictures of two shapes, some with masks, and prior pictures where asked."""
    denoiser = ToyDenoiser()
    data = toy_dataset(6, sizes=((4, 4), (2, 6)), masks=[MASK, None] * 3)
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=config.seed, data_hash=data.content_hash)
    return Run(config, denoiser, data, adapter, toy_dataset(3, seed=9) if prior else None)


def go(run: Run, count: int | None = None) -> list[float]:
    with run.trainable.attach(run.denoiser.targets()), closing(train(run)) as steps:
        return [step.loss for _, step in zip(range(count or run.config.steps), steps, strict=False)]


def values(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in run.trainable.named_parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stir(run: Run) -> None:
    """Bring `up` away from zero, where neither dropout nor the penalty on it would show."""
    with torch.no_grad():
        for index, parameter in enumerate(run.trainable.trainable()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_with_every_method_equals_the_uninterrupted_one(stop):
    whole, first, resumed = make_run(prior=True), make_run(prior=True), make_run(prior=True)
    go(whole)
    go(first, stop)
    tensors, state = first.state()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, state)
    go(resumed)
    assert resumed.step == 12 and same(values(whole), values(resumed)) and whole.losses == resumed.losses


def test_checkpointed_training_with_every_method_is_the_same_training():
    plain, recomputed = make_run(), make_run()
    go(plain, 5)
    with checkpointed(recomputed.denoiser.blocks()):
        go(recomputed, 5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(values(plain), values(recomputed), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_method_trains_in_half_precision(precision):
    run = make_run(replace(CONFIG, precision=precision, steps=4))
    assert all(0 < loss < 100 for loss in go(run)) and run._bad == 0


def test_every_batch_has_its_own_mask_and_none_stays_behind():
    run, seen = make_run(replace(CONFIG, batch_size=1)), []
    inner = run.denoiser.predict

    def predict(*args):
        seen.append(torch.cat([branch.mask for branch in run.trainable.branches.values()]))
        return inner(*args)

    run.denoiser.predict = predict
    go(run, 2)
    assert len(seen) == 4 and len({tuple(mask.tolist()) for mask in seen}) == 4
    assert all(branch.mask is None for branch in run.trainable.branches.values())


def test_dropped_directions_weigh_as_much_on_average():
    """The mean gradient of `up` over masks is that without dropout where the model is linear in it: at the start."""
    config = replace(CONFIG, loss=LossConfig(), optimizer=replace(CONFIG.optimizer, accumulation=1))
    plain = make_run(replace(config, adapter=replace(config.adapter, rank_dropout=0.0)))
    with plain.trainable.attach(plain.denoiser.targets()):
        plain._backward(0)
    wanted = torch.cat([branch.up.grad.flatten() for branch in plain.trainable.branches.values()])
    run, total = make_run(config), torch.zeros_like(wanted)
    rows = run._lines[0].batch(0)
    with run.trainable.attach(run.denoiser.targets()):
        for number in range(150):
            run.optimizer.zero_grad()
            with run.trainable.rank_dropout(0, number):
                sum(run._loss([row]) for row in rows).backward()
            total += torch.cat([branch.up.grad.flatten() for branch in run.trainable.branches.values()])
    assert (total / 150 - wanted).norm() < 0.08 * wanted.norm()


def test_min_snr_weighs_each_sample_beside_masks_and_shares_of_the_batch():
    config = replace(CONFIG, loss=LossConfig(min_snr_gamma=5.0), adapter=AdapterConfig(rank=4))
    run = make_run(config, prior=True)
    looks = [row for line in run._lines for step in range(3) for row in line.batch(step)]
    rows = [row for row in looks if row.noise.shape == (4, 4, 4)]
    rows = [replace(row, weight=0.5 + index) for index, row in enumerate(rows)]
    assert {row.sample.mask is None for row in rows} == {True, False}
    wanted = 0.0
    for row in rows:
        times = run.denoiser.times(row.u)
        found = run.denoiser.predict(row.sample.latents[None], row.noise[None], times, [row.sample.cond])
        mask = None if row.sample.mask is None else row.sample.mask[None]
        factor = min_snr_weights(run.denoiser.snr(times), 5.0, "flow").item()
        wanted += row.weight * factor * mse_per_sample(*found, mask).item()
    assert run._loss(rows).item() == pytest.approx(wanted, rel=1e-5)


def gradient(config: TrainConfig) -> tuple[float, torch.Tensor]:
    """Reported loss and gradient of a first step whose `up` is not zero, before it is clipped."""
    run = make_run(config)
    stir(run)
    found = []
    inner = run._clip

    def clip(loss):
        found.append(torch.cat([parameter.grad.flatten() for parameter in run.trainable.trainable()]))
        return inner(loss)

    run._clip = clip
    return go(run, 1)[0], found[0]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_penalty_adds_its_gradient_once_and_is_not_in_the_loss(accumulation):
    optimizer = replace(CONFIG.optimizer, accumulation=accumulation)
    plain = gradient(replace(CONFIG, optimizer=optimizer, loss=replace(EVERYTHING, orthogonality=0.0)))
    with_penalty = gradient(replace(CONFIG, optimizer=optimizer, loss=replace(EVERYTHING, orthogonality=0.5)))
    run = make_run()
    stir(run)
    parameters = run.trainable.trainable()
    parts = torch.autograd.grad(0.5 * run.trainable.orthogonality(), parameters, allow_unused=True)
    alone = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
    assert with_penalty[0] == plain[0]
    assert torch.allclose(with_penalty[1], plain[1] + torch.cat([part.flatten() for part in alone]), atol=1e-5)


def test_the_penalty_makes_the_factors_more_orthogonal():
    loose = make_run(replace(CONFIG, steps=30, loss=LossConfig()))
    tight = make_run(replace(CONFIG, steps=30, loss=LossConfig(orthogonality=0.1)))
    for run in (loose, tight):
        go(run)
    assert tight.trainable.orthogonality() < 0.2 * loose.trainable.orthogonality()


def test_factors_that_are_both_held_need_no_penalty():
    run = make_run()
    for branch in run.trainable.branches.values():
        branch.up.requires_grad_(False)
        branch.down.requires_grad_(False)
    run._backward_penalty()
    assert all(p.grad is None for _, p in run.trainable.named_parameters())


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device: values read out of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_no_method_waits_for_the_device():
    run = make_run()
    go(run, 1)
    with Reads() as proof:
        torch.ones(()).item()
    assert proof.found, "the counter counts"
    with run.trainable.attach(run.denoiser.targets()), Reads() as reads:
        run._backward(0)
        run._backward_penalty()
    assert not reads.found
