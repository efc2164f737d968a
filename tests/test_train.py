from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, OptimizerConfig, TrainConfig
from trilora_core.recompute import checkpointed
from trilora_core.train import Denoiser, Run, TrainingDiverged, train

CONFIG = TrainConfig(
    steps=40,
    batch_size=3,
    seed=5,
    adapter=AdapterConfig(rank=4),
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=3),
)


def make_run(config: TrainConfig = CONFIG, denoiser: ToyDenoiser | None = None) -> Run:
    denoiser, data = denoiser or ToyDenoiser(), toy_dataset()
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=config.seed, data_hash=data.content_hash)
    return Run(config, denoiser, data, adapter)


def go(run: Run, count: int | None = None) -> list:
    with run.trainable.attach(run.denoiser.targets()), closing(train(run)) as steps:
        return [step for _, step in zip(range(count or run.config.steps), steps, strict=False)]


def values(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in run.trainable.named_parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_toy_keeps_the_protocol():
    assert isinstance(ToyDenoiser(), Denoiser)


@pytest.mark.parametrize("method", ["trilora", "lora"])
def test_training_lowers_the_loss_and_leaves_the_model_alone(method):
    config = replace(CONFIG, steps=150, adapter=replace(CONFIG.adapter, method=method, companion_rank=1))
    run = make_run(config)
    before = {name: value.clone() for name, value in run.denoiser.model.state_dict().items()}
    steps = go(run)
    early = sum(step.loss for step in steps[:20]) / 20
    late = sum(step.loss for step in steps[-20:]) / 20
    assert late < 0.85 * early
    assert all(torch.equal(value, before[name]) for name, value in run.denoiser.model.state_dict().items())
    assert not any(target.module._forward_hooks for target in run.denoiser.targets().values())


def test_same_seed_same_tensors_and_another_seed_others():
    first, again, other = make_run(), make_run(), make_run(replace(CONFIG, seed=6))
    for run in (first, again, other):
        go(run)
    assert same(values(first), values(again)) and first.losses == again.losses
    assert not same(values(first), values(other))


def test_accumulated_batches_equal_one_large_batch():
    """Loss and gradient of two batches of 1 are those of the pair, with the same noise and times."""
    small = make_run(replace(CONFIG, batch_size=1, optimizer=replace(CONFIG.optimizer, accumulation=2)))
    denoiser, data = small.denoiser, small.dataset
    seen: list[tuple] = []
    inner = denoiser.predict
    denoiser.predict = lambda *args: seen.append(args) or inner(*args)
    with small.trainable.attach(denoiser.targets()):
        total = sum(small._backward(micro) for micro in range(2))
        grads = [p.grad.clone() for p in small.trainable.trainable()]
        latents, noise, times = (torch.cat([call[part] for call in seen]) for part in range(3))
        small.optimizer.zero_grad()
        prediction, target = inner(latents, noise, times, [cond for call in seen for cond in call[3]])
        loss = (prediction - target).square().mean()
        loss.backward()
    assert len(data.latents) == 6 and torch.allclose(total, loss)
    for grad, parameter in zip(grads, small.trainable.trainable(), strict=True):
        assert torch.allclose(grad, parameter.grad, atol=1e-6)


def test_a_stopped_run_that_loads_its_state_equals_the_uninterrupted_one():
    whole, first = make_run(), make_run()
    go(whole)
    go(first, 17)
    tensors, state = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    resumed = make_run()
    resumed.load_state(tensors, state)
    go(resumed)
    assert resumed.step == 40 and same(values(whole), values(resumed)) and whole.losses == resumed.losses


def test_request_stop_ends_after_the_step_at_hand():
    run = make_run()
    with run.trainable.attach(run.denoiser.targets()), closing(train(run)) as steps:
        for step in steps:
            if step.step == 4:
                run.request_stop()
    assert run.step == 4 and len(run.losses) == 4


def test_a_bad_step_is_dropped_named_and_does_not_move_the_adapter():
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {3, 4}
    run = make_run(denoiser=denoiser)
    before = go(run, 2) and values(run)
    bad = go(run, 2)
    assert [step.dropped for step in bad] == ["the loss was nan"] * 2 and same(before, values(run))
    good = go(run, 1)
    assert not good[0].dropped and not same(before, values(run))
    assert math.isnan(run.losses[2]) and math.isfinite(run.losses[4])


def test_three_bad_steps_in_a_row_end_the_run_with_the_last_good_state():
    """Good is what a finite loss was computed with: the parameters that step 3 found, not what it made of them."""
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {4, 5, 6}
    run = make_run(denoiser=denoiser)
    before = go(run, 2) and values(run)
    with pytest.raises(TrainingDiverged, match="step 6: the loss was nan, the 3rd step in a row"):
        go(run)
    assert same(before, values(run))


def test_a_step_that_breaks_the_parameters_is_undone():
    config = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e30))
    run = make_run(config)
    before = values(run)
    with pytest.raises(TrainingDiverged, match="without a usable gradient"):
        go(run)
    assert all(value.isfinite().all() for value in values(run)) and run.step < 40
    assert run.step > 4 or same(before, values(run))


def test_clipping_limits_the_step_but_reports_the_whole_norm():
    config = replace(CONFIG, steps=1, optimizer=replace(CONFIG.optimizer, clip_norm=1e-9, warmup_steps=0))
    free, clipped = make_run(replace(config, optimizer=replace(config.optimizer, clip_norm=0.0))), make_run(config)
    assert go(free)[0].grad_norm == pytest.approx(go(clipped)[0].grad_norm)
    moved = [sum(b.up.abs().sum() for b in run.trainable.branches.values()).item() for run in (free, clipped)]
    assert moved[1] < 0.2 * moved[0]


def test_checkpointed_training_is_the_same_training():
    plain, recomputed = make_run(), make_run()
    go(plain, 5)
    with checkpointed(recomputed.denoiser.blocks()):
        go(recomputed, 5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(plain), values(recomputed), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_precisions_train(precision):
    run = make_run(replace(CONFIG, precision=precision, steps=3))
    steps = go(run)
    assert all(math.isfinite(step.loss) and not step.dropped for step in steps)
    assert run.scaler.is_enabled() == (precision == "fp16")


def test_fingerprint_follows_what_the_result_depends_on():
    base = make_run().fingerprint()
    assert base == make_run(replace(CONFIG, save_every=7)).fingerprint()
    assert base != make_run(replace(CONFIG, steps=41)).fingerprint()
    assert base != make_run(replace(CONFIG, adapter=AdapterConfig(rank=5))).fingerprint()
    assert make_run().fingerprint(with_steps=False) == make_run(replace(CONFIG, steps=41)).fingerprint(with_steps=False)
